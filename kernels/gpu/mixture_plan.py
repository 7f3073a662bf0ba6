"""Launches the Triton kernels of the logistic mixture: tiles of pixels, warps, decided once here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.gpu import mixture
from kernels.gpu.latent_plan import Fast, fast_math, new_parts, total, warp_lanes
from kernels.gpu.launches import Launch, Plans, layout_key, on_device
from kernels.reference.mixture import parameters_per_component

MIXTURE_BLOCK = 512
"""Pixels of one program."""


@dataclass(frozen=True)
class Tile:
    """How programs cover the pixels of an image for the logistic mixture.

    Args:
        colours: 1 or 3.
        components: number K of mixture components.
        half: half the distance between two pixel levels in [-1, 1].
        block: pixels of one program.
        full: no program reaches past the end of an image.
        contiguous: the pixels of one channel are contiguous in every tensor.
        per_thread: pixels of one thread; see `pixels_per_thread`.
        fast: whose approximate instructions are used.
    """

    colours: int
    components: int
    half: float
    block: int
    full: bool
    contiguous: bool
    per_thread: int
    fast: Fast

    @property
    def per_colour(self) -> int:
        """Parameters of one colour of one component: mean, log scale, and in colour images a coefficient."""
        return 3 if self.colours == 3 else 2

    def warps(self, lanes: int) -> int:
        """Warps of `lanes` threads in one program."""
        return max(1, self.block // (lanes * self.per_thread))


def pixels_per_thread(element_size: int, contiguous: bool, backward: bool) -> int:
    """Pixels of one thread: 128 bits of contiguous parameters; eight would spill backward, or with strides."""
    return 8 if element_size == 2 and contiguous and not backward else 4


def choose_tile(parameters: Tensor, x: Tensor, bits: int, gradient: Tensor | None) -> Tile:
    """The tile for likelihood parameters (B, P, H, W) and images (B, C, H, W)."""
    colours, size = x.shape[1], x.shape[2] * x.shape[3]
    given = (parameters, x) if gradient is None else (parameters, x, gradient)
    block = min(MIXTURE_BLOCK, max(128, 1 << (size - 1).bit_length()))
    contiguous = all(t.stride(3) == 1 and t.stride(2) == t.shape[3] for t in given)
    return Tile(
        colours=colours,
        components=parameters.shape[1] // parameters_per_component(colours),
        half=1.0 / (2**bits - 1),
        block=block,
        full=size % block == 0,
        contiguous=contiguous,
        per_thread=pixels_per_thread(parameters.element_size(), contiguous, backward=gradient is not None),
        fast=fast_math(parameters),
    )


def plan_launch(kernel: Any, x: Tensor, tile: Tile) -> Launch:
    """Plan a kernel of `kernels.gpu.mixture` with one program for each block of pixels of each image."""
    batch, _, rows, columns = x.shape
    return Launch(kernel, (batch, -(-rows * columns // tile.block)), tile, num_warps=tile.warps(warp_lanes()))


FORWARD: Plans[Launch] = Plans()
BACKWARD: Plans[Launch] = Plans()


def mixture_forward(parameters: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Log probability (B,) in nats, and two log-sum-exps of each pixel (2, B, H W) in bits, float32."""
    batch, _, rows, columns = x.shape
    sums = x.new_empty((2, batch, rows * columns), dtype=torch.float32)
    key = layout_key(parameters), layout_key(x), bits, x.get_device()
    launch = FORWARD.get(key)
    if launch is None:
        if not x.numel():
            return x.new_zeros(batch, dtype=torch.float32), sums
        launch = FORWARD.keep(key, plan_launch(mixture.forward, x, choose_tile(parameters, x, bits, None)))
    parts = new_parts(x, batch, launch.grid[1])
    fields = (parameters, parameters.stride()), (x, x.stride())
    with on_device(x):
        launch((parts, sums), *fields, parts, *sums.unbind(), rows * columns, columns)
        return total(parts), sums


def mixture_backward(upstream: Tensor, parameters: Tensor, x: Tensor, sums: Tensor, bits: int) -> Tensor:
    """Gradient of the parameters; `upstream` (B,) float32 contiguous."""
    gradient = torch.empty_like(parameters)
    key = layout_key(upstream), layout_key(parameters), layout_key(x), layout_key(sums), bits, x.get_device()
    launch = BACKWARD.get(key)
    if launch is None:
        if not x.numel():
            return gradient
        launch = BACKWARD.keep(key, plan_launch(mixture.backward, x, choose_tile(parameters, x, bits, gradient)))
    fields = (parameters, parameters.stride()), (x, x.stride()), (gradient, gradient.stride())
    rows, columns = x.shape[2:]
    with on_device(x):
        launch((gradient,), *fields, upstream, *sums.unbind(), rows * columns, columns)
    return gradient
