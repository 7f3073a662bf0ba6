"""CPU: a whole residual cell with norms and gate as one operation, in C, with gradients written by hand.

Autograd over single layers keeps every activation and every normalised map, and walks through memory once for each.
Here a layer ([batch norm,] activation, [repeated pixels,] convolution) reads its input once and writes its output once
(`layer.c`); only the cell's input and the convolutions' outputs are kept, or the input alone with `recompute`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cell_form import CellForm, CellNorm, CellTensors, Convolution, LayerForm
from kernels.cpu import library
from kernels.cpu.cells.convolutions import FusedCellOfConvolutions, only_convolves
from kernels.cpu.cells.layer import added_map, contiguous, layer_of, new_map, takes_cell
from kernels.cpu.gradients import refuse_second_order
from kernels.cpu.structures import Upstream, pointer
from kernels.reference import network as reference


class Linear(NamedTuple):
    """Coefficients of scale * gradient + output_scale * output + shift, (C) each or (B, C)."""

    scale: Tensor
    output_scale: Tensor | None
    shift: Tensor

    def of(self, gradient: Tensor, output: Tensor | None) -> Upstream:
        """The linear form of two maps, which the caller keeps alive, as a layer's way back takes it."""
        if self is _unit(gradient.shape[1]):
            return Upstream(gradient.data_ptr())
        return self.written(gradient, output)

    def written(self, gradient: Tensor, output: Tensor | None) -> Upstream:
        """The same with its coefficients, whatever they are."""
        per_image = self.scale.shape[1] if self.scale.ndim == 2 else 0
        pointers = (gradient, output, self.scale, self.output_scale, self.shift)
        return Upstream(*(None if one is None else one.data_ptr() for one in pointers), per_image)


class ImageStatistics(NamedTuple):
    """Mean over pixels and sum of squared deviations from it, (B, C) each; `pixels` of an image."""

    mean: Tensor
    squares: Tensor
    pixels: int


def image_statistics(x: Tensor) -> ImageStatistics:
    """Statistics of each image of a channels-last map (B, C, h, w)."""
    batch, channels, height, width = x.shape
    mean, squares = torch.empty(2, batch, channels).unbind()
    pixels = height * width
    library.loaded().vaebench_statistics(
        x.data_ptr(), mean.data_ptr(), squares.data_ptr(), batch, pixels, channels, torch.get_num_threads()
    )
    return ImageStatistics(mean, squares, pixels)


def normalise(norm: CellNorm | None, statistics: ImageStatistics | None, channels: int, update: bool) -> Tensor:
    """Mean, inverse standard deviation, scale and shift (4, C) of a norm, (0, 1, 1, 0) without one.

    From the batch's statistics where they are given, else from the running ones; `update` moves the latter.
    """
    if norm is None:
        return _identity(channels)
    out = torch.empty(4, channels)
    mean, squares, pixels = statistics or (None, None, 0)
    if mean is not None and len(mean) * pixels == 1:
        raise ValueError("batch norm: expected more than one value per channel in training, got 1; use a larger batch")
    running = (norm.running_mean, norm.running_var) if update or mean is None else (None, None)
    library.loaded().vaebench_norm(
        pointer(mean),
        pointer(squares),
        0 if mean is None else len(mean),
        pixels,
        channels,
        norm.weight.data_ptr(),
        norm.bias.data_ptr(),
        norm.epsilon,
        norm.momentum,
        norm.repeats,
        *(pointer(one) for one in running),
        out.data_ptr(),
    )
    if update and mean is not None:
        torch.autograd.graph.increment_version((norm.running_mean, norm.running_var))
    return out


@functools.cache
def _identity(channels: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None].expand(4, channels).contiguous()


def norm_pointers(applied: Tensor) -> tuple[int | None, int | None, int | None]:
    """Addresses of mean, scale and shift of a norm (4, C); null where it changes nothing."""
    if applied.data_ptr() == _identity(applied.shape[1]).data_ptr():
        return None, None, None
    return applied[0].data_ptr(), applied[2].data_ptr(), applied[3].data_ptr()


def apply_layer(
    form: LayerForm, x: Tensor, norm: Tensor, convolution: Convolution, statistics: bool, base: Tensor | None = None
) -> tuple[Tensor, ImageStatistics | None]:
    """Output (B, C_out, h', w') of a layer whose norm is (4, C), and on request the statistics of its images.

    To that of a dense layer a channels-last `base` of its shape is added.
    """
    shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
    layer = layer_of(form, shape, convolution.weight.shape[0])
    y = new_map(layer.batch, layer.c_out, layer.out_height, layer.out_width)
    found = None
    if statistics:
        mean, squares = torch.empty(2, len(x), layer.c_out).unbind()
        found = ImageStatistics(mean, squares, layer.out_height * layer.out_width)
    library.loaded().vaebench_layer(
        layer,
        x.data_ptr(),
        *norm_pointers(norm)[1:],
        convolution.weight.data_ptr(),
        pointer(convolution.bias),
        pointer(base),
        y.data_ptr(),
        pointer(found.mean if found else None),
        pointer(found.squares if found else None),
        torch.get_num_threads(),
    )
    return y, found


def linear(of: Linear, gradient: Tensor, output: Tensor | None, base: Tensor | None) -> Tensor:
    """Base + scale * gradient + output_scale * output + shift."""
    batch, channels, height, width = gradient.shape
    out = new_map(batch, channels, height, width)
    shape = batch, height * width, channels
    library.loaded().vaebench_linear(
        of.written(gradient, output), pointer(base), out.data_ptr(), *shape, torch.get_num_threads()
    )
    return out


@dataclass
class Pass:
    """What a forward pass leaves.

    The maps before each layer and after the last, the norms applied to them (4, C), the mean of the last map's images
    (B, C), and the gate's steps.
    """

    maps: list[Tensor]
    norms: list[Tensor]
    pooled: Tensor | None = None
    gate: tuple[Tensor, ...] = field(default=())


def run_branch(
    form: CellForm, x: Tensor, tensors: CellTensors, training: bool, update: bool, base: Tensor | None = None
) -> Pass:
    """The residual branch up to the last norm and the gate; `base` is added to its last map."""
    left = Pass([x], [])
    found = image_statistics(x) if training and tensors.norms[0] else None
    for index, (layer, convolution) in enumerate(zip(form.layers, tensors.convolutions, strict=True)):
        map, after = left.maps[-1], tensors.norms[index + 1]
        last = index + 1 == len(form.layers)
        left.norms.append(normalise(tensors.norms[index], found, map.shape[1], update))
        wanted = (training and after is not None) or (last and bool(tensors.gate))
        y, found = apply_layer(layer, map, left.norms[-1], convolution, wanted, base if last else None)
        left.maps.append(y)
    left.pooled = found.mean if found else None
    left.norms.append(normalise(tensors.norms[-1], found if training else None, left.maps[-1].shape[1], update))
    if tensors.gate:
        left.gate = open_gate(left, tensors.gate)
    return left


def open_gate(left: Pass, gate: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Pooled branch (B, C), hidden units, and gates in (0, 1) (B, C) of squeeze-excitation (Hu et al. 2018)."""
    assert left.pooled is not None
    pooled = torch.addcmul(left.norms[-1][3], left.pooled, left.norms[-1][2])
    hidden = F.linear(pooled, gate[0], gate[1]).relu_()
    return pooled, hidden, F.linear(hidden, gate[2], gate[3]).sigmoid_()


def ends_plainly(tensors: CellTensors) -> bool:
    """Whether nothing but the factor stands between the last convolution and the sum: no norm, no gate."""
    return tensors.norms[-1] is None and not tensors.gate


def adds_in_place(form: CellForm, tensors: CellTensors) -> bool:
    """Whether the last convolution itself adds its sums to what the cell adds them to."""
    return form.gain == 1 and ends_plainly(tensors) and form.layers[-1].groups == 1


def combine(form: CellForm, left: Pass, tensors: CellTensors, skip: Tensor | None) -> Tensor:
    """[Skip +] gain * gate * norm(branch)."""
    if adds_in_place(form, tensors):
        return left.maps[-1]
    scale, shift = left.norms[-1][2] * form.gain, left.norms[-1][3] * form.gain
    if left.gate:
        scale, shift = left.gate[2] * scale, left.gate[2] * shift
    return linear(Linear(scale, None, shift), left.maps[-1], None, skip)


def run_cell(
    form: CellForm, x: Tensor, skip: Tensor | None, tensors: CellTensors, training: bool
) -> tuple[Pass, Tensor]:
    """What a pass of the cell leaves, and its output; training moves the running statistics."""
    added = added_map(form, x, skip)
    base = added if adds_in_place(form, tensors) else None
    left = run_branch(form, x, tensors, training, training, base)
    return left, combine(form, left, tensors, added)


def through_gate(
    form: CellForm, left: Pass, gate: Sequence[Tensor], sums: Tensor, products: Tensor
) -> tuple[Linear, list[Tensor]]:
    """Gradient of the normed branch as a linear form (B, C) of the cell's gradient, and of the gate's tensors.

    `sums` and `products` (B, C) are the cell's gradient summed over pixels, plainly and times (map - mean).
    """
    mean, _, scale, shift = left.norms[-1]
    if not left.gate:
        return Linear(torch.full_like(sums, form.gain), None, torch.zeros_like(sums)), []
    pooled, hidden, opened = left.gate
    d_logit = torch.addcmul((scale * mean + shift) * sums, products, scale)
    d_logit = d_logit.mul_(opened).mul_(1 - opened).mul_(form.gain)
    d_hidden = (d_logit @ gate[2]).mul_(hidden > 0)
    gradients = [d_hidden.t() @ pooled, d_hidden.sum(0), d_logit.t() @ hidden, d_logit.sum(0)]
    pixels = left.maps[-1].shape[2] * left.maps[-1].shape[3]
    return Linear(opened * form.gain, None, (d_hidden @ gate[0]).div_(pixels)), gradients


def norm_backward(applied: Tensor, sums: Tensor, count: int) -> tuple[Linear, Tensor, Tensor]:
    """Coefficients (C) that turn the gradient of normalised values into that of the values, and the norm's gradients.

    `sums` (2, C) float64 of the gradient and of its product with value - mean, over `count` values a channel.
    """
    channels = applied.shape[1]
    d_weight, d_bias, *coefficients = torch.empty(5, channels).unbind()
    library.loaded().vaebench_norm_backward(
        applied.data_ptr(),
        sums.data_ptr(),
        count,
        channels,
        d_weight.data_ptr(),
        d_bias.data_ptr(),
        coefficients[0].data_ptr(),
    )
    return Linear(*coefficients), d_weight, d_bias


def last_norm_backward(
    norm: CellNorm | None, left: Pass, upstream: Linear, sums: Tensor, products: Tensor
) -> tuple[Linear, Tensor | None, Tensor | None]:
    """The linear form of the cell's gradient and the last map that is the latter's gradient; of the norm's tensors."""
    if norm is None:
        return upstream, None, None
    applied, last = left.norms[-1], left.maps[-1]
    pixels = last.shape[2] * last.shape[3]
    total, product = upstream.scale * sums + upstream.shift * pixels, upstream.scale * products
    if left.pooled is not None:
        product = product + (left.pooled - applied[0]) * upstream.shift * pixels
    over_batch = torch.stack((total.double().sum(0), product.double().sum(0)))
    through, d_weight, d_bias = norm_backward(applied, over_batch, len(sums) * pixels)
    scale, shift = upstream.scale * through.scale, torch.addcmul(through.shift, upstream.shift, through.scale)
    assert through.output_scale is not None
    return Linear(scale, through.output_scale.expand_as(scale).contiguous(), shift), d_weight, d_bias


def layer_backward(
    form: LayerForm,
    x: Tensor,
    applied: Tensor,
    convolution: Convolution,
    upstream: Upstream,
    d: Tensor | None,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of weight and bias, and the sums (2, C) of the gradient of the normalised input if there is a norm.

    The gradient is written into `d` (B, C, h, w), if there is one, with `base` added, if there is one: of a dense
    layer without norm and repeated pixels.
    """
    shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
    layer, d_weight = layer_of(form, shape, convolution.weight.shape[0]), torch.empty_like(convolution.weight)
    d_bias = None if convolution.bias is None else torch.zeros_like(convolution.bias)
    sums = torch.zeros(2, layer.c_in, dtype=torch.float64)
    mean, scale, shift = norm_pointers(applied)
    library.loaded().vaebench_layer_backward(
        layer,
        *(x.data_ptr(), scale, shift, mean, convolution.weight.data_ptr()),
        upstream,
        *(pointer(one) for one in (base, d, d_weight, d_bias, sums)),
        torch.get_num_threads(),
    )
    return d_weight, d_bias, sums


def end_backward(
    form: CellForm, left: Pass, tensors: CellTensors, gradient: Tensor
) -> tuple[Linear, Tensor | None, list[Tensor | None], list[Tensor]]:
    """Back through factor, gate and last norm.

    The gradient of the last map as a linear form of the cell's gradient and, where it needs it, that map; of the norm's
    tensors and the gate's.
    """
    batch, channels, height, width = gradient.shape
    if ends_plainly(tensors):
        unit = _unit(channels)
        through = unit if form.gain == 1 else unit._replace(scale=torch.full((channels,), form.gain))
        return through, None, [None, None], []
    last, applied = left.maps[-1], left.norms[-1]
    sums, products = torch.empty(2, batch, channels).unbind()
    library.loaded().vaebench_sums(
        *(one.data_ptr() for one in (gradient, last, applied[0], sums, products)),
        batch,
        height * width,
        channels,
        torch.get_num_threads(),
    )
    upstream, d_gate = through_gate(form, left, tensors.gate, sums, products)
    upstream, *d_norm = last_norm_backward(tensors.norms[-1], left, upstream, sums, products)
    return upstream, last if upstream.output_scale is not None else None, d_norm, d_gate


def cell_backward(
    form: CellForm, left: Pass, tensors: CellTensors, gradient: Tensor, skip_is_input: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of the cell's input and of `tensors.flat()`, from that of its output."""
    upstream, output, d_norm, d_gate = end_backward(form, left, tensors, gradient)
    d, base = gradient, gradient if skip_is_input else None
    norms: list[Sequence[Tensor | None]] = [d_norm]
    convolutions: list[Sequence[Tensor | None]] = []
    for index in reversed(range(len(form.layers))):
        x, norm, applied = left.maps[index], tensors.norms[index], left.norms[index]
        up, d_x = upstream.of(d, output), torch.empty_like(x)
        layer, convolution = form.layers[index], tensors.convolutions[index]
        alike = norm is None and not layer.repeat and layer.groups == 1  # `plain_values` of maps.h
        added = base if index == 0 and alike else None
        d_weight, d_bias, total = layer_backward(layer, x, applied, convolution, up, d_x, added)
        convolutions.append((d_weight, d_bias))
        upstream, output, d_norm = _unit(x.shape[1]), None, [None, None]
        if norm is not None:
            upstream, *d_norm = norm_backward(applied, total, x.numel() // x.shape[1])
            output = x
        norms.append(d_norm)
        d, base = d_x, None if added is not None else base
    whole = d if output is None and base is None else linear(upstream, d, output, base)
    return whole, [*(one for pair in norms[::-1] + convolutions[::-1] for one in pair), *d_gate]


@functools.cache
def _unit(channels: int) -> Linear:
    """The linear form that is its first map."""
    with torch.inference_mode(False):
        return Linear(torch.ones(channels), None, torch.zeros(channels))


class FusedCell(torch.autograd.Function):
    """[skip +] gain * gate * branch(x) in training; a null skip stands for x where the form is residual."""

    @staticmethod
    def forward(
        ctx: Any, form: CellForm, tensors: CellTensors, x: Tensor, skip: Tensor | None, *flat: Tensor | None
    ) -> Tensor:
        """Run, and keep the input and the convolutions' outputs."""
        left, out = run_cell(form, x, skip, tensors, training=True)
        if ends_plainly(tensors):
            left.maps.pop()  # the gradient does not need the last map
        kept = Pass([x], []) if form.recompute else left
        ctx.save_for_backward(*kept.maps, *kept.norms, kept.pooled, *kept.gate, *flat)
        ctx.form, ctx.tensors, ctx.skip_is_input = form, tensors, skip is None and form.residual
        ctx.with_skip = skip is not None
        ctx.counts = len(kept.maps), len(kept.norms), len(kept.gate)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, skip and all parameters."""
        refuse_second_order()
        maps, norms, gates = ctx.counts
        saved = list(ctx.saved_tensors)
        rest = saved[maps + norms :]
        left = Pass(saved[:maps], saved[maps : maps + norms], rest[0], tuple(rest[1 : 1 + gates]))
        if ctx.form.recompute:
            left = run_branch(ctx.form, left.maps[0], ctx.tensors, training=True, update=False)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        d_x, gradients = cell_backward(ctx.form, left, ctx.tensors, gradient, ctx.skip_is_input)
        return None, None, d_x, gradient if ctx.with_skip else None, *gradients


def residual_cell(x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, *, training: bool) -> Tensor:
    """The cell; see `kernels.cell_form.ResidualCell`. Gradients in evaluation take the reference."""
    if not (library.takes(x) and takes_cell(form, tensors)) or (torch.is_grad_enabled() and not training):
        return reference.residual_cell(x, skip, form, tensors, training=training)
    x, tensors = x.contiguous(memory_format=torch.channels_last), contiguous(tensors)
    skip = None if skip is None else skip.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() and only_convolves(form, tensors, skip):
        flat = (one for layer in tensors.convolutions for one in (layer.weight, layer.bias))
        return FusedCellOfConvolutions.apply(form, x, skip, *flat)  # pyright: ignore[reportReturnType]
    if torch.is_grad_enabled():
        return FusedCell.apply(form, tensors, x, skip, *tensors.flat())  # pyright: ignore[reportReturnType]
    return run_cell(form, x, skip, tensors, training)[1]
