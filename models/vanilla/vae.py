"""The vanilla VAE (Kingma & Welling 2014): one group of Gaussian latents under a standard-normal prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ops import Ops
from models.output import (
    Draw,
    Encoding,
    ImageShape,
    LatentShape,
    LikelihoodSpec,
    Model,
    Temperature,
    draw_group,
    sample_group,
)
from models.vanilla.coders import CoderConfig, coders


@dataclass(frozen=True)
class VAEConfig(CoderConfig):
    """The encoder and decoder; see `CoderConfig`."""


class VAE(Model):
    """The autoencoder's bones with a Gaussian bottleneck of `latent_size` latents."""

    def __init__(self, config: VAEConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        parts = coders(config, image, 2 * config.latent_size, likelihood.parameter_channels(image.channels), ops)
        super().__init__(image, likelihood, ops, parts.pad)
        self.config, self.encoder, self.decoder = config, parts.encoder, parts.decoder

    @property
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        """One group: a vector of latents."""
        return (LatentShape(self.config.latent_size, 1, 1),)

    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        """Posterior of images x and one draw from it."""
        return self.infer(self.features(x), draw)

    def features(self, x: Tensor) -> Tensor:
        """Mean and log scale (B, 2 Z) of the posterior of images x."""
        return self.encoder(x)

    def infer(self, features: Tensor, draw: Draw) -> Encoding:
        """The posterior and one draw from it."""
        mean, log_scale = features[:, :, None, None].chunk(2, dim=1)  # (B, Z, 1, 1) each
        group = draw_group(self.ops, draw, 0, (mean, log_scale), None)
        return Encoding(group.z, (group,))

    def decode_parameters(self, state: Tensor) -> Tensor:
        """Likelihood parameters of latents (B, Z, 1, 1)."""
        return self.decoder(state.flatten(1))

    def sample_state(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Tensor:
        """Latents (n, Z, 1, 1) from the prior N(0, temperature^2)."""
        like = next(self.parameters())
        zero = torch.zeros((), dtype=like.dtype, device=like.device).expand(n, self.config.latent_size, 1, 1)
        return sample_group(self.ops, draw, 0, (zero, zero), temperature=temperature)
