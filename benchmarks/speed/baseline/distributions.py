"""Distributions of the plain NVAE, every intermediate value a tensor in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.likelihoods import BernoulliSpec, LogisticMixtureSpec
from models.output import LikelihoodSpec

SOFT_CLAMP = 5.0
SCALE_FLOOR = 0.01
MIN_LOG_SCALE = -7.0


def soft_clamp(x: Tensor) -> Tensor:
    """5 tanh(x / 5)."""
    return SOFT_CLAMP * torch.tanh(x / SOFT_CLAMP)


class PlainNormal:
    """Diagonal Gaussian of raw mean and log scale (B, Z, h, w), both soft-clamped; `temperature` times the scale."""

    def __init__(self, raw_mean: Tensor, raw_log_scale: Tensor, temperature: float = 1.0) -> None:
        self.mean = soft_clamp(raw_mean)
        self.scale = torch.exp(soft_clamp(raw_log_scale)) + SCALE_FLOOR
        if temperature != 1.0:
            self.scale = self.scale * temperature

    def draw(self, noise: Tensor) -> Tensor:
        """Mean + scale * noise."""
        return self.mean + self.scale * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density per variable, nats."""
        normalised = (z - self.mean) / self.scale
        return -0.5 * normalised * normalised - 0.5 * math.log(2 * math.pi) - torch.log(self.scale)

    def kl(self, other: PlainNormal) -> Tensor:
        """KL(self, other) per variable, nats."""
        shift = (self.mean - other.mean) / other.scale
        ratio = self.scale / other.scale
        return 0.5 * (shift * shift + ratio * ratio) - 0.5 - torch.log(ratio)


@dataclass(frozen=True)
class PlainBernoulli:
    """Independent Bernoulli pixels with `logits` (B, C, H, W)."""

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x given z): (B,) nats."""
        return -F.binary_cross_entropy_with_logits(self.logits, x, reduction="none").sum((1, 2, 3))

    def mean(self) -> Tensor:
        """Probability of a one, (B, C, H, W)."""
        return torch.sigmoid(self.logits)


@dataclass(frozen=True)
class PlainLogisticMixture:
    """Discretised mixture of logistics for colour images (Salimans et al. 2017), by the published NVAE code's rules.

    Its values equal `models.likelihoods` wherever the two sigmoids differ by more than 1e-5: there the published code
    takes the logarithm of the difference, elsewhere the density at the centre; ours is exact throughout.
    """

    parameters: Tensor
    spec: LogisticMixtureSpec

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x given z): (B,) nats; every term is materialised as (B, 3, K, H, W)."""
        logits, means, log_scales, coefficients = self._components()
        pixels = (2 * x - 1).unsqueeze(2)  # (B, 3, 1, H, W)
        red, green = pixels[:, 0], pixels[:, 1]
        green_mean = means[:, 1] + coefficients[:, 0] * red
        blue_mean = means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green
        centred = pixels - torch.stack((means[:, 0], green_mean, blue_mean), dim=1)
        per_component = self._level_log_prob(centred, log_scales, pixels).sum(1)  # (B, K, H, W)
        return torch.logsumexp(per_component + F.log_softmax(logits, dim=1), dim=1).sum((1, 2))

    def mean(self) -> Tensor:
        """Mean image (B, 3, H, W): weighted means and coefficients, coupled and clamped."""
        logits, means, _, coefficients = self._components()
        weights = torch.softmax(logits, dim=1).unsqueeze(1)
        red, green, blue = (weights * means).sum(2).unbind(1)
        c0, c1, c2 = (weights * coefficients).sum(2).unbind(1)
        red = red.clamp(-1, 1)
        green = (green + c0 * red).clamp(-1, 1)
        blue = (blue + c1 * red + c2 * green).clamp(-1, 1)
        return torch.stack((red, green, blue), dim=1) / 2 + 0.5

    def _components(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, K, H, W); means, clamped log scales and coefficients, (B, 3, K, H, W) each."""
        k = self.spec.mixtures
        batch, _, height, width = self.parameters.shape
        rest = self.parameters[:, k:].reshape(batch, 3, 3 * k, height, width)
        log_scales = rest[:, :, k : 2 * k].clamp(min=MIN_LOG_SCALE)
        return self.parameters[:, :k], rest[:, :, :k], log_scales, torch.tanh(rest[:, :, 2 * k :])

    def _level_log_prob(self, centred: Tensor, log_scales: Tensor, pixels: Tensor) -> Tensor:
        """Log probability of each pixel's level under each component."""
        half = 1 / (2**self.spec.bits - 1)
        inverse = torch.exp(-log_scales)
        upper, lower = inverse * (centred + half), inverse * (centred - half)
        difference = torch.sigmoid(upper) - torch.sigmoid(lower)
        middle = inverse * centred
        log_density = middle - log_scales - 2 * F.softplus(middle)
        interior = torch.where(
            difference > 1e-5, torch.log(torch.clamp(difference, min=1e-10)), log_density + math.log(2 * half)
        )
        highest = 0.99 if self.spec.original_edges else 1 - half
        above = torch.where(pixels > highest, -F.softplus(lower), interior)
        return torch.where(pixels < -0.999, upper - F.softplus(upper), above)


PlainLikelihood = PlainBernoulli | PlainLogisticMixture


def plain_likelihood(spec: LikelihoodSpec, parameters: Tensor) -> PlainLikelihood:
    """The likelihood that `spec` names, with the decoder's output (B, P, H, W).

    Raises:
        ValueError: neither Bernoulli nor a logistic mixture.
    """
    if isinstance(spec, BernoulliSpec):
        return PlainBernoulli(parameters)
    if isinstance(spec, LogisticMixtureSpec):
        return PlainLogisticMixture(parameters, spec)
    raise ValueError(f"plain NVAE: expected a Bernoulli or logistic-mixture likelihood, got {type(spec).__name__}")
