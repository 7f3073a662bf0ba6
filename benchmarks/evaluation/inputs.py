"""What a model sees of many images, and what is worked out of them, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.data import model_input, picked, to_uint8, to_unit
from benchmarks.data.pixels import FULL_BITS
from benchmarks.metrics.reconstruction import values_per_image
from models.likelihoods import ConfiguredLikelihood

VALUES_TOGETHER = 1 << 26
"""Pixel values that are worked on together: 256 MiB in float32."""


@dataclass(frozen=True)
class Inputs:
    """The model's input for 8-bit images (N, C, H, W), made where a slice of it is asked for.

    Of binary likelihoods `images` are the bits, drawn once; else they may lie in a file.
    """

    images: UInt8[Tensor, "N C H W"]
    likelihood: ConfiguredLikelihood
    device: torch.device

    @classmethod
    def of(
        cls, images: Tensor, likelihood: ConfiguredLikelihood, source: torch.Generator, device: torch.device
    ) -> Inputs:
        """The input for these images; binary draws are those of all of them at once."""
        if likelihood.binary:
            parts = (model_input(part, likelihood, source) for part in parts_of(images))
            images = torch.cat([part.to(torch.uint8) for part in parts])
        return cls(images, likelihood, device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> Tensor:
        """The input (B, C, H, W) of some images, on the device."""
        images = picked(self.images, index)
        x = images.float() if self.likelihood.binary else to_unit(images, self.likelihood.input_bits)
        return x.to(self.device)


def parts_of(*sets: Tensor) -> Iterator[Tensor]:
    """Images (B, C, H, W) of one set (N, C, H, W) after another's, as many as fit `VALUES_TOGETHER`, in their order."""
    images = sets[0]
    together = max(1, VALUES_TOGETHER // images[0].numel())
    for start in range(0, len(images), together):
        yield from (picked(one, slice(start, start + together)) for one in sets)


def at_depth(images: Tensor, bits: int) -> Tensor:
    """8-bit images as they look at the likelihood's bit depth; the very images where that is 8."""
    if bits == FULL_BITS:
        return images
    return torch.cat([to_uint8(to_unit(part, bits)) for part in parts_of(images)])


def errors_per_image(reconstructions: Tensor, originals: Tensor) -> dict[str, np.ndarray]:
    """`values_per_image` of any number of images."""
    both = parts_of(reconstructions, originals)
    found = [values_per_image(*pair) for pair in zip(both, both, strict=True)]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
