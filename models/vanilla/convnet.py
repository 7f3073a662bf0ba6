"""Convolutional encoder and decoder shared by the plain autoencoder and the vanilla VAE."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.output import ImageShape, fitting_pad


@dataclass(frozen=True)
class ConvNetShape:
    """Widths and sizes of the pair: `channels` at the image, doubled at each of `halvings` poolings.

    `pad` None is the least padding with which the image halves that often. `residual_blocks` at each coarser
    resolution stand in place of one plain convolution.
    """

    image: ImageShape
    channels: int
    halvings: int
    pad: int | None
    residual_blocks: int = 0

    def __post_init__(self) -> None:
        if self.channels < 1 or self.halvings < 1 or (self.pad or 0) < 0:
            found = f"{self.channels}, {self.halvings}, {self.pad}"
            raise ValueError(f"expected channels >= 1, halvings >= 1 and pad >= 0, got {found}")

    @property
    def padding(self) -> int:
        """Pixels added on each side."""
        return fitting_pad(self.image, 2**self.halvings, self.pad)

    @property
    def widths(self) -> list[int]:
        """Channels at the image, then after each pooling."""
        return [self.channels * 2**level for level in range(self.halvings + 1)]

    @property
    def bottom(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of the coarsest feature map."""
        factor = 2**self.halvings
        height, width = self.image.height + 2 * self.padding, self.image.width + 2 * self.padding
        return self.widths[-1], height // factor, width // factor


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, without bias: a batch norm follows or has gone before."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch norm, SiLU."""
    return nn.Sequential(_convolution(inputs, outputs), nn.BatchNorm2d(outputs), nn.SiLU())


class ResidualBlock(nn.Module):
    """x + two times (batch norm, SiLU, 3x3 convolution) of it (He et al. 2016, identity mappings)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        parts = [(nn.BatchNorm2d(channels), nn.SiLU(), _convolution(channels, channels)) for _ in range(2)]
        self.branch = nn.Sequential(*(part for three in parts for part in three))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return x + self.branch(x)


def _deepening(channels: int, residual_blocks: int) -> list[nn.Module]:
    """What follows at one resolution: residual blocks with a norm and SiLU of their sum, or one plain block."""
    if not residual_blocks:
        return [_block(channels, channels)]
    return [*(ResidualBlock(channels) for _ in range(residual_blocks)), nn.BatchNorm2d(channels), nn.SiLU()]


class ConvEncoder(nn.Module):
    """Image (B, C, H, W) -> features (B, outputs): convolutions with max-pooling, then a linear layer."""

    def __init__(self, shape: ConvNetShape, outputs: int) -> None:
        super().__init__()
        widths = shape.widths
        layers: list[nn.Module] = [_block(shape.image.channels, widths[0])]
        for narrow, wide in pairwise(widths):
            layers += [nn.MaxPool2d(2), _block(narrow, wide), *_deepening(wide, shape.residual_blocks)]
        self.features = nn.Sequential(*layers)
        channels, height, width = shape.bottom
        self.head = nn.Linear(channels * height * width, outputs)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images x, mapped from [0, 1] to [-1, 1] first."""
        return self.head(self.features(2 * x - 1).flatten(1))


class ConvDecoder(nn.Module):
    """Code (B, inputs) -> likelihood parameters (B, P, H, W): linear layer, then up-sampling convolutions."""

    def __init__(self, shape: ConvNetShape, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bottom = shape.bottom
        channels, height, width = shape.bottom
        self.stem = nn.Linear(inputs, channels * height * width)
        widths = shape.widths[::-1]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += _deepening(wide, shape.residual_blocks)
            layers += [_block(wide, narrow), nn.Upsample(scale_factor=2, mode="nearest")]
        self.features = nn.Sequential(*layers, _block(widths[-1], widths[-1]))
        self.head = nn.Conv2d(widths[-1], outputs, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """Parameters decoded from codes z."""
        return self.head(self.features(self.stem(z).unflatten(1, self.bottom)))
