"""How near a reconstruction is to its original, per image, on 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from benchmarks.records.record import Measurement
from benchmarks.records.uncertainty import per_image

PEAK = 255.0


def mse_per_image(reconstructions: Tensor, originals: Tensor) -> Float64[Tensor, " N"]:
    """Mean over pixels and channels of the squared error of 8-bit images (N, C, H, W), pixel range 0-1: (N,).

    Raises:
        ValueError: different shapes, or pixels that are not uint8.
    """
    if reconstructions.shape != originals.shape or {reconstructions.dtype, originals.dtype} != {torch.uint8}:
        kinds = [f"{images.dtype} {tuple(images.shape)}" for images in (reconstructions, originals)]
        raise ValueError(f"expected uint8 images of one shape, got {' and '.join(kinds)}")
    error = (reconstructions.double() - originals.double()) / PEAK
    return error.square().flatten(1).mean(dim=1)


def psnr_per_image(reconstructions: Tensor, originals: Tensor) -> Float64[Tensor, " N"]:
    """-10 log10 of the squared error (0-1): (N,) dB; a perfect copy counts as one level off in one value."""
    smallest = 1 / (PEAK**2 * originals[0].numel())
    return -10 * mse_per_image(reconstructions, originals).clamp_min(smallest).log10()


PER_IMAGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse_per_image, "psnr": psnr_per_image}
"""Values (N,) of 8-bit reconstructions beside their originals, (N, C, H, W) each, by the metric's name."""


def values_per_image(reconstructions: Tensor, originals: Tensor) -> dict[str, np.ndarray]:
    """Every metric of `PER_IMAGE` for every image, (N,) each."""
    return {name: values(reconstructions, originals).cpu().numpy() for name, values in PER_IMAGE.items()}


def reconstruction_metrics(values: Mapping[str, np.ndarray], seed: int) -> list[Measurement]:
    """Means of values per image (N,), with bootstrap intervals over images keyed by `seed`."""
    return [per_image(name, of_images, seed) for name, of_images in values.items()]
