"""Pixels in C: the values and gradients of plain PyTorch, and PyTorch itself where there is no compiler."""

import pytest
import torch

from kernels.cpu import library, pixels
from kernels.reference import pixels as reference

VALUE, GRADIENT = 2e-6, 2e-7  # relative to sums over 784 pixels in float32; absolute, of values below 1
PRODUCT = 1e-5  # sums of up to 100 float32 products of normals

needs_compiler = pytest.mark.skipif(library.library() is None, reason="no C kernels here")


def digits(images=100, size=784, lit=0.13, seed=0):
    """Binary images of which a share of the pixels is lit."""
    return (torch.rand(images, size, generator=torch.Generator().manual_seed(seed)) < lit).float()


def normals(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["C", "PyTorch"])
def backend(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(library, "library", lambda: None)
    elif library.library() is None:
        pytest.skip("no C kernels here")
    return request.param


@pytest.mark.parametrize("count", [0, 1, 623, 624, 625, 78_400])
@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 9])
def test_draws_are_those_of_torch(backend, seed, count):
    p = torch.rand(count, generator=torch.Generator().manual_seed(1))
    expected = torch.bernoulli(p, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(pixels.uniform_below(p, seed), expected)


def test_draws_keep_to_certainties(backend):
    p = torch.tensor([0.0, 1.0]).repeat(10_000)
    assert torch.equal(pixels.uniform_below(p, 3), p)


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 1, 3, 5), (2, 3, 4, 4)])
def test_bernoulli_is_the_reference_in_float64(backend, shape):
    logits = (6 * normals(*shape)).requires_grad_()
    x = digits(shape[0], logits[0].numel(), 0.5).view(shape)
    upstream = normals(shape[0], seed=2)
    value = pixels.bernoulli_log_prob(logits, x)
    value.backward(upstream)
    wide = logits.detach().double().requires_grad_()
    expected = reference.bernoulli_log_prob(wide, x.double())
    expected.backward(upstream.double())
    torch.testing.assert_close(value.double(), expected, rtol=VALUE, atol=0)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=GRADIENT, atol=GRADIENT * 10)


def test_extreme_logits_stay_finite(backend):
    logits = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]])
    for x in (torch.zeros_like(logits), torch.ones_like(logits)):
        expected = reference.bernoulli_log_prob(logits.double(), x.double()).float()
        torch.testing.assert_close(pixels.bernoulli_log_prob(logits, x), expected, rtol=VALUE, atol=0)


def test_logits_that_are_not_numbers_show(backend):
    assert pixels.bernoulli_log_prob(torch.tensor([[0.0, torch.nan]]), torch.zeros(1, 2)).isnan().all()


@pytest.mark.parametrize("pixel", [0.5, -1.0, torch.nan])
@pytest.mark.parametrize("at", [0, 15, 16, 20])
def test_grey_pixels_are_refused(backend, pixel, at):
    x = torch.zeros(2, 21)
    x[1, at] = pixel
    with pytest.raises(ValueError, match="binarise"):
        pixels.bernoulli_log_prob(torch.zeros(2, 21), x)


@pytest.mark.parametrize("lit", [0.0, 0.13, 0.2, 1.0])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("width", [1, 7, 512])
def test_products_with_dark_images_are_matrix_products(backend, lit, grey, width):
    x = digits(lit=lit) * (torch.rand(100, 784, generator=torch.Generator().manual_seed(3)) if grey else 1)
    rows, bias = normals(784, width).requires_grad_(), normals(width, seed=4).requires_grad_()
    out = pixels.image_linear(x, rows, bias)
    upstream = normals(100, width, seed=5)
    got = torch.autograd.grad(out, (rows, bias), upstream)
    expected = reference.image_linear(x, rows, bias)
    wanted = torch.autograd.grad(expected, (rows, bias), upstream)
    torch.testing.assert_close(out, expected, rtol=PRODUCT, atol=PRODUCT * 10)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=PRODUCT, atol=PRODUCT * 10)


@needs_compiler
def test_threads_change_no_bit():
    x, rows, bias = digits(), normals(784, 64).requires_grad_(), normals(64).requires_grad_()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = pixels.image_linear(x, rows, bias)
            found.append((out, *torch.autograd.grad(out, (rows, bias), torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_compiler
def test_images_that_need_gradients_take_the_matrix_product():
    x = digits(4).requires_grad_()
    pixels.image_linear(x, normals(784, 3), normals(3)).sum().backward()
    assert x.grad is not None


@needs_compiler
def test_second_order_gradients_are_refused():
    logits = torch.zeros(2, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="second-order"):
        torch.autograd.grad(pixels.bernoulli_log_prob(logits, torch.ones(2, 5)).sum(), logits, create_graph=True)
