"""Launches the Triton kernels of batch norm and swish: layouts, tiles and programs, decided once here.

Activations are read in place, channels-last or channels-first, also as slices; they are copied only where neither a
pixel's channels nor a channel's pixels are contiguous, or where a gradient comes in another layout than its input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kernels.gpu import norm as norm_kernels
from kernels.gpu.latent_plan import MAX_BLOCKS, Fast, fast_math, warp_lanes
from kernels.gpu.launches import Launch, Plans, layout_key, on_device, vectors_key

Layout = Literal["channels_last", "channels_first"]
Affine = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean, spread (1 / std in training, variance in evaluation), weight and bias, each (C,)."""

THREADS = 256
"""Of one program."""
MAX_COLUMNS = 64
"""Channels of one program in the channels-last layout."""
TURNS = 8
"""Accesses that a thread has in flight to one field, or half as many to each of several.

One access is four elements, or eight of 16 bits where alignment makes them 128 bits: more would spill."""
PROGRAMS = 1024
"""As many as fill the largest GPU once; more would only load their channels' parameters more often."""
MAX_PARTS = 256
"""Of one channel, to be merged by one program."""
MERGED = 4096
"""Parts of the channels that one program merges together."""


@dataclass(frozen=True)
class Sweep:
    """How programs sweep over lines of contiguous elements.

    Args:
        layout: "channels_last": a line is a pixel; "channels_first": a line is one channel of one image.
        unit: number that divides all strides and the length of a line; they are given in this unit.
        rows, columns: lines, and elements of a line, of one step; a program makes a number of steps.
        turns: number of rows that a thread holds; each lane sums its own.
        full: no program reaches past the last line or the end of a line, so that nothing is masked.
        fast: whose approximate instructions are used.
    """

    layout: Layout
    unit: int
    rows: int
    columns: int
    turns: int
    full: bool
    fast: Fast

    def warps(self, lanes: int) -> int:
        """Warps of `lanes` threads in one program."""
        return THREADS // lanes


@dataclass(frozen=True)
class Norm:
    """Which formulas the kernels are compiled for: statistics of the batch or given ones, with or without swish."""

    training: bool
    swish: bool


class Extent(NamedTuple):
    """Lines, elements of a line, and channels."""

    lines: int
    length: int
    channels: int


def joint_stride(x: Tensor, dims: Iterable[int]) -> int | None:
    """The stride at which `dims` are walked as one, 0 where they hold one element; None where there is none."""
    kept = [(x.shape[dim], x.stride(dim)) for dim in dims if x.shape[dim] > 1]
    if any(outer != size * inner for (_, outer), (size, inner) in itertools.pairwise(kept)):
        return None
    return kept[-1][1] if kept else 0


def layout_of(x: Tensor) -> Layout | None:
    """The layout in which activations (B, C, h, w) are read in place, or None if they are not."""
    if x.shape[1] > 1 and x.stride(1) == 1 and joint_stride(x, (0, 2, 3)) is not None:
        return "channels_last"
    pixels_touch = x.shape[2] * x.shape[3] == 1 or joint_stride(x, (2, 3)) == 1
    return "channels_first" if pixels_touch else None


def laid_out(x: Tensor, layout: Layout) -> Tensor:
    """The activations themselves where they are read in place in `layout`, else a copy that is."""
    if layout_of(x) == layout:
        return x
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def output_format(x: Tensor) -> torch.memory_format:
    """The memory format of results for x."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return torch.preserve_format
    return torch.channels_last if layout_of(x) == "channels_last" else torch.contiguous_format


def output_like(x: Tensor) -> Tensor:
    """Uninitialised activations in the memory format of x."""
    return torch.empty_like(x, memory_format=output_format(x))


def extent_of(x: Tensor, layout: Layout) -> Extent:
    """Lines and their length of activations (B, C, h, w)."""
    batch, channels, height, width = x.shape
    if layout == "channels_last":
        return Extent(batch * height * width, channels, channels)
    return Extent(batch, height * width, channels)


def strides_of(x: Tensor, layout: Layout) -> tuple[int, int]:
    """Strides of lines and of channels; 0 for what is not walked."""
    if layout == "channels_last":
        return joint_stride(x, (0, 2, 3)) or 0, 0
    return joint_stride(x, (0,)) or 0, joint_stride(x, (1,)) or 0


def choose_columns(length: int, layout: Layout, turn: int) -> int:
    """Elements of a line in one turn: a power of two, narrower where that wastes fewer lanes."""
    widest = min(MAX_COLUMNS if layout == "channels_last" else turn, 1 << (length - 1).bit_length())
    half = widest // 2
    wasteful = widest > 32 and -(-length // widest) * widest > -(-length // half) * half
    return half if wasteful else widest


class Plan(NamedTuple):
    """A sweep, the number of steps of one program, and the grid: programs along a pixel or channels, and parts."""

    sweep: Sweep
    steps: int
    grid: tuple[int, int]


def choose_plan(fields: tuple[Tensor, ...], layout: Layout, parts: int = PROGRAMS) -> Plan:
    """The plan for `fields` of equal shape in `layout`.

    Programs make more steps, a power of two, rather than exceed `PROGRAMS`, or `parts` over one channel.
    """
    extent = extent_of(fields[0], layout)
    unit = math.gcd(16, extent.length, *(stride for one in fields for stride in strides_of(one, layout)))
    eight = unit >= 8 and all(tensor.element_size() == 2 for tensor in fields)
    turns, turn = TURNS if len(fields) == 1 else TURNS // 2, THREADS * (8 if eight else 4)
    columns = choose_columns(extent.length, layout, turn)
    rows, blocks = turns * turn // columns, -(-extent.length // columns)
    first, per_line = (blocks, 1) if layout == "channels_last" else (extent.channels, blocks)
    wanted = max(1, min(parts, PROGRAMS // first) // per_line)
    steps = 1 << (-(-extent.lines // (rows * wanted)) - 1).bit_length()
    grid = (first, -(-extent.lines // (rows * steps)) * per_line)
    if grid[1] > MAX_BLOCKS or extent.lines >= 2**31:
        raise ValueError(f"expected activations of fewer pixels, got {tuple(fields[0].shape)}")
    full = extent.lines % (rows * steps) == 0 and extent.length % columns == 0
    return Plan(Sweep(layout, unit, rows, columns, turns, full, fast_math(fields[0])), steps, grid)


class Pass(NamedTuple):
    """A kernel's launch over fields.

    Args:
        launch: the kernel, after whose fields and arguments the `sizes` are given.
        formats: for each field the format in which it is copied if it is not read in place; None without copies.
        strides: of lines and of channels, of each field.
        sizes: lines, length of one, and steps.
        programs: of one channel, or of one pixel's channels.
    """

    launch: Launch
    formats: tuple[torch.memory_format | None, ...] | None
    strides: tuple[tuple[int, int], ...]
    sizes: tuple[int, int, int]
    programs: int

    def fields(self, *tensors: Tensor) -> tuple[tuple[Tensor, int, int], ...]:
        """Fields as the kernels take them."""
        if self.formats is not None:
            tensors = tuple(
                one if copied is None else one.contiguous(memory_format=copied)
                for one, copied in zip(tensors, self.formats, strict=True)
            )
        return tuple([(one, line, channel) for one, (line, channel) in zip(tensors, self.strides, strict=True)])


def plan_pass(kernel: Any, given: tuple[Tensor, ...], layout: Layout, parts: int = PROGRAMS, **form: Norm) -> Pass:
    """Plan a kernel of `kernels.gpu.norm` over the `given` fields of equal shape in `layout`."""
    copy = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    fields = tuple(laid_out(one, layout) for one in given)
    plan = choose_plan(fields, layout, parts)
    sweep, extent = plan.sweep, extent_of(fields[0], layout)
    strides = [strides_of(one, layout) for one in fields]
    formats = tuple(None if one is field else copy for one, field in zip(given, fields, strict=True))
    return Pass(
        Launch(kernel, plan.grid, sweep, *form.values(), num_warps=sweep.warps(warp_lanes())),
        formats if any(formats) else None,
        tuple((line // sweep.unit, channel // sweep.unit) for line, channel in strides),
        (extent.lines, extent.length // sweep.unit, plan.steps),
        plan.grid[1],
    )


def unbiased_factor(count: int, repeats: int) -> float:
    """What turns a sum of squared deviations into the unbiased variance, when every value occurs `repeats` times."""
    return repeats / (repeats * count - 1)


class Statistics(NamedTuple):
    """How a batch's statistics are taken: in parts, then merged; `unbiased`: see `unbiased_factor`."""

    parts: Pass
    merge: Launch
    unbiased: float


STATISTICS: Plans[Statistics] = Plans()


def plan_statistics(x: Tensor, repeats: int) -> Statistics:
    """Plan the statistics of the channels of x."""
    channels = x.shape[1]
    parts = plan_pass(norm_kernels.statistics, (x,), layout_of(x) or "channels_first", MAX_PARTS)
    rows = 1 << (parts.programs - 1).bit_length()
    columns = max(1, min(MERGED // rows, MAX_COLUMNS))
    merge = Launch(norm_kernels.merge, (-(-channels // columns),), *parts.launch.constants, rows, columns)
    return Statistics(parts, merge, unbiased_factor(x.numel() // channels, repeats))


def run_statistics(
    plan: Statistics, x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) by a plan; moves the running statistics."""
    sweep, _, channels, *_ = plan.parts, *x.shape
    mean, inverse = x.new_empty(channels, dtype=torch.float32), x.new_empty(channels, dtype=torch.float32)
    parts = x.new_empty((2, sweep.programs, channels), dtype=torch.float32)
    sweep.launch((parts,), *sweep.fields(x), parts, *sweep.sizes)
    moments = mean, inverse, running_mean, running_var
    sizes = sweep.programs, channels, *sweep.sizes
    plan.merge((parts, mean, inverse), parts, *moments, *sizes, momentum, plan.unbiased, eps)
    return mean, inverse


def norm_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, repeats: int
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel (C,) float32; moves the running statistics."""
    key = layout_key(x), vectors_key(running_mean, running_var), repeats, x.get_device()
    plan = STATISTICS.get(key)
    if plan is None:
        if not (running_mean.is_contiguous() and running_var.is_contiguous()):
            raise ValueError("running statistics: expected contiguous tensors, since they are moved in place")
        if not x.numel():
            mean, inverse = (x.new_zeros(x.shape[1], dtype=torch.float32) for _ in range(2))
            return mean, inverse
        plan = STATISTICS.keep(key, plan_statistics(x, repeats))
    with on_device(x):
        return run_statistics(plan, x, running_mean, running_var, momentum, eps)


def contiguous(affine: Affine) -> Affine:
    """The same numbers, contiguous."""
    mean, spread, weight, bias = affine
    return mean.contiguous(), spread.contiguous(), weight.contiguous(), bias.contiguous()


class Forward(NamedTuple):
    """How y is written, in the format `output`."""

    output: torch.memory_format
    writing: Pass


FORWARD: Plans[Forward] = Plans()


def plan_forward(x: Tensor, y: Tensor, norm: Norm) -> Forward:
    """Plan the normalised and activated x."""
    layout = layout_of(y) or "channels_first"
    return Forward(output_format(x), plan_pass(norm_kernels.forward, (x, y), layout, NORM=norm))


def norm_forward(x: Tensor, affine: Affine, eps: float, norm: Norm) -> Tensor:
    """Normalised and activated x."""
    key = layout_key(x), vectors_key(*affine), norm, x.get_device()
    plan = FORWARD.get(key)
    y = output_like(x) if plan is None else torch.empty_like(x, memory_format=plan.output)
    if plan is None:
        if not x.numel():
            return y
        plan = FORWARD.keep(key, plan_forward(x, y, norm))
    writing = plan.writing
    with on_device(x):
        writing.launch((y,), *writing.fields(x, y), contiguous(affine), *writing.sizes, eps)
    return y


TRAINING: Plans[tuple[Statistics, Forward]] = Plans()


def norm_training(
    x: Tensor,
    channels: Affine,
    momentum: float,
    eps: float,
    repeats: int,
    norm: Norm,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `norm_statistics` and `norm_forward`: y, mean, 1 / std; `channels`: running statistics, weight and bias."""
    running_mean, running_var, weight, bias = channels
    key = layout_key(x), vectors_key(*channels), repeats, norm, x.get_device()
    plans = TRAINING.get(key)
    if plans is None:
        mean, inverse = norm_statistics(x, running_mean, running_var, momentum, eps, repeats)
        y = norm_forward(x, (mean, inverse, weight, bias), eps, norm)
        if x.numel():
            TRAINING.keep(key, (plan_statistics(x, repeats), plan_forward(x, y, norm)))
        return y, mean, inverse
    statistics, (output, writing) = plans
    y = torch.empty_like(x, memory_format=output)
    with on_device(x):
        mean, inverse = run_statistics(statistics, x, running_mean, running_var, momentum, eps)
        affine = mean, inverse, weight.contiguous(), bias.contiguous()
        writing.launch((y, mean, inverse), *writing.fields(x, y), affine, *writing.sizes, eps)
    return y, mean, inverse


class Backward(NamedTuple):
    """How gradients are taken: sums in parts, then the gradient of x in the format `output`; `share`: 1 / count."""

    output: torch.memory_format
    sums: Pass
    gradient: Pass
    share: float


BACKWARD: Plans[Backward] = Plans()


def plan_backward(grad_y: Tensor, x: Tensor, grad_x: Tensor, norm: Norm) -> Backward:
    """Plan both passes over the gradient."""
    layout = layout_of(grad_x) or "channels_first"
    sums = plan_pass(norm_kernels.backward_sums, (grad_y, x), layout, MAX_PARTS, NORM=norm)
    gradient = plan_pass(norm_kernels.backward, (grad_y, x, grad_x), layout, NORM=norm)
    return Backward(output_format(x), sums, gradient, x.shape[1] / x.numel())


class NormGradients(NamedTuple):
    """Gradient of x, and those of bias and weight, float32: together (2, C), and each (C,)."""

    x: Tensor
    sums: Tensor
    rows: tuple[Tensor, ...]


def norm_backward(grad_y: Tensor, x: Tensor, affine: Affine, eps: float, norm: Norm) -> NormGradients:
    """Gradients of x, bias and weight."""
    key = layout_key(grad_y), layout_key(x), vectors_key(*affine), norm, x.get_device()
    plan, channels = BACKWARD.get(key), x.shape[1]
    grad_x = output_like(x) if plan is None else torch.empty_like(x, memory_format=plan.output)
    if plan is None:
        if not x.numel():
            zeros = x.new_zeros((2, channels), dtype=torch.float32)
            return NormGradients(grad_x, zeros, zeros.unbind())
        plan = BACKWARD.keep(key, plan_backward(grad_y, x, grad_x, norm))
    _, summing, writing, share = plan
    affine = contiguous(affine)
    programs = summing.programs
    shape = (2, channels) if programs == 1 else (2, programs, channels)
    parts = x.new_empty(shape, dtype=torch.float32)
    with on_device(x):
        fields = summing.fields(grad_y, x)
        summing.launch((parts,), *fields, affine, parts, *summing.sizes, eps)
        sums = parts.sum(1) if parts.ndim == 3 else parts
        rows = sums.unbind()
        fields = writing.fields(fields[0][0], fields[1][0], grad_x)
        writing.launch((grad_x, sums), *fields, affine, rows, *writing.sizes, eps, share)
    return NormGradients(grad_x, sums, rows)
