"""The fused Gaussian operations in Triton's interpreter against the float64 reference.

Collected by `test_interpreted.py` in a process of its own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from kernels.backends import fused
from kernels.gpu import device, gaussian, latent_plan, operators
from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED
from kernels.reference.backend import REFERENCE
from kernels.reference.philox import normals, round_keys, words

FUSED = fused("cpu")
every_form = pytest.mark.parametrize(
    "form",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(SOFT_CLAMPED, id="soft clamped", marks=pytest.mark.slow),  # residual runs the same code
        pytest.param(RESIDUAL, id="residual"),
    ],
)
SEED = torch.tensor(-(2**50) + 123)

# |error| / (1 + |reference|). The noise of two backends differs by 1e-6; the rest is rounding of float32 arithmetic,
# in which the clamped forms' gradients divide by small scales, and of 16-bit outputs.
NOISE = 1e-6
VALUE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
PLAIN_GRADIENT = 2e-6


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Fill what `torch.empty` gives with NaN, so that a value a kernel forgets to write fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach().double()
    return float(((value - expected).abs() / (1 + expected.abs())).max()) if value.numel() else 0.0


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halves(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log scale of one convolution output, as views."""
    mean, log_scale = tensor.chunk(2, 1)
    return mean, log_scale


def step(ops, posterior, prior, upstream, noise=None, **request):
    """Outputs of a draw and the gradients of its parameters, given as whole convolution outputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in (posterior, prior) if tensor is not None]
    pair = halves(leaves[1]) if prior is not None else (None, None)
    draw = ops.gaussian_sample_kl(*halves(leaves[0]), *pair, seed=SEED, group=3, noise=noise, **request)
    outputs = [value for value in draw if value is not None]
    loss = sum((value * g.to(value.dtype)).sum() for value, g in zip(outputs, upstream, strict=False))
    return outputs, torch.autograd.grad(loss, leaves)


def compare(posterior, prior, *, form, log_ratio, noise=None, first_sample=7):
    """Largest errors of outputs and of gradients of the fused step against the float64 reference."""
    shape = halves(posterior)[0].shape
    upstream = [random(*shape, seed=3), random(shape[0], seed=4), random(shape[0], seed=5)]
    upstream[0] = upstream[0].to(posterior.dtype).float()
    request = {"form": form, "log_ratio": log_ratio, "first_sample": first_sample}
    ours = step(FUSED, posterior, prior, upstream, noise, **request)
    wide = [None if tensor is None else tensor.double() for tensor in (posterior, prior, noise)]
    theirs = step(REFERENCE, wide[0], wide[1], [g.double() for g in upstream], wide[2], **request)
    return [max(error(a, b) for a, b in zip(x, y, strict=True)) for x, y in zip(ours, theirs, strict=True)]


def parameters(shape, memory_format, dtype, seed):
    doubled = (shape[0], 2 * shape[1], *shape[2:])
    tensor = random(*doubled, seed=seed).to(dtype)
    return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor


MEMORY = {
    "nchw": ((2, 20, 4, 4), torch.contiguous_format),
    "nhwc": ((2, 20, 4, 4), torch.channels_last),
    "nhwc, odd": ((3, 5, 3, 3), torch.channels_last),
}


@every_form
@pytest.mark.parametrize("with_prior", [False, True], ids=["no prior", "prior"])
@pytest.mark.parametrize(("shape", "memory_format"), MEMORY.values(), ids=MEMORY.keys())
def test_values_and_gradients(form, with_prior, shape, memory_format):
    posterior = parameters(shape, memory_format, torch.float32, 1)
    prior = parameters(shape, memory_format, torch.float32, 2) if with_prior else None
    values, gradients = compare(posterior, prior, form=form, log_ratio=True)
    assert values < 4 * NOISE  # times scales up to exp(1.5)
    assert gradients < (20 * NOISE if form is PLAIN else GRADIENT[torch.float32])


@every_form
@pytest.mark.parametrize("with_prior", [False, True], ids=["no prior", "prior"])
def test_rounding_with_the_noise_given(form, with_prior):
    shape = (2, 20, 8, 8)
    posterior, prior = (parameters(shape, torch.contiguous_format, torch.float32, seed) for seed in (1, 2))
    noise = random(*shape, seed=9)
    values, gradients = compare(posterior, prior if with_prior else None, form=form, log_ratio=False, noise=noise)
    assert values < VALUE[torch.float32]
    assert gradients < (PLAIN_GRADIENT if form is PLAIN else GRADIENT[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_form
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_sixteen_bit_types(dtype, form, memory_format):
    posterior, prior = (parameters((2, 20, 4, 4), memory_format, dtype, seed) for seed in (1, 2))
    values, gradients = compare(posterior, prior, form=form, log_ratio=True)
    assert values < VALUE[dtype]
    assert gradients < GRADIENT[dtype]


SIZES = [(size, torch.float32) for size in (1, 3, 4, 5, 127, 128, 129, 333, 2047, 2049)]
SIZES += [(size, torch.bfloat16) for size in (1, 7, 8, 9, 257, 2047, 2049)]
EVERY_SIZE = [
    pytest.param(size, dtype, marks=pytest.mark.slow)
    for size in (2, 6, 10, 31, 63, 255, 256, 511, 513, 1023, 1024, 1025, 2048, 4097, 6147)
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("size", "dtype"), [*SIZES, *EVERY_SIZE], ids=str)
def test_sizes_around_multiples_of_quads_and_blocks(size, dtype):
    posterior, prior = (parameters((2, size), torch.contiguous_format, dtype, seed) for seed in (1, 2))
    values, gradients = compare(posterior, prior, form=PLAIN, log_ratio=True)
    assert values < 4 * VALUE[dtype]
    assert gradients < max(20 * NOISE, GRADIENT[dtype])


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0), (0, 5)])
def test_empty(shape):
    empty = torch.zeros(shape, requires_grad=True)
    draw = FUSED.gaussian_sample_kl(empty, empty, None, None, seed=SEED, group=0, log_ratio=True)
    assert draw.z.shape == shape
    assert torch.equal(draw.kl, torch.zeros(shape[0]))
    (gradient,) = torch.autograd.grad(draw.z.sum() + draw.kl.sum(), empty)
    assert gradient.shape == shape


def views(case: str, tensor: torch.Tensor) -> torch.Tensor:
    """A view with the values of `tensor` (B, C, H, W) in some memory layout."""
    batch, channels, height, width = tensor.shape
    if case == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if case == "every second":
        return torch.stack((tensor, tensor), -1).flatten(3)[..., ::2]
    if case == "batch last":
        return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if case == "channels last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if case == "shifted":
        return torch.cat((torch.zeros(1), tensor.flatten()))[1:].view(batch, channels, height, width)
    return tensor.contiguous()


CASES = ("contiguous", "channels last", "transposed", "every second", "batch last", "shifted")


PAIRS = [
    pytest.param(*pair, marks=() if pair[0] == pair[1] or pair[1] == "contiguous" else pytest.mark.slow)
    for pair in itertools.product(CASES, CASES)
]


@pytest.mark.parametrize(("posterior_case", "prior_case"), PAIRS)
def test_any_strides(posterior_case, prior_case):
    tensors = [random(2, 6, 4, 4, seed=seed) for seed in range(4)]
    given = [views(case, t) for case, t in zip((posterior_case,) * 2 + (prior_case,) * 2, tensors, strict=True)]
    expected = FUSED.gaussian_sample_kl(*tensors, seed=SEED, group=0, form=RESIDUAL)
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    draw = FUSED.gaussian_sample_kl(*leaves, seed=SEED, group=0, form=RESIDUAL)
    assert torch.equal(draw.z, expected.z)
    torch.testing.assert_close(draw.kl, expected.kl, rtol=1e-6, atol=0)  # summed in another order
    upstream = views(prior_case, random(2, 6, 4, 4, seed=8))
    gradients = torch.autograd.grad((draw.z * upstream).sum() + draw.kl.sum(), leaves)
    wide = [tensor.double().requires_grad_() for tensor in tensors]
    draw = REFERENCE.gaussian_sample_kl(*wide, seed=SEED, group=0, form=RESIDUAL)
    reference = torch.autograd.grad((draw.z * upstream).sum() + draw.kl.sum(), wide)
    assert max(error(a, b) for a, b in zip(gradients, reference, strict=True)) < GRADIENT[torch.float32]


def test_prior_expanded_over_the_batch():
    posterior = random(3, 4, 4, 4, seed=0).requires_grad_()
    prior = random(1, 4, 4, 4, seed=1).requires_grad_()
    draw = FUSED.gaussian_sample_kl(*halves(posterior), *halves(prior.expand(3, -1, -1, -1)), seed=SEED, group=0)
    gradients = torch.autograd.grad(draw.z.sum() + draw.kl.sum(), (posterior, prior))
    wide, wide_prior = posterior.detach().double().requires_grad_(), prior.detach().double().requires_grad_()
    pair = halves(wide_prior.expand(3, -1, -1, -1))
    draw = REFERENCE.gaussian_sample_kl(*halves(wide), *pair, seed=SEED, group=0)
    reference = torch.autograd.grad(draw.z.sum() + draw.kl.sum(), (wide, wide_prior))
    assert max(error(a, b) for a, b in zip(gradients, reference, strict=True)) < 20 * NOISE


def test_zero_noise_gives_the_mean():
    posterior = random(2, 8, 4, 4, seed=0)
    mean, log_scale = halves(posterior)
    noise = torch.zeros(()).expand_as(mean)
    draw = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0, noise=noise)
    assert torch.equal(draw.z, mean)


def test_offsets_past_two_to_the_31():
    far = torch.empty(0, dtype=torch.bfloat16).untyped_storage()
    far.resize_(2 * (2**31 + 64))
    mean = torch.empty(0, dtype=torch.bfloat16).set_(far, 0, (2, 16), (2**31, 1))
    log_scale = torch.empty(0, dtype=torch.bfloat16).set_(far, 16, (2, 16), (2**31, 1))
    values = random(2, 32, seed=0).bfloat16()
    mean.copy_(values[:, :16])
    log_scale.copy_(values[:, 16:])
    draw = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0)
    near = FUSED.gaussian_sample_kl(*halves(values), None, None, seed=SEED, group=0)
    assert torch.equal(draw.z, near.z)
    assert torch.equal(draw.kl, near.kl)


def test_nothing_is_written_past_the_end():
    size, guard = 333, 64
    memory = torch.full((2 * size + 2 * guard,), 7.0)
    z = memory[guard:-guard].view(2, size)
    mean = random(2, size, seed=0)
    request, groups = latent_plan.Request(SEED, 0, 0, PLAIN, 1.0, False), ((mean, mean), (), (), (z,))
    plan = latent_plan.plan_launch(gaussian.forward, mean, request, *groups)
    posterior_at, _, _, z_at = plan.arguments(*groups)
    plan.launch((), posterior_at, None, None, SEED, z_at, None, None, *plan.sizes, 0, 0, 1.0)
    assert torch.equal(memory[:guard], torch.full((guard,), 7.0))
    assert torch.equal(memory[-guard:], torch.full((guard,), 7.0))
    assert torch.equal(z, FUSED.gaussian_sample(mean, mean, seed=SEED, group=0))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@every_form
@pytest.mark.parametrize("which", range(4))
def test_bad_inputs_spread_as_in_the_reference(bad, form, which):
    tensors = [random(2, 5, seed=seed) for seed in range(4)]
    tensors[which][0, 2] = bad
    request = {"seed": SEED, "group": 0, "form": form}
    ours, theirs = FUSED.gaussian_sample_kl(*tensors, **request), REFERENCE.gaussian_sample_kl(*tensors, **request)
    assert torch.equal(torch.isfinite(ours.z), torch.isfinite(theirs.z))
    assert torch.equal(torch.isfinite(ours.kl), torch.isfinite(theirs.kl))


def test_same_seed_same_bits_and_the_seed_is_read_when_the_kernel_runs():
    mean, log_scale = halves(random(2, 40, seed=0))
    seed = torch.tensor(1)
    first = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=seed, group=0)
    again = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=seed, group=0)
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.kl, again.kl)
    seed.add_(1)  # as between two replays of a captured graph
    replay = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=seed, group=0)
    assert not torch.any(first.z == replay.z)
    other_group = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=seed, group=1)
    assert not torch.any(other_group.z == replay.z)


def test_block_size_does_not_change_the_draw(monkeypatch):
    mean, log_scale = halves(random(1, 2 * 700, seed=0))
    draws = []
    for block in (2048, 512, 128):
        monkeypatch.setattr(latent_plan, "BLOCKS", (block,))
        draws.append(FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0).z)
    assert all(torch.equal(draw, draws[0]) for draw in draws)


def test_an_image_draws_the_same_noise_in_any_batch():
    mean, log_scale = halves(random(5, 12, 4, 4, seed=0))
    whole = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0)
    part = FUSED.gaussian_sample_kl(mean[3:], log_scale[3:], None, None, seed=SEED, group=0, first_sample=3)
    assert torch.equal(part.z, whole.z[3:])
    assert torch.equal(part.kl, whole.kl[3:])


@triton.jit
def write_words(seed, out, quads: tl.constexpr, sample, group):
    """The words of `quads` counters, one row for each of the four words."""
    quad = tl.arange(0, quads)
    zero = tl.full([], 0, tl.uint32)
    drawn = device.philox(quad.to(tl.uint32), zero + sample, zero + group, zero, tl.load(seed))
    for row in tl.static_range(4):
        tl.store(out + row * quads + quad, drawn[row].to(tl.int64))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 0x1234567890ABCDEF])
def test_integers_are_those_of_the_reference(seed):
    out = torch.empty((4, 256), dtype=torch.int64)
    write_words[(1,)](torch.tensor(seed), out, 256, 5, 6)
    expected = torch.stack(words(round_keys(torch.tensor(seed)), 6, range(5, 6), 256))[:, 0]
    assert torch.equal(out, expected)


def test_normals_are_those_of_the_reference():
    zero = torch.zeros(4, 4096)
    ours = FUSED.gaussian_sample(zero, zero, seed=SEED, group=4, first_sample=2)
    expected = normals(SEED, 4, (4, 4096), first_sample=2, dtype=torch.float64)
    assert float((ours - expected).abs().max()) < 1.5 * NOISE


@every_form
def test_sample_at_a_temperature(form):
    posterior = random(2, 8, 4, 4, seed=0).requires_grad_()
    request = {"seed": SEED, "group": 1, "form": form, "temperature": 0.6}
    z = FUSED.gaussian_sample(*halves(posterior), **request)
    (gradient,) = torch.autograd.grad(z.square().sum(), posterior)
    wide = posterior.detach().double().requires_grad_()
    expected = REFERENCE.gaussian_sample(*halves(wide), **request)
    (reference,) = torch.autograd.grad(expected.square().sum(), wide)
    assert error(z, expected) < 4 * NOISE
    assert error(gradient, reference) < 20 * NOISE


def test_nothing_but_inputs_and_seed_is_saved():
    posterior, prior = random(2, 8, 4, 4, seed=0).requires_grad_(), random(2, 8, 4, 4, seed=1).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        FUSED.gaussian_sample_kl(*halves(posterior), *halves(prior), seed=SEED, group=0)
    storages = {tensor.untyped_storage().data_ptr() for tensor in saved}
    assert storages == {tensor.untyped_storage().data_ptr() for tensor in (posterior, prior, SEED)}


def test_second_order_gradients_are_refused():
    mean, log_scale = (random(2, 4, seed=seed).requires_grad_() for seed in (0, 1))
    draw = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0)
    (gradient,) = torch.autograd.grad(draw.kl.sum(), mean, create_graph=True)
    with pytest.raises(RuntimeError, match="no second-order gradients"):
        gradient.sum().backward()


def test_float64_takes_the_reference():
    mean = random(2, 4, seed=0).double()
    ours = FUSED.gaussian_sample_kl(mean, mean, None, None, seed=SEED, group=0)
    assert torch.equal(ours.z, REFERENCE.gaussian_sample_kl(mean, mean, None, None, seed=SEED, group=0).z)


def test_under_autocast():
    mean, log_scale = halves(random(2, 8, seed=0))
    expected = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0)
    with torch.autocast("cpu", torch.bfloat16):
        draw = FUSED.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0)
    assert torch.equal(draw.z, expected.z)
    assert draw.kl.dtype == torch.float32


def operator_arguments(with_prior: bool, temperature: float | None) -> tuple:
    tensors = [random(2, 4, 2, 2, seed=seed).requires_grad_() for seed in range(4)]
    pair = tensors[2:] if with_prior else (None, None)
    return (*tensors[:2], *pair, None, SEED, 0, 0, 5.0, 0.01, with_prior, temperature, temperature is None)


@pytest.mark.parametrize(("with_prior", "temperature"), [(False, None), (True, None), (False, 0.5)])
def test_registration(with_prior, temperature):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operators.gaussian, operator_arguments(with_prior, temperature), test_utils=checks)


def test_compiled_into_one_graph():
    def loss(posterior, prior):
        draw = FUSED.gaussian_sample_kl(*halves(posterior), *halves(prior), seed=SEED, group=0, form=RESIDUAL)
        return draw.z.square().sum() + draw.kl.sum()

    leaves = [random(2, 8, 4, 4, seed=seed).requires_grad_() for seed in (0, 1)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    gradients = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
