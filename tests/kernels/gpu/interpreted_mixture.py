"""The fused logistic mixture in Triton's interpreter against the float64 reference.

Collected by `test_interpreted.py` in a process of its own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import itertools

import pytest
import torch

from kernels.backends import fused
from kernels.gpu import mixture_plan, operators
from kernels.reference.backend import REFERENCE

FUSED = fused("cpu")
UPSTREAM = torch.tensor([1.0, -0.7])

# |error| / (1 + |reference|): float32 arithmetic, where (x - mean) / scale at scale exp(-7) multiplies the rounding of
# x - mean by a thousand; in 16-bit types the rounding of the gradient.
VALUE = 2e-6
GRADIENT = {torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Fill what `torch.empty` gives with NaN, so that a value a kernel forgets to write fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(colours, components, bits, height=4, width=5, dtype=torch.float32):
    """Parameters and levels, both edges among them."""
    generator = torch.Generator().manual_seed(colours + components + bits)
    parameters = 1.5 * torch.randn(2, (10 if colours == 3 else 3) * components, height, width, generator=generator)
    parameters[:, components:].view(2, colours, -1, components, height, width)[:, :, 1] -= 2
    levels = torch.randint(0, 2**bits, (2, colours, height, width), generator=generator)
    levels[:, :, 0, 0], levels[:, :, 0, 1] = 0, 2**bits - 1
    levels[:, :, 0, 2] = 2**bits - 2
    return parameters.to(dtype), levels.double() / (2**bits - 1)


def error(value, expected):
    assert value.shape == expected.shape
    return float(((value.detach().double() - expected).abs() / (1 + expected.abs())).max())


def step(ops, parameters, x, bits):
    leaf = parameters.detach().requires_grad_()
    log_prob = ops.logistic_mixture_log_prob(leaf, x, bits=bits)
    (gradient,) = torch.autograd.grad((log_prob * UPSTREAM.to(log_prob.dtype)).sum(), leaf)
    return log_prob.detach(), gradient


MANY = [pytest.param(colours, 32, 8, marks=pytest.mark.slow) for colours in (1, 3)]


@pytest.mark.parametrize(
    ("colours", "components", "bits"), [*itertools.product((1, 3), (1, 3), (1, 8)), (3, 2, 5), (1, 10, 8), *MANY]
)
def test_values_and_gradients(colours, components, bits):
    parameters, x = problem(colours, components, bits)
    value, gradient = step(FUSED, parameters, x.float(), bits)
    expected, reference = step(REFERENCE, parameters.double(), x, bits)
    assert error(value, expected) < VALUE
    assert error(gradient, reference) < GRADIENT[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("colours", [1, 3])
def test_sixteen_bit_types(dtype, colours):
    parameters, x = problem(colours, 3, 8, dtype=dtype)
    value, gradient = step(FUSED, parameters, x.float(), 8)
    expected, reference = step(REFERENCE, parameters.double(), x, 8)
    assert error(value, expected) < VALUE
    assert error(gradient, reference) < GRADIENT[dtype]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (16, 16), (32, 33)])
def test_image_sizes(height, width):
    parameters, x = problem(3, 2, 8, height, max(width, 3))
    value, gradient = step(FUSED, parameters, x.float(), 8)
    expected, reference = step(REFERENCE, parameters.double(), x, 8)
    assert error(value, expected) < VALUE
    assert error(gradient, reference) < GRADIENT[torch.float32]


def test_any_strides():
    parameters, x = problem(3, 3, 8, 8, 8)
    expected, reference = step(FUSED, parameters, x.float(), 8)
    padded = torch.nn.functional.pad(parameters, (2, 2, 2, 2))[..., 2:-2, 2:-2]
    for view in (padded, parameters.contiguous(memory_format=torch.channels_last)):
        value, gradient = step(FUSED, view, x.float().contiguous(memory_format=torch.channels_last), 8)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, reference)


@pytest.mark.parametrize(("colours", "bits"), [(1, 4), (3, 1), pytest.param(1, 8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("log_scale", [-7.0, 0.0, 5.0])
def test_probabilities_sum_to_one(colours, bits, log_scale):
    levels = torch.tensor(list(itertools.product(range(2**bits), repeat=colours)), dtype=torch.float32)
    x = levels.view(-1, colours, 1, 1) / (2**bits - 1)
    parameters, _ = problem(colours, 2, bits, 1, 3)
    parameters[:, 2:].view(2, colours, -1, 2, 1, 3)[:, :, 1] = log_scale
    given = parameters[:1, :, :, :1].expand(len(x), -1, 1, 1)
    assert float(FUSED.logistic_mixture_log_prob(given, x, bits=bits).double().exp().sum()) == pytest.approx(
        1, abs=2e-5
    )


def test_wide_scales_keep_the_bin_width():
    parameters = torch.tensor([0.0, 0.0, 12.0]).view(1, 3, 1, 1)
    x = torch.full((1, 1, 1, 1), 100 / 255)
    ours = FUSED.logistic_mixture_log_prob(parameters, x, bits=8)
    theirs = REFERENCE.logistic_mixture_log_prob(parameters.double(), x.double(), bits=8)
    assert error(ours, theirs) < VALUE


def test_empty_batch():
    parameters = torch.zeros(0, 30, 4, 4, requires_grad=True)
    log_prob = FUSED.logistic_mixture_log_prob(parameters, torch.zeros(0, 3, 4, 4), bits=8)
    (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert log_prob.shape == (0,)
    assert gradient.shape == parameters.shape


def test_bad_parameters_spoil_their_image_alone():
    parameters, x = problem(3, 2, 8)
    parameters[0, 5, 1, 1] = float("nan")
    assert FUSED.logistic_mixture_log_prob(parameters, x.float(), bits=8).isnan().tolist() == [True, False]


def test_two_numbers_a_pixel_are_saved():
    parameters, x = problem(3, 10, 8, 8, 8)
    leaf, saved = parameters.requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        FUSED.logistic_mixture_log_prob(leaf, x.float(), bits=8)
    beyond_inputs = [t for t in saved if t.shape not in (leaf.shape, x.shape)]
    assert [tuple(t.shape) for t in beyond_inputs] == [(2, 2, 64)]


def test_original_edges_take_the_reference():
    parameters, x = problem(3, 2, 8)
    ours, theirs = (
        ops.logistic_mixture_log_prob(parameters, x.float(), bits=8, published_edge=0.99) for ops in (FUSED, REFERENCE)
    )
    assert torch.equal(ours, theirs)


def test_second_order_gradients_are_refused():
    parameters, x = problem(1, 2, 8)
    leaf = parameters.requires_grad_()
    log_prob = FUSED.logistic_mixture_log_prob(leaf, x.float(), bits=8).sum()
    (gradient,) = torch.autograd.grad(log_prob, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second-order gradients"):
        gradient.sum().backward()


def test_registration():
    parameters, x = problem(1, 2, 8)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operators.mixture, (parameters.requires_grad_(), x.float(), 8), test_utils=checks)


def test_pixels_of_a_cropped_image_are_not_called_contiguous():
    parameters, x = problem(1, 2, 8, 8, 8)
    assert mixture_plan.choose_tile(parameters, x, 8, None).contiguous
    assert not mixture_plan.choose_tile(parameters[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1], 8, None).contiguous
