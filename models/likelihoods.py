"""Image likelihoods p(x given z): log-probability, mean and samples of images in [0, 1].

A `...Spec` is the configured choice (how many parameter channels, how to build), a row of `LIKELIHOODS`; the object it
builds holds the parameters of one batch. Both follow the protocols of `models/output.py`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kernels.ops import SOFT_CLAMPED, Ops
from kernels.reference.backend import REFERENCE
from kernels.reference.mixture import MIN_LOG_SCALE, coupling, parameters_per_component
from models.distributions import DiagonalGaussian
from models.fields import Bounds, added_later, bounded, require_bounds
from models.output import LikelihoodSpec

BITS = Bounds(1, 8)
"""Of a pixel value: images have 8."""
NVAE_EDGE, VDVAE_EDGE = 0.99, 0.999
"""Pixels in [-1, 1] above which the published codes take the open upper bin."""
VDVAE_UNIFORM = 1e-5
"""VDVAE draws a pixel from uniform noise that stays so far from 0 and 1."""
PIXEL_LEVELS = 255


def _sum_pixels(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


@dataclass(frozen=True)
class Bernoulli:
    """Independent Bernoulli pixels with `logits` (B, C, H, W); accepts binary images only."""

    logits: Tensor
    ops: Ops = REFERENCE

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x given z): (B,) nats.

        Raises:
            ValueError: x is not binary.
        """
        return self.ops.bernoulli_log_prob(self.logits, x)

    def mean(self) -> Tensor:
        """Probability of a one, (B, C, H, W)."""
        return torch.sigmoid(self.logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A binary draw (B, C, H, W)."""
        return torch.bernoulli(self.mean(), generator=generator)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal pixels: `mean_image` and `log_scale` (B, C, H, W) or a constant, x in [0, 1].

    With a fixed scale s, -log p(x given z) = squared error / (2 s^2) + constant: the mean-squared-error loss.
    """

    mean_image: Tensor
    log_scale: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, summed over pixels: (B,) nats; a density, so no bits per dimension."""
        residual = (x - self.mean_image) * torch.exp(-self.log_scale)
        return _sum_pixels(-0.5 * residual.square() - self.log_scale - 0.5 * math.log(2 * math.pi))

    def mean(self) -> Tensor:
        """Mean image (B, C, H, W), clamped to [0, 1]."""
        return self.mean_image.clamp(0, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw (B, C, H, W), not clamped."""
        noise = torch.empty_like(self.mean_image).normal_(generator=generator)
        return self.mean_image + self.log_scale.exp() * noise


@dataclass(frozen=True)
class SoftClampedNormal:
    """NVAE's Normal decoder: density of 2x - 1 under soft-clamped mean and log scale (B, C, H, W)."""

    gaussian: DiagonalGaussian

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of 2x - 1, summed over pixels: (B,) nats; a density, so no bits per dimension."""
        return _sum_pixels(self.gaussian.log_prob(2 * x - 1))

    def mean(self) -> Tensor:
        """Mean image (B, C, H, W), clamped to [0, 1]."""
        return (self.gaussian.mean / 2 + 0.5).clamp(0, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw (B, C, H, W), clamped to [0, 1]."""
        noise = torch.empty_like(self.gaussian.mean).normal_(generator=generator)
        return ((self.gaussian.mean + self.gaussian.scale * noise) / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class DiscretizedLogisticMixture:
    """Mixture of logistics, integrated over the 2^bits levels (Salimans et al. 2017, PixelCNN++).

    `parameters` (B, P, H, W) are laid out as `kernels.ops.LogisticMixtureLogProb` says. For three
    channels the means of green and blue are shifted by the values of the channels before them.
    """

    parameters: Tensor
    mixtures: int
    bits: int
    ops: Ops
    original_edges: bool = False
    original_temperature: bool = False
    vdvae_rules: bool = False

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x given z) of images at the levels k / (2^bits - 1): (B,) nats; by VDVAE's rules also at 8-bit ones."""
        edge = VDVAE_EDGE if self.vdvae_rules else NVAE_EDGE if self.original_edges else None
        x = vdvae_levels(x, self.bits) if self.vdvae_rules else x
        return self.ops.logistic_mixture_log_prob(self.parameters, x, bits=self.bits, published_edge=edge)

    def mean(self) -> Tensor:
        """Mean of the clamped mixture, (B, C, H, W); see `kernels.ops.LogisticMixtureMean`."""
        return self.ops.logistic_mixture_mean(self.parameters, channels=self._channels)

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw at the levels (B, C, H, W): a component per pixel, then channel by channel.

        `temperature` t sharpens the choice of components (weights^(1/t)) and multiplies their scales, so that t < 1
        draws closer to the modes; with `original_temperature` it divides the scales, as the published NVAE code does.
        By VDVAE's rules a channel is not rounded before the next one sees it, and the image is cut to 8-bit levels.
        """
        weights, means, scales, coefficients = self._components()
        if temperature != 1.0:
            powers = weights ** (1 / temperature)
            weights = powers / powers.sum(1, keepdim=True)
            scales = scales / temperature if self.original_temperature else scales * temperature
        flat = weights.movedim(1, -1).flatten(0, 2)  # (B H W, K)
        picked = torch.multinomial(flat, 1, generator=generator).view(weights[:, :1].movedim(1, -1).shape)
        picked = picked.movedim(-1, 1)  # (B, 1, H, W)
        chosen = [c.gather(1, picked) for c in coefficients]
        channels: list[Tensor] = []  # each (B, 1, H, W)
        for index in range(means.shape[1]):
            mean = means[:, index].gather(1, picked) + coupling(chosen, channels)
            uniform = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            if self.vdvae_rules:
                uniform = VDVAE_UNIFORM + (1 - 2 * VDVAE_UNIFORM) * uniform
            value = (mean + scales[:, index].gather(1, picked) * torch.logit(uniform, eps=1e-7)).clamp(-1, 1)
            channels.append(value if self.vdvae_rules else self._rounded(value))
        drawn = torch.cat(channels, dim=1) / 2 + 0.5
        return (drawn * PIXEL_LEVELS).floor() / PIXEL_LEVELS if self.vdvae_rules else drawn

    @property
    def _channels(self) -> int:
        return 3 if self.parameters.shape[1] == parameters_per_component(3) * self.mixtures else 1

    def _rounded(self, value: Tensor) -> Tensor:
        """Pixels in [-1, 1] at the nearest level."""
        levels = 2**self.bits - 1
        return ((value / 2 + 0.5) * levels).round() / levels * 2 - 1

    def _components(self) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Weights (B, K, H, W), means and scales (B, C, K, H, W), and tanh coefficients, each (B, K, H, W)."""
        b, _, h, w = self.parameters.shape
        mixtures, channels = self.mixtures, self._channels
        parameters = self.parameters.to(torch.promote_types(self.parameters.dtype, torch.float32))
        weights = torch.softmax(parameters[:, :mixtures], dim=1)
        rest = parameters[:, mixtures:].reshape(b, channels, -1, mixtures, h, w)
        scales = rest[:, :, 1].clamp_min(MIN_LOG_SCALE).exp()
        coefficients = tuple(torch.tanh(rest[:, c, 2]) for c in range(3)) if channels == 3 else ()
        return weights, rest[:, :, 0], scales, coefficients


def vdvae_levels(x: Tensor, bits: int) -> Tensor:
    """Images in [0, 1], at 8-bit levels or those of `bits`, at the levels of the published VDVAE code.

    It cuts the last bits of 8-bit pixels: level k of 5 bits is 8 k / 255, while bins are 2 / 31 wide in [-1, 1], as if
    it were k / 31. The probabilities of its 5-bit levels do not sum to one.
    """
    if bits >= 8:
        return x
    step = 2 ** (8 - bits)
    return (x * (PIXEL_LEVELS / step) + 1e-3).floor() * (step / PIXEL_LEVELS)


class ConfiguredLikelihood(LikelihoodSpec):
    """What the harness asks of a spec besides building it; its subclasses are frozen dataclasses.

    `bits` of a pixel value of the images that the model sees. `binary`: they are binarised. `over_levels`: it is a
    probability of the 2^bits integer levels, so that bits per dimension have a meaning.
    """

    bits: int = 8
    binary: ClassVar[bool] = False
    over_levels: ClassVar[bool] = False

    @property
    def input_bits(self) -> int:
        """Bits of a pixel value of the images that the model is given, where they are not those that are scored."""
        return self.bits

    @property
    def variant(self) -> str:
        """The settings under which the same images have other values, as text: rows of two variants do not compare."""
        return ""


@dataclass(frozen=True)
class BernoulliSpec(ConfiguredLikelihood):
    """Bernoulli pixels; images must be binary."""

    binary: ClassVar[bool] = True

    def parameter_channels(self, channels: int) -> int:
        """One logit per value."""
        return channels

    def build(self, parameters: Tensor, ops: Ops) -> Bernoulli:
        """Bernoulli with logits `parameters` (B, C, H, W)."""
        return Bernoulli(parameters, ops)


@dataclass(frozen=True)
class GaussianSpec(ConfiguredLikelihood):
    """Normal pixels with a fixed scale in units of the [0, 1] range, or `scale = "learned"` per value.

    A learned log scale is clamped below at -7, so that constant pixels cannot drive the density to infinity.
    """

    scale: float | Literal["learned"] = bounded(1.0, Bounds(1e-6, 1e6))

    def __post_init__(self) -> None:
        require_bounds(self)
        if isinstance(self.scale, str) and self.scale != "learned":
            raise ValueError(f"scale: expected a number > 0 or 'learned', got {self.scale!r}")

    def parameter_channels(self, channels: int) -> int:
        """One mean per value, and one log scale where it is learned."""
        return 2 * channels if self.scale == "learned" else channels

    def build(self, parameters: Tensor, ops: Ops) -> Gaussian:
        """Gaussian with means (and log scales) in `parameters`."""
        if self.scale == "learned":
            mean, log_scale = parameters.float().chunk(2, dim=1)
            return Gaussian(mean, log_scale.clamp_min(MIN_LOG_SCALE))
        log_scale = torch.full((), math.log(float(self.scale)), dtype=parameters.dtype, device=parameters.device)
        return Gaussian(parameters, log_scale)


@dataclass(frozen=True)
class SoftClampedNormalSpec(ConfiguredLikelihood):
    """NVAE's Normal decoder (one mixture component): soft-clamped mean and log scale, density of 2x - 1.

    `bits` says how finely the images are quantised; the density is the same.
    """

    bits: int = bounded(8, BITS)

    def parameter_channels(self, channels: int) -> int:
        """Mean and log scale per value."""
        return 2 * channels

    def build(self, parameters: Tensor, ops: Ops) -> SoftClampedNormal:
        """Normal with the raw parameters (B, 2 C, H, W): means, then log scales."""
        mean, log_scale = parameters.chunk(2, dim=1)
        return SoftClampedNormal(DiagonalGaussian.from_raw(mean, log_scale, SOFT_CLAMPED))


@dataclass(frozen=True)
class LogisticMixtureSpec(ConfiguredLikelihood):
    """Discretised mixture of logistics with `mixtures` components over 2^bits levels, 1 or 3 channels.

    `original_edges` and `original_temperature` reproduce two errors of the published NVAE code: the right edge that
    also catches the level below it, and the temperature that divides the scales of sampled pixels. `vdvae_rules` are
    those of the published VDVAE code: the density where a bin holds at most 1e-5, 5-bit levels whose probabilities do
    not sum to one, of images that the encoder sees with 8 bits, and pixels that are cut, not rounded, when drawn.
    """

    mixtures: int = bounded(10, Bounds(1, 32))
    bits: int = bounded(8, BITS)
    original_edges: bool = False
    original_temperature: bool = False
    vdvae_rules: bool = added_later(False)
    over_levels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_bounds(self)
        if self.vdvae_rules and (self.original_edges or self.original_temperature):
            raise ValueError("logistic-mixture likelihood: expected VDVAE's rules or NVAE's, got both")

    @property
    def input_bits(self) -> int:
        """By VDVAE's rules the model is given 8-bit images, of which fewer bits may be scored."""
        return 8 if self.vdvae_rules else self.bits

    @property
    def variant(self) -> str:
        """Bits, and whose edges."""
        rules = ", original edges" if self.original_edges else ", VDVAE's rules" if self.vdvae_rules else ""
        return f"bits={self.bits}{rules}"

    def parameter_channels(self, channels: int) -> int:
        """10 K for three channels, 3 K for one.

        Raises:
            ValueError: another number of channels.
        """
        if channels not in (1, 3):
            raise ValueError(f"logistic-mixture likelihood: expected 1 or 3 image channels, got {channels}")
        return parameters_per_component(channels) * self.mixtures

    def build(self, parameters: Tensor, ops: Ops) -> DiscretizedLogisticMixture:
        """The mixture with `parameters` (B, P, H, W)."""
        rules = self.original_edges, self.original_temperature, self.vdvae_rules
        return DiscretizedLogisticMixture(parameters, self.mixtures, self.bits, ops, *rules)


LIKELIHOODS: dict[str, type[ConfiguredLikelihood]] = {
    "bernoulli": BernoulliSpec,
    "gaussian": GaussianSpec,
    "soft-clamped-normal": SoftClampedNormalSpec,
    "logistic-mixture": LogisticMixtureSpec,
}


def likelihood_name(spec: ConfiguredLikelihood) -> str:
    """The key of `LIKELIHOODS` under which a spec of this kind stands."""
    return next(name for name, kind in LIKELIHOODS.items() if type(spec) is kind)


def nvae_rules(spec: ConfiguredLikelihood) -> ConfiguredLikelihood:
    """`spec` as the published NVAE code computes it: with its right edge; other specs have one rule only."""
    return dataclasses.replace(spec, original_edges=True) if isinstance(spec, LogisticMixtureSpec) else spec


def vdvae_rules(spec: ConfiguredLikelihood) -> ConfiguredLikelihood:
    """`spec` as the published VDVAE code computes it; other specs have one rule only."""
    return dataclasses.replace(spec, vdvae_rules=True) if isinstance(spec, LogisticMixtureSpec) else spec
