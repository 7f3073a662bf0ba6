"""Fused batch norm and swish in Triton's interpreter against the float64 reference.

Collected by `test_interpreted.py` in a process of its own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import numpy as np
import pytest
import torch
import triton
from packaging.version import Version

from kernels.backends import fused
from kernels.gpu import norm_plan, operators
from kernels.reference.backend import REFERENCE

FUSED = fused("cpu")
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last

# |error| / (1 + |reference|): rounding of float32 sums of about a thousand terms, and of 16-bit inputs and outputs.
VALUE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
FAR = 2e-4  # mean 1000, spread 1: float32 rounds the mean by 3e-5

pytestmark = pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason="before 3.7, Triton's interpreter takes no tensor as a loop's bound with NumPy 2.4 or newer",
)

every_format = pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST], ids=["nchw", "nhwc"])


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


def affine(channels: int) -> list[torch.Tensor]:
    """Running mean, running variance, weight and bias."""
    mean, var, weight, bias = (random(channels, seed=seed) for seed in (11, 12, 13, 14))
    return [mean, var.square() + 0.5, weight, bias]


def step(ops, x, upstream, **request):
    """Output, running statistics, and the gradients of x, weight and bias; float64 computes in float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var, weight, bias = (tensor.to(dtype) for tensor in affine(x.shape[1]))
    leaves = [x.detach().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    y = ops.norm_swish(leaves[0], mean, var, *leaves[1:], **request)
    gradients = torch.autograd.grad(y, leaves, upstream.to(y.dtype))
    return [y, mean, var], gradients


def compare(x, upstream=None, **request):
    """Largest errors of values and of gradients against the float64 reference."""
    upstream = random(*x.shape, seed=3).to(x.dtype) if upstream is None else upstream
    ours, theirs = step(FUSED, x, upstream, **request), step(REFERENCE, x.double(), upstream.double(), **request)
    assert all(torch.isfinite(value).all() for part in ours for value in part)
    return [
        max(error(a, b) for a, b in zip(mine, other, strict=True)) for mine, other in zip(ours, theirs, strict=True)
    ]


SHAPES = {
    "odd": (3, 5, 3, 7),
    "one channel": (5, 1, 3, 3),
    "colour": (2, 3, 5, 7),
    "latents": (2, 20, 4, 4),
    "one image": (1, 6, 4, 4),
    "one pixel": (7, 5, 1, 1),
    "full programs": (2, 64, 16, 8),
    "96 channels": (2, 96, 4, 2),
}
CASES = {
    "training": {"training": True},
    "repeated": {"training": True, "repeats": 4, "momentum": 0.3},
    "no activation": {"training": True, "activation": "none", "eps": 1e-3},
    "evaluation": {"training": False},
}


LAYOUTS = [
    pytest.param(shape, memory_format, id=f"{name}, {order}")
    for name, shape in SHAPES.items()
    for order, memory_format in (("nchw", CONTIGUOUS), ("nhwc", CHANNELS_LAST))
    if shape[1] < 16 or memory_format == CHANNELS_LAST  # channels-first, every channel is alike
]


@pytest.mark.parametrize(("shape", "memory_format"), LAYOUTS)
def test_training(shape, memory_format):
    x = (2 * random(*shape, seed=0) + 1).contiguous(memory_format=memory_format)
    values, gradients = compare(x, training=True, repeats=4)
    assert values < VALUE[torch.float32]
    assert gradients < GRADIENT[torch.float32]


@every_format
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_case(case, memory_format):
    x = random(2, 6, 5, 3, seed=0).contiguous(memory_format=memory_format)
    values, gradients = compare(x, **case)
    assert values < VALUE[torch.float32]
    assert gradients < GRADIENT[torch.float32]


@every_format
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_types(dtype, training, memory_format):
    x = random(2, 8, 4, 4, seed=0).to(dtype).contiguous(memory_format=memory_format)
    values, gradients = compare(x, training=training)
    assert values < VALUE[dtype]
    assert gradients < GRADIENT[dtype]
    assert FUSED.norm_swish(x, *affine(8), training=training).dtype == dtype


def views(case: str, x: torch.Tensor) -> torch.Tensor:
    """A view with the values of x (B, C, h, w) in some memory layout."""
    last = x.contiguous(memory_format=CHANNELS_LAST)
    return {
        "channels of channels-last": lambda: torch.cat((last, last), 1)[:, : x.shape[1]],
        "odd channels of channels-last": lambda: torch.cat((last[:, :1], last), 1)[:, 1:],
        "channels": lambda: torch.cat((x, x), 1)[:, x.shape[1] :],
        "images": lambda: torch.cat((last, last))[x.shape[0] :],
        "every second image": lambda: torch.stack((x, x), 1).flatten(0, 1)[::2],
        "cropped": lambda: torch.nn.functional.pad(last, (1, 1, 1, 1))[..., 1:-1, 1:-1],
        "transposed": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
        "every second channel": lambda: torch.stack((x, x), 2).flatten(1, 2)[:, ::2],
    }[case]()


VIEWS = {
    "channels of channels-last": "channels_last",
    "odd channels of channels-last": "channels_last",
    "channels": "channels_first",
    "images": "channels_last",
    "every second image": "channels_first",
    "cropped": None,
    "transposed": None,
    "every second channel": "channels_first",
}


@pytest.mark.parametrize(("case", "layout"), VIEWS.items(), ids=VIEWS.keys())
def test_views(case, layout):
    x = views(case, random(3, 8, 4, 6, seed=0))
    assert torch.equal(x, random(3, 8, 4, 6, seed=0))
    assert norm_plan.layout_of(x) == layout
    values, gradients = compare(x, training=True)
    assert values < VALUE[torch.float32]
    assert gradients < GRADIENT[torch.float32]


@every_format
def test_gradients_in_another_layout(memory_format):
    x = random(2, 8, 4, 4, seed=0).contiguous(memory_format=memory_format)
    other = CONTIGUOUS if memory_format == CHANNELS_LAST else CHANNELS_LAST
    for upstream in (random(*x.shape, seed=3).contiguous(memory_format=other), torch.ones(()).expand(x.shape)):
        assert compare(x, upstream, training=True)[1] < GRADIENT[torch.float32]


@every_format
@pytest.mark.parametrize("shape", [(32, 4, 16, 8), (19, 5, 9, 15)], ids=["full", "masked"])
def test_many_programs_of_many_steps(monkeypatch, memory_format, shape):
    monkeypatch.setattr(norm_plan, "THREADS", 32)
    monkeypatch.setattr(norm_plan, "PROGRAMS", 32)
    monkeypatch.setattr(norm_plan, "MAX_PARTS", 2)
    x = random(*shape, seed=0).contiguous(memory_format=memory_format)
    plan = norm_plan.choose_plan((x,), norm_plan.layout_of(x), norm_plan.MAX_PARTS)
    assert plan.steps > 1
    assert plan.grid[1] > 1
    assert plan.sweep.full == (shape[1] == 4)
    values, gradients = compare(x, training=True)
    assert values < VALUE[torch.float32]
    assert gradients < 2 * GRADIENT[torch.float32]  # sums of a thousand and more


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # where nothing is loaded, x is 0
@every_format
def test_a_mean_far_from_zero_keeps_the_variance(memory_format):
    x = (random(4, 5, 8, 8, seed=0) + 1000).contiguous(memory_format=memory_format)
    assert compare(x, training=True)[0] < FAR


def test_a_constant_channel_has_no_variance():
    x = random(2, 3, 4, 4, seed=0)
    x[:, 1] = 0.1
    y = FUSED.norm_swish(x, *affine(3), training=True, activation="none")
    torch.testing.assert_close(y[:, 1], affine(3)[3][1].expand(2, 4, 4), rtol=0, atol=1e-4)  # 1 / sqrt(eps) = 316


@every_format
def test_same_input_same_bits(memory_format):
    x, upstream = (random(3, 6, 5, 5, seed=seed).contiguous(memory_format=memory_format) for seed in (0, 1))
    first, again = step(FUSED, x, upstream, training=True), step(FUSED, x, upstream, training=True)
    assert all(
        torch.equal(a, b) for mine, other in zip(first, again, strict=True) for a, b in zip(mine, other, strict=True)
    )


@every_format
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(training, memory_format):
    x = torch.zeros(0, 3, 2, 2).contiguous(memory_format=memory_format)
    ours, theirs = (step(ops, x, torch.zeros_like(x), training=training) for ops in (FUSED, REFERENCE))
    for mine, other in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@every_format
def test_a_bad_value_spoils_its_channel_alone(memory_format):
    x = random(2, 4, 3, 3, seed=0).contiguous(memory_format=memory_format)
    x[1, 2, 0, 0] = float("nan")
    y = FUSED.norm_swish(x, *affine(4), training=True)
    assert y.isnan().flatten(2).any(2).any(0).tolist() == [False, False, True, False]


@every_format
def test_nothing_is_written_past_the_end(monkeypatch, memory_format):
    x, guard = random(3, 5, 3, 3, seed=0).contiguous(memory_format=memory_format), 64
    memory = torch.full((x.numel() + 2 * guard,), 7.0)
    inner = memory[guard:-guard].as_strided(x.shape, x.stride())
    monkeypatch.setattr(norm_plan, "output_like", lambda _: inner)
    mean, var, weight, bias = affine(5)
    norm_plan.norm_forward(x, (mean, var, weight, bias), 1e-5, norm_plan.Norm(training=False, swish=True))
    assert torch.equal(memory[:guard], torch.full((guard,), 7.0))
    assert torch.equal(memory[-guard:], torch.full((guard,), 7.0))
    expected = REFERENCE.norm_swish(x, mean, var, weight, bias, training=False)
    torch.testing.assert_close(inner, expected)


def test_offsets_past_two_to_the_31():
    far = torch.empty(0, dtype=torch.bfloat16).untyped_storage()
    far.resize_(2 * (2**31 + 64))
    x = torch.empty(0, dtype=torch.bfloat16).set_(far, 0, (2, 16, 1, 1), (2**31, 1, 1, 1))
    near = random(2, 16, 1, 1, seed=0).bfloat16()
    x.copy_(near)
    assert norm_plan.layout_of(x) == "channels_last"
    upstream = torch.ones(2, 16, 1, 1)
    ours, theirs = (step(FUSED, given, upstream, training=True) for given in (x, near))
    assert torch.equal(ours[0][0], theirs[0][0])
    assert torch.equal(ours[1][0], theirs[1][0])


def saved_by(ops, x, **request) -> dict[int, torch.Tensor]:
    """The tensors that autograd keeps of a training step, by storage."""
    saved = []
    mean, var, weight, bias = affine(x.shape[1])
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        ops.norm_swish(x, mean, var, weight.requires_grad_(), bias, training=True, **request)
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in saved}


def test_two_numbers_a_channel_are_saved_beyond_the_input():
    x = random(4, 8, 8, 8, seed=0).requires_grad_()
    ours, eager = saved_by(FUSED, x), saved_by(REFERENCE, x)
    maps = [tensor for tensor in ours.values() if tensor.ndim == 4]
    assert [tensor.data_ptr() for tensor in maps] == [x.data_ptr()]
    assert sorted(tensor.numel() for tensor in ours.values() if tensor.ndim == 1) == [8] * 4  # mean, std; weight, bias
    assert len([tensor for tensor in eager.values() if tensor.ndim == 4]) == 2  # x, and what goes into swish


def test_second_order_gradients_are_refused():
    x = random(2, 4, 3, 3, seed=0).requires_grad_()
    y = FUSED.norm_swish(x, *affine(4), training=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second-order gradients"):
        gradient.sum().backward()


def test_float64_takes_the_reference():
    x, given = random(2, 4, 3, 3, seed=0).double(), [tensor.double() for tensor in affine(4)]
    ours, theirs = (ops.norm_swish(x, *given, training=False) for ops in (FUSED, REFERENCE))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ops", [FUSED, REFERENCE], ids=["fused", "reference"])
def test_bad_arguments_are_refused(ops):
    with pytest.raises(ValueError, match="more than one value per channel"):
        ops.norm_swish(torch.zeros(1, 3, 1, 1), *affine(3), training=True)
    with pytest.raises(ValueError, match=r"\(B, C, h, w\)"):
        ops.norm_swish(torch.zeros(4, 3), *affine(3), training=True)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        ops.norm_swish(torch.zeros(2, 4, 2, 2), *affine(3), training=True)
    with pytest.raises(ValueError, match="swish"):
        ops.norm_swish(torch.zeros(2, 3, 2, 2), *affine(3), training=True, activation="relu")


@pytest.mark.parametrize("training", [True, False])
def test_weights_that_are_not_contiguous(training):
    x, (mean, var, *_) = random(2, 6, 3, 3, seed=0), affine(6)
    weight, bias = torch.tensor(2.0).expand(6), random(12, seed=1)[::2]
    ours = FUSED.norm_swish(x, mean, var, weight, bias, training=training)
    expected = FUSED.norm_swish(x, *affine(6)[:2], weight.contiguous(), bias.contiguous(), training=training)
    assert torch.equal(ours, expected)
    with pytest.raises(ValueError, match="contiguous"):
        FUSED.norm_swish(x, random(12, seed=1)[::2], var, weight, bias, training=True)


def test_under_autocast():
    x = random(2, 8, 4, 4, seed=0)
    expected = FUSED.norm_swish(x, *affine(8), training=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = FUSED.norm_swish(x, *affine(8), training=True)
    assert torch.equal(y, expected)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def test_registration():
    x = random(2, 4, 3, 3, seed=0).contiguous(memory_format=CHANNELS_LAST)
    mean, var, weight, bias = affine(4)
    torch.library.opcheck(operators.norm_statistics, (x, mean, var, 0.1, 1e-5, 4), test_utils=CHECKS)
    given = (x.requires_grad_(), mean, var, weight.requires_grad_(), bias.requires_grad_(), 1e-5, False, True)
    torch.library.opcheck(operators.norm, given, test_utils=CHECKS)


def test_compiled_into_one_graph():
    def loss(x, mean, var, weight, bias):
        return FUSED.norm_swish(x, mean, var, weight, bias, training=True, repeats=4).square().sum()

    compiled, results = torch.compile(loss, backend="aot_eager", fullgraph=True), []
    for run in (loss, compiled):
        x = random(2, 8, 4, 4, seed=0).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
        mean, var, weight, bias = affine(8)
        gradients = torch.autograd.grad(run(x, mean, var, weight.requires_grad_(), bias), (x, weight))
        results.append([mean, var, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
