"""The plain autoencoder (AE): a deterministic code, no prior, no ELBO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.ops import Ops
from models.fields import WIDTH, bounded
from models.output import Draw, Encoding, ImageShape, LatentShape, LikelihoodSpec, Model
from models.vanilla.coders import CoderConfig, coders


@dataclass(frozen=True)
class AEConfig(CoderConfig):
    """The encoder and decoder; see `CoderConfig`."""

    latent_size: int = bounded(32, WIDTH)


class AE(Model):
    """Encoder, code of `latent_size` values, decoder."""

    has_prior = False

    def __init__(self, config: AEConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        parts = coders(config, image, config.latent_size, likelihood.parameter_channels(image.channels), ops)
        super().__init__(image, likelihood, ops, parts.pad)
        self.config, self.encoder, self.decoder = config, parts.encoder, parts.decoder

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
