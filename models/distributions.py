"""Diagonal Gaussians over latents: the mathematics in plain PyTorch, float type of the inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.ops import GaussianForm


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normals with mean and log_scale (log standard deviation) of equal shape (B, ...)."""

    mean: Float[Tensor, "*shape"]
    log_scale: Float[Tensor, "*shape"]

    @classmethod
    def from_raw(cls, mean: Tensor, log_scale: Tensor, form: GaussianForm) -> DiagonalGaussian:
        """The Gaussian that raw network outputs stand for in `form` (residual offsets already added)."""
        if form.soft_clamp is not None:
            c = form.soft_clamp
            mean, log_scale = c * torch.tanh(mean / c), c * torch.tanh(log_scale / c)
        if form.scale_floor:
            log_scale = torch.log(log_scale.exp() + form.scale_floor)
        return cls(mean, log_scale)

    @property
    def scale(self) -> Tensor:
        """Standard deviation."""
        return self.log_scale.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density per variable, nats."""
        return -0.5 * ((z - self.mean) / self.scale).square() - self.log_scale - 0.5 * math.log(2 * math.pi)

    def kl(self, prior: DiagonalGaussian) -> Tensor:
        """KL(self, prior) per variable, nats."""
        log_ratio = self.log_scale - prior.log_scale
        shift = (self.mean - prior.mean) / prior.scale
        return 0.5 * (shift.square() + torch.expm1(2 * log_ratio)) - log_ratio
