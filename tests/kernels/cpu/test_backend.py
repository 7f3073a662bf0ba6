"""The CPU path equals the reference in value and gradient, with and without its C kernels, and keeps less."""

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.backends import best_for
from kernels.cpu import gaussian, library, mixture
from kernels.cpu.backend import CPU
from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED, GaussianForm
from kernels.reference.backend import REFERENCE
from kernels.reference.philox import normals

FORMS = {"plain": PLAIN, "soft clamped": SOFT_CLAMPED, "residual": RESIDUAL, "floor": GaussianForm(scale_floor=0.1)}
SEED = torch.tensor(-(2**60) + 7)

# |error| / (1 + |reference|) against float64: rounding of float32 arithmetic and 1e-6 between the backends' noise,
# times scales up to exp(2); 16-bit outputs round more.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.bfloat16: 2e-2}
NOISE = 1e-6
MIXTURE = 1e-4  # of gradients; at scale exp(-7) the rounding of x - mean counts a thousandfold

MIXTURE_MEAN = 2e-5  # rounding of softplus in float32, times scales up to exp(5)

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@pytest.fixture(params=["C", "plain PyTorch"])
def backend(request, monkeypatch):
    """Run with the C kernels, then as on a machine without a compiler."""
    if request.param == "C":
        if library.library() is None:
            pytest.skip("no C compiler")
    else:
        monkeypatch.setattr(library, "library", lambda: None)
    return request.param


def random(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def error(value, expected):
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach().double()
    return float(((value - expected).abs() / (1 + expected.abs())).max())


def draw_step(ops, posterior, prior, form, dtype):
    leaves = [one.to(dtype).requires_grad_() for one in (posterior, prior) if one is not None]
    pair = leaves[1].chunk(2, 1) if prior is not None else (None, None)
    draw = ops.gaussian_sample_kl(*leaves[0].chunk(2, 1), *pair, seed=SEED, group=2, form=form, first_sample=5)
    upstream = random(*draw.z.shape, seed=8).bfloat16().to(draw.z.dtype), torch.ones_like(draw.kl)
    return [draw.z, draw.kl, *torch.autograd.grad((draw.z, draw.kl), leaves, upstream)]


@every_form
@pytest.mark.parametrize("with_prior", [False, True], ids=["no prior", "prior"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_draws_and_gradients(form, with_prior, dtype, backend):
    posterior = random(3, 10, 4, 4, seed=0).bfloat16().double()
    prior = random(3, 10, 4, 4, seed=1).bfloat16().double() if with_prior else None
    ours, theirs = (
        draw_step(CPU, posterior, prior, form, dtype),
        draw_step(REFERENCE, posterior, prior, form, torch.double),
    )
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 255), (2, 257), (5, 20, 8, 8), (0, 4), (2, 0)])
def test_noise_is_that_of_the_reference(shape, backend):
    noise = gaussian.draw_noise(None, SEED, 3, torch.Size(shape), 9, torch.float32)
    expected = normals(SEED, 3, shape, 9, torch.float64)
    assert noise.shape == shape
    assert torch.allclose(noise.double(), expected, rtol=0, atol=1.5 * NOISE)


def test_threads_do_not_change_the_noise(monkeypatch):
    if library.library() is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(library, "SMALLEST_SHARE", 1)
    draws = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        draws.append(gaussian.draw_noise(None, SEED, 0, torch.Size((7, 33)), 0, torch.float32))
    assert torch.equal(*draws)


def test_log_ratio_and_external_noise():
    parameters = [random(2, 6, seed=seed) for seed in range(4)]
    noise = random(2, 6, seed=9)
    ours, theirs = (
        ops.gaussian_sample_kl(*parameters, seed=SEED, group=0, noise=noise, log_ratio=True) for ops in (CPU, REFERENCE)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@every_form
def test_sample_at_a_temperature(form):
    mean, log_scale = random(2, 6, seed=0), random(2, 6, seed=1)
    request = {"seed": SEED, "group": 1, "form": form, "temperature": 0.7}
    ours, theirs = (ops.gaussian_sample(mean, log_scale, **request) for ops in (CPU, REFERENCE))
    assert torch.equal(ours, theirs)


def test_prior_expanded_over_the_batch():
    posterior, prior = random(3, 4, seed=0), random(1, 4, seed=1)
    results = []
    for ops in (CPU, REFERENCE):
        q, p = posterior.clone().requires_grad_(), prior.clone().requires_grad_()
        draw = ops.gaussian_sample_kl(*q.chunk(2, 1), *p.expand(3, -1).chunk(2, 1), seed=SEED, group=0)
        results.append(torch.autograd.grad(draw.z.sum() + draw.kl.sum(), (q, p)))
    assert max(error(a, b) for a, b in zip(*results, strict=True)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0), (0, 5)])
def test_empty_batches_and_groups(shape, backend):
    empty = torch.zeros(shape, requires_grad=True)
    draw = CPU.gaussian_sample_kl(empty, empty, None, None, seed=SEED, group=0)
    (gradient,) = torch.autograd.grad(draw.z.sum() + draw.kl.sum(), empty)
    assert draw.z.shape == gradient.shape == shape
    assert torch.equal(draw.kl, torch.zeros(shape[0]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_halves_of_a_convolution_output_in_any_format(memory_format, backend):
    posterior = random(2, 8, 4, 4, seed=0).float()
    formatted = posterior.contiguous(memory_format=memory_format)
    ours, theirs = (
        draw_step(CPU, formatted, None, PLAIN, torch.float32),
        draw_step(REFERENCE, posterior, None, PLAIN, torch.double),
    )
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", [PLAIN, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("which", range(4))
def test_bad_inputs_spoil_their_sample_alone(bad, form, which, backend):
    tensors = [random(2, 300, seed=seed).float() for seed in range(4)]
    tensors[which][0, 2] = bad
    ours, theirs = (ops.gaussian_sample_kl(*tensors, seed=SEED, group=0, form=form) for ops in (CPU, REFERENCE))
    assert torch.equal(ours.z.isnan(), theirs.z.isnan())
    assert torch.equal(ours.kl.isfinite(), theirs.kl.isfinite())


def mixture_problem(colours, components, bits, height=6, width=7):
    parameters = 1.5 * random(5, (10 if colours == 3 else 3) * components, height, width, seed=bits) - 0.5
    levels = torch.randint(0, 2**bits, (5, colours, height, width), generator=torch.Generator().manual_seed(1))
    levels[:, :, 0, 0], levels[:, :, 0, 1] = 0, 2**bits - 1
    return parameters, levels.double() / (2**bits - 1)


def mixture_step(ops, parameters, x, bits, dtype):
    leaf = parameters.to(dtype).requires_grad_()
    log_prob = ops.logistic_mixture_log_prob(leaf, x.to(torch.promote_types(dtype, torch.float32)), bits=bits)
    return log_prob, *torch.autograd.grad((log_prob * torch.arange(1.0, 6.0)).sum(), leaf)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mixture_values_and_gradients(colours, components, bits, dtype, backend, monkeypatch):
    monkeypatch.setattr(mixture, "CHUNK", 500)
    parameters, x = mixture_problem(colours, components, bits)
    ours, theirs = (
        mixture_step(ops, parameters, x, bits, kind) for ops, kind in ((CPU, dtype), (REFERENCE, torch.double))
    )
    assert error(ours[0], theirs[0]) < (1e-11 if dtype == torch.float64 else 2e-6)
    assert error(ours[1], theirs[1]) < (1e-9 if dtype == torch.float64 else MIXTURE)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (9, 15), (28, 28)])
def test_mixture_image_sizes(height, width, backend):
    parameters, x = mixture_problem(3, 2, 8, height, max(2, width))
    ours, theirs = (mixture_step(o, parameters, x, 8, d) for o, d in ((CPU, torch.float32), (REFERENCE, torch.double)))
    assert error(ours[0], theirs[0]) < 2e-6
    assert error(ours[1], theirs[1]) < MIXTURE


def test_mixture_of_a_cropped_image(backend):
    parameters, x = mixture_problem(3, 2, 8, 8, 8)
    wide = torch.nn.functional.pad(parameters, (2, 2, 2, 2))[..., 2:-2, 2:-2]
    ours, theirs = (mixture_step(o, wide, x, 8, d) for o, d in ((CPU, torch.float32), (REFERENCE, torch.double)))
    assert error(ours[1], theirs[1]) < MIXTURE


def test_mixture_of_images_in_any_layout_and_type(backend):
    parameters, x = mixture_problem(3, 5, 8, 16, 16)
    planes = mixture_step(CPU, parameters, x, 8, torch.float32)
    for images in (x.contiguous(memory_format=torch.channels_last), x.double(), x.flip(3).flip(3)):
        for found, wanted in zip(mixture_step(CPU, parameters, images, 8, torch.float32), planes, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(9, 15), (8, 8)])
@pytest.mark.skipif(library.library() is None, reason="no C compiler")
def test_mixture_of_parameters_that_lie_pixel_by_pixel(colours, height, width):
    parameters, x = mixture_problem(colours, 7, 8, height, width)
    by_pixels = parameters.float().contiguous(memory_format=torch.channels_last)
    planes, pixels = (mixture_step(CPU, one, x, 8, torch.float32) for one in (parameters, by_pixels))
    assert pixels[1].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(planes, pixels, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_mixture_mean(colours, order, backend):
    for size in ((5, 7), (8, 8), (9, 15)):
        parameters = mixture_problem(colours, 7, 8, *size)[0].contiguous(memory_format=order)
        wanted = REFERENCE.logistic_mixture_mean(parameters, channels=colours)
        assert error(CPU.logistic_mixture_mean(parameters.float(), channels=colours), wanted) < MIXTURE_MEAN


def test_gradients_of_a_mixture_mean_are_those_of_the_reference(backend):
    leaf = mixture_problem(3, 2, 8)[0].float().requires_grad_()
    found = [
        torch.autograd.grad(ops.logistic_mixture_mean(leaf, channels=3).sum(), leaf)[0] for ops in (CPU, REFERENCE)
    ]
    assert torch.equal(*found)


def test_mixture_without_gradients_keeps_nothing(backend):
    parameters, x = mixture_problem(1, 3, 8)
    with torch.no_grad():
        log_prob = CPU.logistic_mixture_log_prob(parameters.float().requires_grad_(), x.float(), bits=8)
    assert not log_prob.requires_grad
    assert error(log_prob, REFERENCE.logistic_mixture_log_prob(parameters, x, bits=8)) < 2e-6


def test_bad_parameters_spoil_their_image_alone(backend):
    parameters, x = mixture_problem(3, 2, 8)
    for channel in (0, 3, 5, 7):
        spoilt = parameters.float().clone()
        spoilt[1, channel, 2, 2] = float("nan")
        log_prob = CPU.logistic_mixture_log_prob(spoilt, x.float(), bits=8)
        assert log_prob.isnan().tolist() == [False, True, False, False, False]


def saved_bytes(call) -> int:
    """Bytes that the backward pass keeps alive, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(storages.values())


@every_form
def test_gaussian_keeps_no_more_than_the_reference(form):
    posterior, prior = (random(8, 40, 8, 8, seed=seed).float().requires_grad_() for seed in (0, 1))

    def call(ops):
        pair = prior.chunk(2, 1)
        return ops.gaussian_sample_kl(*posterior.chunk(2, 1), *pair, seed=SEED, group=0, form=form)

    assert saved_bytes(lambda: call(CPU)) <= saved_bytes(lambda: call(REFERENCE))


def test_mixture_keeps_a_third_of_the_reference_at_most(backend):
    parameters, x = mixture_problem(3, 10, 8, 32, 32)
    leaf = parameters.float().requires_grad_()

    def call(ops):
        return ops.logistic_mixture_log_prob(leaf, x.float(), bits=8)

    assert 3 * saved_bytes(lambda: call(CPU)) < saved_bytes(lambda: call(REFERENCE))


def test_second_order_gradients_are_refused():
    mean = random(2, 4, seed=0).requires_grad_()
    draw = CPU.gaussian_sample_kl(mean, mean, None, None, seed=SEED, group=0)
    with pytest.raises(RuntimeError, match="no second-order gradients"):
        torch.autograd.grad(draw.kl.sum(), mean, create_graph=True)


def test_best_for_the_cpu_is_the_cpu_path():
    assert best_for("cpu") is CPU
    assert {field.name for field in dataclasses.fields(CPU)} == {field.name for field in dataclasses.fields(REFERENCE)}


def test_another_processor_to_build_for_has_a_library_of_its_own(monkeypatch):
    cc = library.compiler()
    if cc is None:
        pytest.skip("no C compiler here")
    monkeypatch.delenv(library.ARCHITECTURE, raising=False)
    here = library.identity(cc)
    monkeypatch.setenv(library.ARCHITECTURE, "native")
    assert library.identity(cc) == here
    monkeypatch.setenv(library.ARCHITECTURE, "x86-64-v3")
    assert library.identity(cc) != here


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 processors")
@pytest.mark.parametrize(("architecture", "built_for"), [("x86-64", "SSE2"), ("nonsense", None)])
def test_the_kernels_say_what_they_were_built_for(architecture, built_for):
    """In a process of its own, since a library is loaded once."""
    code = "from kernels.cpu import library; print(library.instruction_set(), library.why_missing())"
    env = {**os.environ, library.ARCHITECTURE: architecture, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    if library.compiler() is None:
        pytest.skip("no C compiler here")
    found, _, missing = done.stdout.strip().partition(" ")
    assert found == str(built_for)
    assert (architecture in missing) == (built_for is None)
