"""What a model says: latent groups and a likelihood; and how it is asked.

Shape letters: B batch, C image channels, H x W image, Z latent channels, h x w resolution of a latent
group, G number of groups.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.ops import PLAIN, GaussianForm, Ops
from models.distributions import DiagonalGaussian

Temperature = float | Sequence[float]
"""What multiplies the scale of the priors: one number for all groups, or one a group, coarse -> fine."""


@dataclass(frozen=True)
class ImageShape:
    """Channels, height and width of the images a model is built for (unpadded)."""

    channels: int
    height: int
    width: int

    @property
    def dims(self) -> int:
        """Number of values in one image: C H W."""
        return self.channels * self.height * self.width


def fitting_pad(image: ImageShape, factor: int, pad: int | None) -> int:
    """`pad`, or for None the least padding with which both sides divide by `factor`.

    Raises:
        ValueError: the padded sides do not divide; names sizes that work.
    """
    sides = (image.height, image.width)
    fitting = next((p for p in range(factor) if all((side + 2 * p) % factor == 0 for side in sides)), None)
    if pad is None:
        pad = fitting or 0
    for side in sides:
        padded = side + 2 * pad
        if padded % factor or not padded:
            below = max(padded // factor * factor, factor)
            hopeless = "no equal pad on all sides fits, so crop or resize the images"
            raise ValueError(
                f"expected padded image sides that divide by {factor}, such as {below} or {below + factor}, got "
                f"{padded} (pad {pad}); {hopeless if fitting is None else f'set pad to {fitting}'}"
            )
    return pad


@dataclass(frozen=True)
class LatentShape:
    """Channels and resolution of one latent group."""

    channels: int
    height: int
    width: int

    @property
    def count(self) -> int:
        """Number of latent variables of the group."""
        return self.channels * self.height * self.width


class Likelihood(Protocol):
    """p(x given z) of a batch of images; images are in [0, 1]."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x given z), summed over pixels and channels: (B,) nats."""
        ...

    def mean(self) -> Tensor:
        """Mean image (B, C, H, W) in [0, 1]; not rounded."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw of pixels (B, C, H, W)."""
        ...


class LikelihoodSpec(Protocol):
    """Turns decoder output into a `Likelihood`; chosen by config, never by a data set's name."""

    def parameter_channels(self, channels: int) -> int:
        """Decoder output channels needed for `channels` image channels."""
        ...

    def build(self, parameters: Tensor, ops: Ops) -> Likelihood:
        """The likelihood whose parameters are the decoder output (B, P, H, W)."""
        ...


@dataclass(frozen=True)
class Draw:
    """How latents are drawn in one pass.

    Args:
        seed: () int64 on the model's device; with the group index and the sample's index it keys the noise.
        first_sample: index of the batch's first image in its stream.
        log_ratio: also compute log q(z) - log p(z), for the importance-weighted bound.
        noise: external noise per group, from group index and shape, in place of the keyed one.
        at_mean: every z is the mean of its distribution.
        latents: z of the first groups, coarse -> fine, (B, Z, h, w) each, which sampling takes as they are; it draws
            the groups after them, and those that are None, from the prior.
        channels: of each group of `latents`, the indices (K,) of the channels that its z (B, K, h, w) holds, None for
            all; the others take the mean of their prior. () where all are held.
    """

    seed: Tensor
    first_sample: int = 0
    log_ratio: bool = False
    noise: Callable[[int, torch.Size], Tensor] | None = None
    at_mean: bool = False
    latents: tuple[Tensor | None, ...] = ()
    channels: tuple[Tensor | None, ...] = ()

    def external_noise(self, group: int, like: Tensor) -> Tensor | None:
        """Noise for `group` of the shape of `like`, or None when it is to be keyed."""
        if self.at_mean:
            return torch.zeros((), dtype=like.dtype, device=like.device).expand_as(like)
        if self.noise is None:
            return None
        return self.noise(group, like.shape).to(like)


@dataclass(frozen=True)
class LatentGroup:
    """Latents drawn together in one step of the hierarchy.

    `raw_posterior` and `raw_prior` are (mean, log scale) as the network gave them, (B, Z, h, w) each; `form`
    says how they are read. `rate` (B,) is KL(posterior, prior) in nats per image (with flows: its
    single-sample estimate). `log_ratio` (B,) is log q(z) - log p(z), where it was asked for.
    """

    raw_posterior: tuple[Tensor, Tensor]
    raw_prior: tuple[Tensor, Tensor] | None
    form: GaussianForm
    z: Tensor
    rate: Tensor
    log_ratio: Tensor | None = None

    @property
    def resolution(self) -> tuple[int, int]:
        """(h, w) of the group; (1, 1) for a vector of latents."""
        return (int(self.z.shape[-2]), int(self.z.shape[-1])) if self.z.ndim == 4 else (1, 1)

    @property
    def prior(self) -> DiagonalGaussian:
        """p(z_g given z_<g)."""
        raw = self.raw_prior
        if raw is None:
            zero = torch.zeros_like(self.raw_posterior[0])
            raw = (zero, zero)
        return DiagonalGaussian.from_raw(*raw, self.form)

    @property
    def posterior(self) -> DiagonalGaussian:
        """q(z_g given x, z_<g)."""
        mean, log_scale = self.raw_posterior
        if self.form.residual and self.raw_prior is not None:
            mean, log_scale = mean + self.raw_prior[0], log_scale + self.raw_prior[1]
        return DiagonalGaussian.from_raw(mean, log_scale, self.form)


def draw_group(
    ops: Ops,
    draw: Draw,
    group: int,
    posterior: tuple[Tensor, Tensor],
    prior: tuple[Tensor, Tensor] | None,
    form: GaussianForm = PLAIN,
) -> LatentGroup:
    """The latent group drawn from raw posterior parameters, with its rate, through the fused operation."""
    noise = draw.external_noise(group, posterior[0])
    prior_mean, prior_log_scale = prior if prior is not None else (None, None)
    z, kl, log_ratio = ops.gaussian_sample_kl(
        *posterior,
        prior_mean,
        prior_log_scale,
        seed=draw.seed,
        group=group,
        form=form,
        first_sample=draw.first_sample,
        noise=noise,
        log_ratio=draw.log_ratio,
    )
    return LatentGroup(posterior, prior, form, z, kl, log_ratio)


def sample_group(
    ops: Ops,
    draw: Draw,
    group: int,
    prior: tuple[Tensor, Tensor],
    form: GaussianForm = PLAIN,
    temperature: Temperature = 1.0,
) -> Tensor:
    """Latents (B, Z, h, w) of a group: those the draw gives, or drawn from raw prior parameters, scale x temperature.

    Raises:
        ValueError: no temperature for this group; or given latents of another shape.
    """
    z = draw.latents[group] if group < len(draw.latents) else None
    if z is not None:
        return _given(z, draw, group, prior, form)
    if isinstance(temperature, Sequence):
        if group >= len(temperature):
            raise ValueError(f"expected a temperature for every latent group, got {len(temperature)}")
        temperature = temperature[group]
    return ops.gaussian_sample(
        *prior,
        seed=draw.seed,
        group=group,
        form=form,
        temperature=temperature,
        first_sample=draw.first_sample,
        noise=draw.external_noise(group, prior[0]),
    )


def _given(z: Tensor, draw: Draw, group: int, prior: tuple[Tensor, Tensor], form: GaussianForm) -> Tensor:
    """Latents (B, Z, h, w) of a group that the draw gives; channels that it lacks are at the prior's mean."""
    channels = draw.channels[group] if draw.channels else None
    batch, count, height, width = prior[0].shape
    expected = (batch, count if channels is None else len(channels), height, width)
    if z.shape != expected:
        raise ValueError(f"latent group {group}: expected shape {expected}, got {tuple(z.shape)}")
    return z if channels is None else DiagonalGaussian.from_raw(*prior, form).mean.index_copy(1, channels, z)


@dataclass(frozen=True)
class Encoding:
    """Result of inference: the decoder's input state, and the latent groups, coarse -> fine."""

    state: Tensor
    groups: tuple[LatentGroup, ...]


@dataclass(frozen=True)
class ModelOutput:
    """p(x given z) and the latent groups, coarse -> fine; no groups for the plain autoencoder."""

    likelihood: Likelihood
    groups: tuple[LatentGroup, ...]


class Model(nn.Module, abc.ABC):
    """Base of all models: images in [0, 1] in, beliefs out. Knows no loss.

    A model implements `encode`, `decode_parameters` and, if it has a prior, `sample_state`; also `features` and
    `infer`, the two halves of `encode`, where the first is worth keeping over many draws. Padding is done
    here: `pad` pixels of zeros on each side before `encode`, cropped from the decoder's output before the
    likelihood sees it, so that no metric scores them.
    """

    def __init__(self, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops, pad: int = 0) -> None:
        super().__init__()
        self.image, self.likelihood, self.ops, self.pad = image, likelihood, ops, pad

    has_prior: bool = True

    @property
    @abc.abstractmethod
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        """Shapes of the latent groups, coarse -> fine; empty for the plain autoencoder."""

    @abc.abstractmethod
    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        """Inference for padded images (B, C, H + 2 pad, W + 2 pad) in [0, 1]."""

    @abc.abstractmethod
    def decode_parameters(self, state: Tensor) -> Tensor:
        """Likelihood parameters (B, P, H + 2 pad, W + 2 pad) from a decoder state."""

    def features(self, x: Tensor) -> object:
        """What inference needs of padded images x, whatever is drawn; for `infer`."""
        return x

    def infer(self, features: Any, draw: Draw) -> Encoding:
        """Inference from `features`: one draw of the latents."""
        return self.encode(features, draw)

    def sample_state(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Tensor:
        """Decoder state of `n` images with latents drawn from the prior."""
        raise NotImplementedError(f"{type(self).__name__} has no prior to sample from")

    def penalty(self, kl_weight: float | Tensor) -> Tensor | None:
        """Regularisation term of the loss besides the ELBO (nats per image), or None.

        `kl_weight` in [0, 1] is that of the warm-up: a number, or () on the device where steps are replayed.
        """
        return None

    def padded(self, x: Tensor) -> Tensor:
        """X with `pad` zero pixels on each side."""
        return F.pad(x, (self.pad,) * 4) if self.pad else x

    def decode(self, state: Tensor) -> Likelihood:
        """p(x given z) over the unpadded image."""
        parameters = self.decode_parameters(state)
        if self.pad:
            parameters = parameters[..., self.pad : -self.pad, self.pad : -self.pad]
        return self.likelihood.build(parameters, self.ops)

    def forward(self, x: Tensor, draw: Draw) -> ModelOutput:
        """Encode, draw, decode: images (B, C, H, W) in [0, 1]."""
        encoding = self.encode(self.padded(x), draw)
        return ModelOutput(self.decode(encoding.state), encoding.groups)

    def sample(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Likelihood:
        """p(x given z) of `n` images with z from the prior, beyond those that the draw gives."""
        return self.decode(self.sample_state(n, draw, temperature))
