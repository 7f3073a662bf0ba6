"""VDVAE (Child 2021): a bottom-up encoder, and a decoder that draws a latent group in every block."""

from __future__ import annotations

from torch import Tensor

from kernels.ops import Ops
from models.output import (
    Draw,
    Encoding,
    ImageShape,
    LatentGroup,
    LatentShape,
    LikelihoodSpec,
    Model,
    Temperature,
    draw_group,
    sample_group,
)
from models.vdvae.blocks import Parameters
from models.vdvae.config import VDVAEConfig
from models.vdvae.towers import Activations, Decoder, Encoder


class VDVAE(Model):
    """Very deep VAE. Attribute names and their order are those of the released checkpoints."""

    def __init__(self, config: VDVAEConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        super().__init__(image, likelihood, ops, padding(image, config.side))
        self.config = config
        self.encoder = Encoder(config, image.channels, ops)
        self.decoder = Decoder(config, likelihood.parameter_channels(image.channels), ops)

    @property
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        """Shapes of the latent groups, coarse -> fine: one a block of the decoder."""
        sides = (layer.resolution for layer in self.config.decoder)
        return tuple(LatentShape(self.config.latent_channels, side, side) for side in sides)

    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        """Bottom-up pass over padded images x, then the top-down pass with z from the posterior."""
        return self.infer(self.features(x), draw)

    def features(self, x: Tensor) -> Activations:
        """Bottom-up pass over padded images x."""
        return self.encoder(x)

    def infer(self, features: Activations, draw: Draw) -> Encoding:
        """Top-down pass with z from the posterior."""
        groups: list[LatentGroup] = []

        def latent(index: int, prior: Parameters, posterior: Parameters | None) -> Tensor:
            assert posterior is not None
            groups.append(draw_group(self.ops, draw, index, posterior, prior))
            return groups[-1].z  # (B, Z, R, R)

        state = self.decoder(len(features[self.config.side]), latent, features)
        return Encoding(state, tuple(groups))

    def decode_parameters(self, state: Tensor) -> Tensor:
        """Likelihood parameters (B, P, H, W) of the padded image."""
        return self.decoder.out_net(state)

    def sample_state(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Tensor:
        """Top-down pass of `n` images with z from the prior, whose scale is multiplied by `temperature`."""

        def latent(index: int, prior: Parameters, posterior: Parameters | None) -> Tensor:
            return sample_group(self.ops, draw, index, prior, temperature=temperature)

        return self.decoder(n, latent)


def padding(image: ImageShape, side: int) -> int:
    """Zero pixels on each side of the image with which it has the side that the layers are for.

    Raises:
        ValueError: no padding fits.
    """
    pad, odd = divmod(side - image.height, 2)
    if image.height != image.width or odd or pad < 0:
        raise ValueError(
            f"encoder_blocks: expected the side of square images, padded alike on all sides, as its first resolution, "
            f"got {side} for {image.height}x{image.width} images; sides such as {side} or {max(side - 2, 1)} fit"
        )
    return pad
