"""The encoder and decoder of the plain autoencoder and the vanilla VAE: convolutional or an MLP, by configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from kernels.ops import Ops
from models.fields import MOST_HALVINGS, PAD, WIDTH, Bounds, added_later, bounded, require_bounds
from models.output import ImageShape
from models.vanilla.convnet import ConvDecoder, ConvEncoder, ConvNetShape
from models.vanilla.mlp import MLPDecoder, MLPEncoder


@dataclass(frozen=True)
class CoderConfig:
    """Width at the image, number of latents, number of poolings, padding; or the hidden layers of an MLP.

    `residual_blocks` of two convolutions at every coarser resolution stand in place of one plain convolution. `hidden`
    () is the convolutional network. (512,) is the MLP C H W - 512 - latents - 512 - C H W: `channels` and `halvings`
    then mean nothing, and there is nothing to pad for.
    """

    channels: int = bounded(16, WIDTH)
    latent_size: int = bounded(16, WIDTH)
    halvings: int = bounded(2, Bounds(1, MOST_HALVINGS))
    pad: int | None = bounded(None, PAD)
    hidden: tuple[int, ...] = bounded((), WIDTH)
    residual_blocks: int = added_later(0, Bounds(0, 1000))

    def __post_init__(self) -> None:
        require_bounds(self)
        if self.hidden and self.residual_blocks:
            found = f"{self.residual_blocks} with hidden layers"
            raise ValueError(f"residual_blocks: expected none but in the convolutional network, got {found}")
        if self.hidden and self.pad:
            raise ValueError(f"pad: expected none with hidden layers, for an MLP takes any image, got {self.pad}")


class Coders(NamedTuple):
    """Encoder (images -> features), decoder (codes -> likelihood parameters), and the padding that they need."""

    encoder: nn.Module
    decoder: nn.Module
    pad: int


def coders(config: CoderConfig, image: ImageShape, features: int, parameters: int, ops: Ops) -> Coders:
    """The configured pair; the encoder gives `features` values an image, the decoder `parameters` channels."""
    if config.hidden:
        encoder = MLPEncoder(image, config.hidden, features, ops)
        return Coders(encoder, MLPDecoder(image, config.hidden, config.latent_size, parameters), 0)
    shape = ConvNetShape(image, config.channels, config.halvings, config.pad, config.residual_blocks)
    encoder = ConvEncoder(shape, features)
    return Coders(encoder, ConvDecoder(shape, config.latent_size, parameters), shape.padding)
