"""The fused operations on a GPU: the approximate instructions, graphs and devices that the interpreter cannot show."""

import pytest
import torch

from kernels.backends import best_for
from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED
from kernels.reference.backend import REFERENCE
from kernels.reference.philox import normals

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NOISE = 1e-5  # sin, cos and log to 2^-20.5, times radii up to 6.8
VALUE, GRADIENT = 2e-5, 2e-4
DEVICE = torch.device("cuda")


def error(value, expected):
    value, expected = value.detach().double(), expected.detach().double()
    return float(((value - expected).abs() / (1 + expected.abs())).max())


def seed_tensor(value: int) -> torch.Tensor:
    return torch.tensor(value, device=DEVICE)


def test_noise_is_that_of_the_reference():
    zero, seed = torch.zeros(64, 4096, device=DEVICE), seed_tensor(2**40 + 5)
    drawn = best_for(DEVICE).gaussian_sample(zero, zero, seed=seed, group=3)
    assert float((drawn - normals(seed, 3, (64, 4096), dtype=torch.float64)).abs().max()) < NOISE


@pytest.mark.parametrize("form", [PLAIN, SOFT_CLAMPED, RESIDUAL], ids=["plain", "soft clamped", "residual"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_values_and_gradients(form, memory_format):
    torch.manual_seed(0)
    tensors = [torch.randn(8, 40, 16, 16, device=DEVICE).contiguous(memory_format=memory_format) for _ in range(2)]
    upstream, results = torch.randn(8, 20, 16, 16, device=DEVICE), []
    for ops, dtype in ((best_for(DEVICE), torch.float32), (REFERENCE, torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        pair = [half for leaf in leaves for half in leaf.chunk(2, 1)]
        draw = ops.gaussian_sample_kl(*pair, seed=seed_tensor(7), group=1, form=form)
        loss = (draw.z * upstream.to(dtype)).sum() + draw.kl.sum()
        results.append(([draw.z, draw.kl], torch.autograd.grad(loss, leaves)))
    (z, kl), (exact, exact_kl) = results[0][0], results[1][0]
    pair = [half for tensor in tensors for half in tensor.double().chunk(2, 1)]
    middle, one_above = (
        REFERENCE.gaussian_sample_kl(
            *pair, seed=seed_tensor(7), group=1, form=form, noise=torch.full_like(exact, noise)
        ).z
        for noise in (0, 1)
    )
    scale = one_above - middle
    assert bool(((z - exact).abs() < NOISE * scale + VALUE * (1 + exact.abs())).all())  # the noise's error, times scale
    assert error(kl, exact_kl) < VALUE
    assert max(error(a, b) for a, b in zip(results[0][1], results[1][1], strict=True)) < GRADIENT


def test_mixture_values_and_gradients():
    parameters = torch.randn(4, 100, 32, 32, device=DEVICE)
    levels, results = torch.randint(0, 256, (4, 3, 32, 32), device=DEVICE), []
    for ops, dtype in ((best_for(DEVICE), torch.float32), (REFERENCE, torch.float64)):
        leaf = parameters.to(dtype).requires_grad_()
        log_prob = ops.logistic_mixture_log_prob(leaf, levels.to(dtype) / 255, bits=8)
        results.append((log_prob, torch.autograd.grad(log_prob.sum(), leaf)[0]))
    assert error(results[0][0], results[1][0]) < VALUE
    assert error(results[0][1], results[1][1]) < GRADIENT


def norm_step(ops, x, upstream, dtype, **request):
    """Output, running statistics, and the gradients of x, weight and bias."""
    channels = x.shape[1]
    mean, var, weight, bias = (torch.linspace(0.5, 1.5, channels, device=DEVICE, dtype=dtype) for _ in range(4))
    leaves = [x.to(dtype).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    y = ops.norm_swish(leaves[0], mean, var, *leaves[1:], **request)
    return [y, mean, var], torch.autograd.grad(y, leaves, upstream.to(dtype))


@pytest.mark.parametrize("request_", [{"training": True, "repeats": 4}, {"training": False}], ids=["train", "evaluate"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(64, 192, 16, 16), (3, 20, 5, 7), (16, 32, 64, 64)], ids=str)
def test_norm_swish(shape, memory_format, request_):
    x, upstream = (torch.randn(shape, device=DEVICE).contiguous(memory_format=memory_format) for _ in range(2))
    ours = norm_step(best_for(DEVICE), 2 * x + 1, upstream, torch.float32, **request_)
    theirs = norm_step(REFERENCE, 2 * x + 1, upstream, torch.float64, **request_)
    again = norm_step(best_for(DEVICE), 2 * x + 1, upstream, torch.float32, **request_)
    assert max(error(a, b) for a, b in zip(ours[0], theirs[0], strict=True)) < VALUE
    assert max(error(a, b) for a, b in zip(ours[1], theirs[1], strict=True)) < GRADIENT
    assert all(
        torch.equal(a, b) for mine, other in zip(ours, again, strict=True) for a, b in zip(mine, other, strict=True)
    )


def test_a_captured_graph_draws_fresh_noise():
    mean, seed, ops = torch.zeros(8, 256, device=DEVICE), seed_tensor(0), best_for(DEVICE)
    ops.gaussian_sample_kl(mean, mean, None, None, seed=seed, group=0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = ops.gaussian_sample_kl(mean, mean, None, None, seed=seed, group=0).z
        seed.add_(1)
    draws = []
    for _ in range(2):
        graph.replay()
        draws.append(z.clone())
    assert not torch.any(draws[0] == draws[1])


def test_compiled_step_equals_the_eager_one():
    ops, seed = best_for(DEVICE), seed_tensor(3)
    leaves = [torch.randn(8, 40, 8, 8, device=DEVICE, requires_grad=True) for _ in range(2)]

    def loss(*given):
        draw = ops.gaussian_sample_kl(*given[0].chunk(2, 1), *given[1].chunk(2, 1), seed=seed, group=0, form=RESIDUAL)
        return draw.z.square().sum() + draw.kl.sum()

    eager = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)
