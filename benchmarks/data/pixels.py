"""Pixels between files and models: the only place that scales or rounds them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from kernels.cpu.pixels import uniform_below
from models.likelihoods import ConfiguredLikelihood

FULL_BITS = 8


def to_unit(images: Tensor, bits: int = FULL_BITS) -> Float32[Tensor, "..."]:
    """8-bit pixels as float32 levels k / (2^bits - 1) in [0, 1]; k = floor(v / 2^(8 - bits)) of the 8-bit value v.

    Raises:
        ValueError: pixels that are not uint8, or bits outside 1..8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}; round images in [0, 1] with to_uint8")
    if not 1 <= bits <= FULL_BITS:
        raise ValueError(f"expected 1 to {FULL_BITS} bits a pixel, got {bits}")
    levels = images if bits == FULL_BITS else images >> (FULL_BITS - bits)
    return torch.true_divide(levels, 2**bits - 1)


def to_uint8(images: Tensor) -> UInt8[Tensor, "..."]:
    """Images in [0, 1] as 8-bit pixels: clamped to [0, 1], times 255, rounded to nearest (ties to even).

    Raises:
        ValueError: images that are not floating point, or hold a NaN.
    """
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point images in [0, 1], got {images.dtype}")
    scaled = images.detach().float().clamp(0, 1) * (2**FULL_BITS - 1)
    if bool(scaled.isnan().any()):
        raise ValueError("expected images in [0, 1], found NaN: the model diverged")
    return scaled.round().to(torch.uint8)


def binarise(x_unit: Float[Tensor, "..."], source: torch.Generator | int) -> Float[Tensor, "..."]:
    """One binary draw per pixel, 1 with probability `x_unit` (dynamic binarisation of grey digits).

    `source` is a generator, or the seed of a fresh one, which is faster. On a CPU the values are those of
    `torch.bernoulli`, which takes four times as long as one and forty times as long as the other.
    """
    if isinstance(source, int):
        return uniform_below(x_unit, source)
    uniform = torch.rand(x_unit.shape, generator=source, dtype=x_unit.dtype, device=x_unit.device)
    return uniform.lt_(x_unit)


def model_input(images: Tensor, likelihood: ConfiguredLikelihood, source: torch.Generator | int) -> Tensor:
    """What a model sees of uint8 images (B, C, H, W): levels in [0, 1], binarised where the likelihood is binary.

    `source` of the binary draws is a generator, or the seed of a fresh one.
    """
    x = to_unit(images, likelihood.input_bits)
    return binarise(x, source) if likelihood.binary else x
