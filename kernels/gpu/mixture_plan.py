"""Launches the Triton kernels of the logistic mixture: tiles of pixels, warps, decided once here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.gpu import mixture
from kernels.gpu.latent_plan import Fast, fast_math, on_device, total, warp_lanes
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


def launch_mixture(kernel: Any, x: Tensor, tile: Tile, *arguments: object) -> None:
    """Run a kernel of `kernels.gpu.mixture` with one program for each block of pixels of each image."""
    batch, _, rows, columns = x.shape
    grid = (batch, -(-rows * columns // tile.block))
    kernel[grid](
        *arguments, rows * columns, columns, TILE=tile, num_warps=tile.warps(warp_lanes()), enable_fp_fusion=True
    )


def mixture_forward(parameters: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Log probability (B,) in nats, and two log-sum-exps of each pixel (2, B, H W) in bits, float32."""
    batch, size = x.shape[0], x.shape[2] * x.shape[3]
    sums = x.new_empty((2, batch, size), dtype=torch.float32)
    if not x.numel():
        return x.new_zeros(batch, dtype=torch.float32), sums
    tile = choose_tile(parameters, x, bits, None)
    parts = x.new_empty((batch, -(-size // tile.block)), dtype=torch.float32)
    fields = (parameters, parameters.stride()), (x, x.stride())
    with on_device(x):
        launch_mixture(mixture.forward, x, tile, *fields, parts, sums[0], sums[1])
        return total(parts), sums


def mixture_backward(upstream: Tensor, parameters: Tensor, x: Tensor, sums: Tensor, bits: int) -> Tensor:
    """Gradient of the parameters; `upstream` (B,) float32 contiguous."""
    gradient = torch.empty_like(parameters)
    if x.numel():
        tile = choose_tile(parameters, x, bits, gradient)
        fields = (parameters, parameters.stride()), (x, x.stride()), (gradient, gradient.stride())
        with on_device(x):
            launch_mixture(mixture.backward, x, tile, *fields, upstream, sums[0], sums[1])
    return gradient
