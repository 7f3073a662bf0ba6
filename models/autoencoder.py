"""The plain autoencoder (AE): a deterministic code, no prior, no ELBO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.ops import Ops
from models.convnet import ConvDecoder, ConvEncoder, ConvNetShape
from models.output import Draw, Encoding, ImageShape, LatentShape, LikelihoodSpec, Model


@dataclass(frozen=True)
class AEConfig:
    """Width at the image, code size, number of poolings, padding."""

    channels: int = 16
    latent_size: int = 32
    halvings: int = 2
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.latent_size < 1:
            raise ValueError(f"latent_size: expected at least 1, got {self.latent_size}")


class AE(Model):
    """Convolutional encoder with max-pooling, code of `latent_size` values, up-sampling decoder."""

    has_prior = False

    def __init__(self, config: AEConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        shape = ConvNetShape(image, config.channels, config.halvings, config.pad)
        super().__init__(image, likelihood, ops, shape.padding)
        self.config = config
        self.encoder = ConvEncoder(shape, config.latent_size)
        self.decoder = ConvDecoder(shape, config.latent_size, likelihood.parameter_channels(image.channels))

    @property
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        """No latent variables: the code is deterministic."""
        return ()

    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        """The code (B, latent_size) of images x; nothing is drawn."""
        return Encoding(self.encoder(x), ())

    def decode_parameters(self, state: Tensor) -> Tensor:
        """Likelihood parameters of codes (B, latent_size)."""
        return self.decoder(state)
