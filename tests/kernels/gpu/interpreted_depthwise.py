"""Depthwise convolutions in Triton's interpreter against the float64 reference.

Collected by `test_interpreted.py` in a process of its own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import numpy as np
import pytest
import torch
import triton
from packaging.version import Version

from kernels.backends import fused
from kernels.cell_form import LayerForm
from kernels.gpu.depthwise import operators, plan
from kernels.reference.backend import REFERENCE

FUSED = fused("cpu")
CHANNELS_LAST = torch.channels_last

# |error| / (1 + |reference|): float32 sums of 9 to 49 products, of a few hundred in a weight's gradient; 16-bit maps.
VALUE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

pytestmark = pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason="before 3.7, Triton's interpreter takes no tensor as a loop's bound with NumPy 2.4 or newer",
)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Fill what `torch.empty` gives with NaN, so that a value a kernel forgets to write fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(value, expected):
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach().double()
    found = float(((value - expected).abs() / (1 + expected.abs())).max())
    return found if found == found else float("inf")


def step(ops, x, weight, upstream, form):
    """The layer's output, and the gradients of x and weight."""
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    y = ops.network.convolution(*leaves, None, form)
    return [y], torch.autograd.grad(y, leaves, upstream.to(y.dtype))


def form_of(channels, kernel, **more):
    return LayerForm(kernel=kernel, groups=channels, **more)


def compare(x, kernel, **more):
    """Largest errors of values and gradients."""
    channels = x.shape[1]
    weight, form = random(channels, 1, kernel, kernel, seed=1) / kernel, form_of(channels, kernel, **more)
    size = 2 if form.repeat else 1
    upstream = random(x.shape[0], channels, size * x.shape[2], size * x.shape[3], seed=2).to(x.dtype)
    ours = step(FUSED, x, weight, upstream, form)
    theirs = step(REFERENCE, x.double(), weight.double(), upstream.double(), form)
    assert ours[0][0].dtype == x.dtype
    return [
        max(error(a, b) for a, b in zip(mine, other, strict=True)) for mine, other in zip(ours, theirs, strict=True)
    ]


def planned(monkeypatch):
    """The plans that are made from now on."""
    made, real = [], plan.plan_of
    monkeypatch.setattr(plan, "plan_of", lambda *given: made.append(real(*given)) or made[-1])
    return made


SHAPES = {
    "full": ((1, 64, 8, 4), 5),
    "several strips": ((2, 6, 3, 9), 3),
    "several blocks of channels": ((1, 70, 4, 3), 3),
    "lower than the taps": ((2, 4, 1, 2), 5),
    "one channel": ((2, 1, 6, 7), 3),
    "one pixel": ((2, 3, 1, 1), 5),
    "seven taps": ((1, 3, 5, 5), 7),
}


@pytest.mark.parametrize(("shape", "kernel"), SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(monkeypatch, shape, kernel):
    made = planned(monkeypatch)
    values, gradients = compare(random(*shape, seed=0).contiguous(memory_format=CHANNELS_LAST), kernel)
    assert len(made) == 3
    assert values < VALUE[torch.float32]
    assert gradients < GRADIENT[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_maps(dtype):
    values, gradients = compare(random(2, 8, 5, 3, seed=0).to(dtype).contiguous(memory_format=CHANNELS_LAST), 3)
    assert values < VALUE[dtype]
    assert gradients < GRADIENT[dtype]


def test_other_layouts_and_repeated_pixels():
    x = random(2, 12, 4, 6, seed=0)
    last = x.contiguous(memory_format=CHANNELS_LAST)
    for given in (x, last[:, ::2]):
        values, gradients = compare(given, 3)
        assert values < VALUE[torch.float32]
        assert gradients < GRADIENT[torch.float32]
    assert max(compare(last, 3, repeat=True)) < GRADIENT[torch.float32]


def test_programs_of_several_strips(monkeypatch):
    monkeypatch.setattr(plan, "PROGRAMS", 3)
    monkeypatch.setattr(plan, "PARTS", 2)
    made = planned(monkeypatch)
    values, gradients = compare(random(3, 5, 3, 11, seed=0).contiguous(memory_format=CHANNELS_LAST), 3)
    assert [(one.steps, one.programs) for one in made] == [(3, 3), (3, 3), (5, 2)]
    assert values < VALUE[torch.float32]
    assert gradients < GRADIENT[torch.float32]


@pytest.mark.parametrize(
    ("form", "shape", "bias"),
    [
        (LayerForm(kernel=5, groups=2), (4, 2, 5, 5), False),
        (LayerForm(kernel=3, groups=4, stride=2), (4, 1, 3, 3), False),
        (LayerForm(kernel=3, groups=4, dilation=2), (4, 1, 3, 3), False),
        (LayerForm(kernel=3, groups=4), (8, 1, 3, 3), False),
        (LayerForm(kernel=3, groups=4), (4, 1, 3, 3), True),
    ],
    ids=["groups of two", "stride", "dilation", "two outputs a channel", "bias"],
)
def test_other_layers_are_those_of_pytorch(monkeypatch, form, shape, bias):
    made = planned(monkeypatch)
    x, weight = random(2, 4, 6, 6, seed=0), random(*shape, seed=1)
    bias = random(shape[0], seed=2) if bias else None
    ours, theirs = (ops.network.convolution(x, weight, bias, form) for ops in (FUSED, REFERENCE))
    assert torch.equal(ours, theirs)
    assert not made


def test_float64_and_empty_batches():
    form, weight = form_of(3, 3), random(3, 1, 3, 3, seed=1)
    x = random(2, 3, 4, 4, seed=0).double()
    ours, theirs = (ops.network.convolution(x, weight.double(), None, form) for ops in (FUSED, REFERENCE))
    assert torch.equal(ours, theirs)
    (y,), (grad_x, grad_weight) = step(FUSED, x[:0].float(), weight, x[:0].float(), form)
    assert y.shape == grad_x.shape == (0, 3, 4, 4)
    assert torch.equal(grad_weight, torch.zeros(3, 1, 3, 3))


def test_same_input_same_bits():
    x = random(2, 6, 3, 5, seed=0).contiguous(memory_format=CHANNELS_LAST)
    weight, form = random(6, 1, 3, 3, seed=1), form_of(6, 3)
    first, again = (step(FUSED, x, weight, x, form) for _ in range(2))
    assert all(
        torch.equal(a, b) for mine, other in zip(first, again, strict=True) for a, b in zip(mine, other, strict=True)
    )


def test_more_strips_than_numbers_are_refused():
    with pytest.raises(ValueError, match="fewer pixels"):
        plan.plan_of(None, torch.empty(2**27, 1, 1, 128, device="meta"), 3, False, 2048)


def test_under_autocast():
    x, weight = random(2, 4, 5, 5, seed=0), random(4, 1, 3, 3, seed=1)
    expected = FUSED.network.convolution(x.bfloat16(), weight, None, form_of(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = FUSED.network.convolution(x, weight, None, form_of(4, 3))
    assert torch.equal(y, expected)


def test_second_order_gradients_are_refused():
    x = random(2, 4, 3, 3, seed=0).requires_grad_()
    y = FUSED.network.convolution(x, random(4, 1, 3, 3, seed=1), None, form_of(4, 3))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second-order gradients"):
        gradient.sum().backward()


def test_only_what_is_needed_is_computed(monkeypatch):
    made = planned(monkeypatch)
    x, weight = random(2, 4, 3, 3, seed=0), random(4, 1, 3, 3, seed=1).requires_grad_()
    FUSED.network.convolution(x, weight, None, form_of(4, 3)).sum().backward()
    assert len(made) == 2


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def test_registration():
    x = random(2, 4, 3, 3, seed=0).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    weight = random(4, 1, 3, 3, seed=1).requires_grad_()
    torch.library.opcheck(operators.depthwise, (x, weight), test_utils=CHECKS)


def test_compiled_into_one_graph():
    def loss(x, weight):
        return FUSED.network.convolution(x, weight, None, form_of(8, 3, activation="swish")).square().sum()

    compiled, results = torch.compile(loss, backend="aot_eager", fullgraph=True), []
    for run in (loss, compiled):
        x = random(2, 8, 4, 4, seed=0).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
        weight = random(8, 1, 3, 3, seed=1).requires_grad_()
        results.append(torch.autograd.grad(run(x, weight), (x, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
