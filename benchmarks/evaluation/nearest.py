"""The training image that is nearest to an image: whether a model draws anew or from memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.data import picked
from benchmarks.metrics.reconstruction import mse_per_image

VALUES_TOGETHER = 1 << 24
"""Pixel values of training images that are looked at together: 64 MiB in float32."""


@dataclass(frozen=True)
class Nearest:
    """Of N images: the nearest training image of each (N,) by its index, and its mean squared error (N,), 0-1."""

    index: Tensor
    error: Tensor


def nearest(images: Tensor, training: Tensor) -> Nearest:
    """The training image (M, C, H, W) of least squared error to each 8-bit image (N, C, H, W).

    Found in float32, so that of several that are equally near any may be named; the error is exact, 0 for a copy.
    """
    sought, together = _flat(images), max(1, VALUES_TOGETHER // images[0].numel())
    least = torch.full((len(images),), torch.inf)
    index = torch.zeros(len(images), dtype=torch.int64)
    for start in range(0, len(training), together):
        found, place = torch.cdist(sought, _flat(picked(training, slice(start, start + together)))).min(dim=1)
        index = torch.where(found < least, place + start, index)
        least = torch.minimum(found, least)
    return Nearest(index, mse_per_image(training[index], images))


def _flat(images: Tensor) -> Tensor:
    """Images as vectors (N, C H W) around 0, where float32 is finest."""
    return images.flatten(1).float() - 127.5
