"""The C kernels of networks against plain PyTorch in float64: cells, convolutions, weight norm, spectral norms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cell_form import CellForm, CellNorm, CellTensors, Convolution, LayerForm
from kernels.cpu import library
from kernels.cpu.backend import CPU
from kernels.reference.backend import REFERENCE

ROUNDING = 1e-4
"""Float32 sums of up to a few thousand terms, through two or three norms, against the largest value of the tensor."""
HALF = 0.1
"""Eight bits of mantissa, through two convolutions and norms of running statistics."""
VANISHING = 1e-3
"""A bias before a norm has no gradient; what is left is rounding of sums of values of the order of one."""
BATCH = 5
FAST, PLAIN = CPU.network, REFERENCE.network

pytestmark = pytest.mark.skipif(library.library() is None, reason="needs a C compiler")


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell's layers, the channels before, between and after them, where norms are, and the side of its maps."""

    layers: tuple[LayerForm, ...]
    channels: tuple[int, ...]
    norms: tuple[bool, ...]
    gate: bool = True
    bias: bool = False
    side: int = 8
    skip: bool = False
    gain: float = 0.1
    residual: bool = True

    def form(self, recompute: bool = False) -> CellForm:
        return CellForm(self.layers, self.gain, recompute, self.residual)


def inverted(hidden: int, kernel: int = 5, **middle: object) -> tuple[LayerForm, ...]:
    depthwise = LayerForm("swish", kernel, groups=hidden, **middle)  # pyright: ignore[reportArgumentType]
    return LayerForm("none"), depthwise, LayerForm("swish")


ALL, TWO = (True,) * 4, (True, True, False)
CASES = {
    "two 3x3": Case((LayerForm("swish", 3),) * 2, (16, 16, 16), TWO, bias=True),
    "down": Case((LayerForm("swish", 3, 2), LayerForm("swish", 3)), (16, 32, 32), TWO, bias=True, skip=True),
    "up": Case((LayerForm("swish", 3, repeat=True), LayerForm("swish", 3)), (32, 16, 16), TWO, bias=True, skip=True),
    "dilated": Case((LayerForm("swish", 3, dilation=2), LayerForm("swish", 3)), (8, 8, 8), TWO, bias=True),
    "elu, no norm, odd": Case(
        (LayerForm("elu", 3), LayerForm("elu", 3)), (5, 7, 9), (False,) * 3, False, True, 7, skip=True
    ),
    "inverted": Case(inverted(96), (16, 96, 96, 16), ALL),
    "inverted up": Case(inverted(72, repeat=True), (12, 72, 72, 20), ALL, side=6, skip=True, gain=1.0),
    "inverted down, odd": Case(inverted(36, 3, stride=2), (12, 36, 36, 50), ALL, gate=False, side=6, skip=True),
    "inverted 11x11": Case(inverted(36, 11), (12, 36, 36, 12), ALL, side=4),
    "gelu bottleneck": Case(
        (LayerForm("gelu"), LayerForm("gelu", 3), LayerForm("gelu", 3), LayerForm("gelu")),
        *((16, 4, 4, 4, 16), (False,) * 5, False, True, 8),
        gain=1.0,
    ),
    "gelu bottleneck, not added": Case(
        (LayerForm("gelu"), LayerForm("gelu", 3), LayerForm("gelu", 3), LayerForm("gelu")),
        *((32, 8, 8, 8, 20), (False,) * 5, False, True, 8),
        gain=1.0,
        residual=False,
    ),
    "up, no norm": Case(
        (LayerForm("swish", 3, repeat=True), LayerForm("elu", 3, 2)), (12, 20, 12), (False,) * 3, False, True
    ),
    "depthwise, no norm": Case(inverted(36, 3), (12, 36, 36, 12), (False,) * 4, gate=False, side=6),
    "depthwise first, no norm, added": Case(
        (LayerForm("swish", 3, groups=36), LayerForm("gelu")), (36, 36, 36), (False,) * 3, False, side=6, gain=1.0
    ),
    "depthwise last, no norm, added": Case(
        (LayerForm("gelu"), LayerForm("swish", 3, groups=36)), (36, 36, 36), (False,) * 3, False, side=6, gain=1.0
    ),
    "gate, not added": Case((LayerForm("swish", 3),) * 2, (16, 16, 24), (True,) * 3, residual=False),
    "coarse": Case((LayerForm("swish", 3),) * 2, (128, 128, 128), TWO, bias=True, side=4),
    "one pixel": Case((LayerForm("swish", 3),) * 2, (8, 8, 8), TWO, bias=True, side=1),
    "wide": Case((LayerForm("swish", 3),) * 2, (3, 100, 3), TWO, bias=True, side=17),
}


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def tensors_of(case: Case, dtype: torch.dtype) -> CellTensors:
    norms = []
    for index, (channels, present) in enumerate(zip(case.channels, case.norms, strict=True)):
        running = torch.linspace(-1, 1, channels, dtype=dtype), torch.linspace(0.5, 2, channels, dtype=dtype)
        weight, bias = (random(channels, seed=10 * index + k, dtype=dtype) for k in (1, 2))
        norms.append(CellNorm(weight, bias, *running, 1e-5, 0.05) if present else None)
    convolutions = []
    for index, layer in enumerate(case.layers):
        c_in, c_out = case.channels[index], case.channels[index + 1]
        shape = (c_out, c_in // layer.groups, layer.kernel, layer.kernel)
        bias = random(c_out, seed=10 * index + 4, dtype=dtype) if case.bias else None
        convolutions.append(Convolution(random(*shape, seed=10 * index + 3, dtype=dtype), bias))
    c = case.channels[-1]
    gate = tuple(random(*shape, seed=91 + k, dtype=dtype) for k, shape in enumerate([(4, c), (4,), (c, 4), (c,)]))
    return CellTensors(tuple(norms), tuple(convolutions), gate if case.gate else ())


def inputs(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    x = random(BATCH, case.channels[0], case.side, case.side, seed=7, dtype=dtype)
    if not case.skip:
        return x, None
    with torch.no_grad():
        form, tensors = case.form(), tensors_of(case, dtype)
        shape = PLAIN.residual_cell(x, torch.zeros((), dtype=dtype), form, tensors, training=False).shape
    return x, random(*shape, seed=8, dtype=dtype)


def close(actual: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    scale = max(float(expected.detach().abs().max()), VANISHING / tolerance)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * scale)


def run(case: Case, dtype: torch.dtype, recompute: bool = False) -> tuple[list[Tensor | None], CellTensors]:
    """Output, gradients of input, skip and all tensors."""
    x, skip = inputs(case, dtype)
    form, tensors = case.form(recompute), tensors_of(case, dtype)
    if dtype == torch.float64:
        out = PLAIN.residual_cell(x, skip, form, tensors, training=True)
    else:
        out = FAST.residual_cell(x, skip, form, tensors, training=True)
    out.backward(random(*out.shape, seed=9, dtype=dtype).detach())
    leaves = [x, skip, *tensors.flat()]
    return [out, *(None if leaf is None else leaf.grad for leaf in leaves)], tensors


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_cell_in_training_equals_single_layers(name: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (fused, moved), (plain, expected) = run(CASES[name], torch.float32), run(CASES[name], torch.float64)
    finally:
        torch.set_num_threads(before)
    for actual, wanted in zip(fused, plain, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None and wanted is not None:
            close(actual, wanted)
    for norm, wanted in zip(moved.norms, expected.norms, strict=True):
        if norm is not None and wanted is not None:
            close(norm.running_mean, wanted.running_mean)
            close(norm.running_var, wanted.running_var)


@pytest.mark.parametrize("name", CASES)
def test_recomputation_changes_no_bit(name: str) -> None:
    (kept, moved), (recomputed, again) = run(CASES[name], torch.float32), run(CASES[name], torch.float32, True)
    for one, other in zip(kept, recomputed, strict=True):
        assert one is other is None or torch.equal(one, other)  # pyright: ignore[reportArgumentType]
    for one, other in zip(moved.norms, again.norms, strict=True):
        assert one is other is None or torch.equal(one.running_var, other.running_var)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("name", ["inverted", "elu, no norm, odd", "gate, not added"])
def test_parameters_have_the_same_gradients_whether_the_input_has_one(name: str) -> None:
    case, found = CASES[name], []
    for wanted in (True, False):
        x, skip = inputs(case, torch.float32)
        tensors = tensors_of(case, torch.float32)
        out = FAST.residual_cell(x.detach().requires_grad_(wanted), skip, case.form(), tensors, training=True)
        out.backward(random(*out.shape, seed=9, dtype=torch.float32).detach())
        found.append([one.grad for one in tensors.flat() if one is not None])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_cell_of_more_layers_than_the_kernels_take_is_left_to_single_layers() -> None:
    many = Case((LayerForm("swish"),) * 9, (6,) * 10, (True,) * 10, side=4)
    for actual, wanted in zip(run(many, torch.float32)[0], run(many, torch.float64)[0], strict=True):
        if actual is not None and wanted is not None:
            close(actual, wanted)


@pytest.mark.parametrize("name", CASES)
def test_packed_cell_equals_single_layers(name: str) -> None:
    case, form = CASES[name], CASES[name].form()
    with torch.no_grad():
        exact = tensors_of(case, torch.float64)
        expected = PLAIN.residual_cell(*inputs(case, torch.float64), form, exact, training=False)
        x, skip = inputs(case, torch.float32)
        actual = FAST.run_packed(FAST.pack_cell(form, tensors_of(case, torch.float32)), x, skip)
        layers = FAST.residual_cell(x, skip, form, tensors_of(case, torch.float32), training=False)
    close(actual, expected)
    close(layers, expected)


@pytest.mark.parametrize("name", CASES)
def test_threads_that_share_the_lines_of_an_image_change_no_bit(name: str) -> None:
    case, before = CASES[name], torch.get_num_threads()
    x, skip = (None if one is None else one.detach()[:2] for one in inputs(case, torch.float32))
    packed = FAST.pack_cell(case.form(), tensors_of(case, torch.float32))
    assert x is not None
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(FAST.run_packed(packed, x, skip))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_running_statistics_count_repeated_pixels() -> None:
    case = CASES["up"]
    tensors = tensors_of(case, torch.float32)
    first = tensors.norms[0]
    assert first is not None
    repeated = dataclasses.replace(first, repeats=4)
    x, skip = inputs(case, torch.float32)
    form = CellForm(case.layers, case.gain)
    FAST.residual_cell(
        x, skip, form, CellTensors((repeated, *tensors.norms[1:]), tensors.convolutions, tensors.gate), training=True
    )
    wanted = torch.linspace(0.5, 2, case.channels[0], dtype=torch.float64)
    pixels = F.interpolate(x.detach().double(), scale_factor=2, mode="nearest")
    F.batch_norm(pixels, torch.zeros(case.channels[0], dtype=torch.float64), wanted, training=True, momentum=0.05)
    close(repeated.running_var, wanted)


@pytest.mark.parametrize("activation", ["none", "swish", "elu", "gelu"])
@pytest.mark.parametrize(("c_in", "c_out", "kernel"), [(1, 16, 3), (64, 40, 3), (84, 64, 1), (6, 100, 5)])
def test_convolution_equals_plain_pytorch(activation: str, c_in: int, c_out: int, kernel: int) -> None:
    form = LayerForm(activation, kernel)  # pyright: ignore[reportArgumentType]
    results = []
    for dtype in (torch.float32, torch.float64):
        x = random(3, c_in, 9, 8, seed=1, dtype=dtype)
        weight, bias = random(c_out, c_in, kernel, kernel, seed=2, dtype=dtype), random(c_out, seed=3, dtype=dtype)
        out = (PLAIN if dtype == torch.float64 else FAST).convolution(x, weight, bias, form)
        results.append((out, *torch.autograd.grad(out, (x, weight, bias), random(*out.shape, seed=4, dtype=dtype))))
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


def test_gelu_is_as_exact_as_single_precision_far_out_as_well() -> None:
    x = torch.cat((torch.linspace(-9, 9, 40_000), torch.tensor([-1e6, -50.0, 50.0, 1e6]))).view(-1, 4, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    out = FAST.convolution(x, torch.eye(4).view(4, 4, 1, 1), None, LayerForm("gelu"))
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double().requires_grad_()
    wanted = F.gelu(exact)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), exact)
    assert ((out - wanted) / exact.abs().clamp_min(1)).abs().max() < 5e-7
    assert (slope - wanted_slope).abs().max() < 1e-6


def test_no_gradient_is_computed_for_images() -> None:
    x = torch.rand(2, 1, 8, 8)
    weight = random(4, 1, 3, 3, seed=0, dtype=torch.float32)
    out = FAST.convolution(x, weight, None, LayerForm(kernel=3))
    out.sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("activation", ["none", "swish", "elu", "gelu"])
def test_values_that_are_not_finite_stay_so(activation: str) -> None:
    x = torch.zeros(2, 16, 4, 4)
    x[0, 3, 1, 1] = torch.nan
    form = LayerForm(activation)  # pyright: ignore[reportArgumentType]
    out = FAST.convolution(x, torch.ones(16, 16, 1, 1), None, form)
    assert out[0, :, 1, 1].isnan().all()
    assert out[1].isfinite().all()


def test_what_the_kernels_do_not_take_is_left_to_single_layers() -> None:
    x, weight = torch.rand(1, 4, 4, 4, dtype=torch.float64), torch.rand(4, 4, 1, 1, dtype=torch.float64)
    assert torch.equal(FAST.convolution(x, weight, None, LayerForm()), F.conv2d(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert FAST.convolution(x.float(), weight.float(), None, LayerForm()).dtype == torch.bfloat16
    case = CASES["two 3x3"]
    exact, form, tensors = inputs(case, torch.float64), CellForm(case.layers), tensors_of(case, torch.float64)
    with torch.no_grad():
        plain = PLAIN.residual_cell(*exact, form, tensors, training=False)
        assert torch.equal(FAST.run_packed(FAST.pack_cell(form, tensors), *exact), plain)
        packed = FAST.pack_cell(form, tensors_of(case, torch.float32))
        with torch.autocast("cpu", torch.bfloat16):
            close(FAST.run_packed(packed, *inputs(case, torch.float32)), plain, HALF)


def test_second_order_gradients_are_refused() -> None:
    x = random(1, 4, 4, 4, seed=0, dtype=torch.float32)
    out = FAST.convolution(x, torch.rand(4, 4, 1, 1), None, LayerForm("swish"))
    with pytest.raises(RuntimeError, match="no second-order gradients"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


SHAPES = ((7, 5, 3, 3), (16, 1, 5, 5), (1, 3, 1, 1), (40, 64, 3, 3))


def weights(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    found = [random(*shape, seed=k, dtype=dtype) for k, shape in enumerate(SHAPES)]
    return found, [random(shape[0], 1, 1, 1, seed=20 + k, dtype=dtype) for k, shape in enumerate(SHAPES)]


def upstream(outs: Sequence[Tensor]) -> list[Tensor]:
    return [random(*out.shape, seed=40 + k, dtype=out.dtype).detach() for k, out in enumerate(outs)]


def test_weight_norm_equals_its_formula() -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        of, log_norms = weights(dtype)
        plain = [w * g.exp() / (w.flatten(1).norm(dim=1).view_as(g) + 1e-5) for w, g in zip(of, log_norms, strict=True)]
        outs = plain if dtype == torch.float64 else FAST.weight_norm(of, log_norms, 1e-5)
        assert outs is not None
        results.append((*outs, *torch.autograd.grad(outs, [*of, *log_norms], upstream(outs))))
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


def test_weight_norm_of_a_zero_weight_has_finite_gradients() -> None:
    weight, log_norm = torch.zeros(2, 3, 1, 1).requires_grad_(), torch.zeros(2, 1, 1, 1).requires_grad_()
    found = FAST.weight_norm([weight], [log_norm], 1e-5)
    assert found is not None
    found[0].sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_spectral_norms_are_the_top_singular_values() -> None:
    of, _ = weights(torch.float32)
    left = [F.normalize(random(len(one), seed=60 + k, dtype=torch.float32).detach(), dim=0) for k, one in enumerate(of)]
    total = FAST.spectral_norms(of, left, 200, 1e-3)
    assert total is not None
    singular = [torch.linalg.svd(one.detach().double().flatten(1)) for one in of]
    close(total, sum((s[0] for _, s, _ in singular), torch.zeros((), dtype=torch.float64)))
    gradients = torch.autograd.grad(total, of)
    for gradient, u in zip(gradients, left, strict=True):
        close(gradient.norm(), torch.ones((), dtype=torch.float64))
        close(gradient.flatten(1).double() @ gradient.flatten(1).T.double(), torch.outer(u, u).double())
    close(sum(((g * w).sum() for g, w in zip(gradients, of, strict=True)), torch.zeros(())), total.detach().double())
