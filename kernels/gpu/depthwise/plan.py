"""Launches the Triton kernels of depthwise convolutions: tiles and programs, decided once here.

Maps are read densely and channels-last; others are copied. Taps are given as (K^2, C) float32, a weight (C, 1, K, K)
turned so that channels are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.gpu.depthwise import kernels
from kernels.gpu.latent_plan import MAX_BLOCKS, warp_lanes
from kernels.gpu.launches import Launch, Plans, layout_key, on_device

CHANNELS = 64
"""Of one program, at most."""
PIXELS = 4
"""Side by side, of one program, at most; K - 1 more are loaded around them."""
PER_THREAD = 2
"""Channels of one thread, with all their taps in registers."""
ROWS = (8, 4)
"""Whose loads are under way together: the first of these that divides an image's rows, or the last."""
MERGED = 4096
"""Parts of the channels that one program merges together."""
PROGRAMS = 2048
"""About four for each that an H100 runs at a time."""
PARTS = 528
"""Programs of a weight's gradient, as many as an H100 runs at a time; more would write more parts."""


@dataclass(frozen=True)
class Tile:
    """What a program works on.

    Args:
        kernel: K, odd.
        turned: the taps are taken in reverse, as in the gradient of the input.
        channels, width: of the maps.
        lanes, columns: pixels side by side and channels of one program.
        rows: of the maps, loaded together.
        full: no program reaches past the last channel, nor its rows past the last row of an image.
    """

    kernel: int
    turned: bool
    channels: int
    width: int
    lanes: int
    columns: int
    rows: int
    full: bool

    def warps(self, lanes: int) -> int:
        """Warps of `lanes` threads in one program."""
        return max(1, self.lanes * self.columns // PER_THREAD // lanes)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number."""
    return 1 << (number - 1).bit_length()


class Plan(NamedTuple):
    """A launch, the strips of all images, those of one program, rows of an image, programs of a channel."""

    launch: Launch
    units: int
    steps: int
    height: int
    programs: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers that a kernel takes."""
        return self.units, self.steps, self.height


def plan_of(function: object, x: Tensor, kernel: int, turned: bool, programs: int) -> Plan:
    """A kernel over maps like x (B, C, h, w), by about so many programs."""
    batch, channels, height, width = x.shape
    lanes, columns = min(PIXELS, power_of_two(width)), min(CHANNELS, power_of_two(channels))
    rows = next((some for some in ROWS if height % some == 0), ROWS[-1])
    full = height % rows == 0 and channels % columns == 0
    tile = Tile(kernel, turned, channels, width, lanes, columns, rows, full)
    units, blocks = batch * -(-width // lanes), -(-channels // columns)
    steps = -(-units // max(1, min(units, programs // blocks)))
    parts = -(-units // steps)
    if parts > MAX_BLOCKS or units >= 2**31:
        raise ValueError(f"expected activations of fewer pixels, got {tuple(x.shape)}")
    launch = Launch(function, (blocks, parts), tile, num_warps=tile.warps(warp_lanes()))
    return Plan(launch, units, steps, height, parts)


def dense(x: Tensor) -> Tensor:
    """The map, densely and channels-last."""
    return x.contiguous(memory_format=torch.channels_last)


def taps_of(weight: Tensor) -> Tensor:
    """(C, 1, K, K) as (K^2, C) float32."""
    return weight.flatten(1).t().contiguous().float()


class Sums(NamedTuple):
    """How a weight's gradient is taken: in parts, then merged."""

    parts: Plan
    merge: Launch


FILTERS: Plans[Plan] = Plans()
GRADIENTS: Plans[Sums] = Plans()


def convolve(x: Tensor, taps: Tensor, turned: bool = False) -> Tensor:
    """The convolution of x (B, C, h, w) with taps (K^2, C), padded by K // 2; `turned`: its gradient from x instead."""
    x = dense(x)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if not x.numel():
        return y
    key = layout_key(x), taps.shape, turned, x.get_device()
    plan = FILTERS.get(key)
    if plan is None:
        side = round(taps.shape[0] ** 0.5)
        plan = FILTERS.keep(key, plan_of(kernels.forward, x, side, turned, PROGRAMS))
    with on_device(x):
        plan.launch((y, taps), x, y, taps, *plan.sizes)
    return y


def plan_sums(x: Tensor, kernel: int) -> Sums:
    """The gradient of a weight over maps like x (B, C, h, w)."""
    plan, channels = plan_of(kernels.weight_gradient, x, kernel, False, PARTS), x.shape[1]
    rows = power_of_two(plan.programs)
    columns = max(1, min(MERGED // rows, CHANNELS, power_of_two(channels)))
    grid = -(-channels // columns), kernel * kernel
    return Sums(plan, Launch(kernels.merge, grid, *plan.launch.constants, rows, columns))


def weight_gradient(grad_y: Tensor, x: Tensor, kernel: int) -> Tensor:
    """The gradient (C, 1, K, K) float32 of a weight, from those of y and x (B, C, h, w); the same bits every time."""
    grad_y, x = dense(grad_y), dense(x)
    channels, shape = x.shape[1], (x.shape[1], 1, kernel, kernel)
    if not x.numel():
        return x.new_zeros(shape, dtype=torch.float32)
    key = layout_key(grad_y), layout_key(x), kernel, x.get_device()
    plan = GRADIENTS.get(key)
    if plan is None:
        plan = GRADIENTS.keep(key, plan_sums(x, kernel))
    summing, merge = plan
    parts = x.new_empty((summing.programs, kernel * kernel, channels), dtype=torch.float32)
    gradient = x.new_empty(shape, dtype=torch.float32)
    with on_device(x):
        summing.launch((parts,), grad_y, x, parts, *summing.sizes)
        merge((parts, gradient), parts, gradient, summing.programs)
    return gradient
