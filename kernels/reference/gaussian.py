"""REFERENCE: draws from diagonal Gaussians, and what they cost. The one plain statement of the KL's formula.

Computed in float32, or in float64 for float64: the oracle that `kernels/cpu` and `kernels/gpu` are tested against.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kernels.ops import PLAIN, GaussianDraw, GaussianForm
from kernels.reference.philox import normals
from kernels.reference.precision import wide


class Normal(Protocol):
    """What the KL reads of a diagonal Gaussian: tensors of equal shape."""

    @property
    def mean(self) -> Tensor:
        """Mean."""
        ...

    @property
    def scale(self) -> Tensor:
        """Standard deviation."""
        ...

    @property
    def log_scale(self) -> Tensor:
        """Its logarithm."""
        ...


class Gaussian(NamedTuple):
    """Mean, scale and log scale of a diagonal Gaussian, of equal shape."""

    mean: Tensor
    scale: Tensor
    log_scale: Tensor


def read_gaussian(mean: Tensor, log_scale: Tensor, form: GaussianForm) -> Gaussian:
    """The Gaussian that raw values stand for in `form`; residual offsets are already added."""
    if form.soft_clamp is not None:
        c = form.soft_clamp
        mean, log_scale = c * torch.tanh(mean / c), c * torch.tanh(log_scale / c)
    scale = log_scale.exp()
    if form.scale_floor:
        scale = scale + form.scale_floor
        log_scale = scale.log()
    return Gaussian(mean, scale, log_scale)


def check_gaussian(
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    noise: Tensor | None = None,
) -> None:
    """Raise ValueError unless the parameters fit together."""
    if (prior_mean is None) != (prior_log_scale is None):
        raise ValueError("prior_mean and prior_log_scale: give both or neither")
    if mean.ndim < 1:
        raise ValueError("mean: expected a batch (B, ...), got a 0-d tensor; add a batch dimension")
    for name, tensor in (
        ("log_scale", log_scale),
        ("prior_mean", prior_mean),
        ("prior_log_scale", prior_log_scale),
        ("noise", noise),
    ):
        if tensor is not None and tensor.shape != mean.shape:
            raise ValueError(f"{name}: expected the mean's shape {tuple(mean.shape)}, got {tuple(tensor.shape)}")


def sum_per_sample(value: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return value.flatten(1).sum(1) if value.ndim > 1 else value


def keyed_or_external(
    noise: Tensor | None, seed: Tensor, group: int, shape: torch.Size, first_sample: int, dtype: torch.dtype
) -> Tensor:
    """The noise of a draw in `dtype`: the external one if there is one, else the keyed one."""
    if noise is not None:
        return noise.to(dtype)
    return normals(seed, group, shape, first_sample, dtype)


def kl_divergence(posterior: Normal, prior: Normal) -> Tensor:
    """KL(posterior, prior) per variable, nats: (shift^2 + ratio^2 - 1) / 2 - log ratio.

    With shift = (m_q - m_p) / s_p and ratio = s_q / s_p; expm1 keeps ratio^2 - 1 exact where the two are nearly equal.
    """
    log_ratio = posterior.log_scale - prior.log_scale
    shift = (posterior.mean - prior.mean) / prior.scale
    return 0.5 * (shift.square() + torch.expm1(2 * log_ratio)) - log_ratio


def gaussian_sample_kl(
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    *,
    seed: Tensor,
    group: int,
    form: GaussianForm = PLAIN,
    first_sample: int = 0,
    noise: Tensor | None = None,
    log_ratio: bool = False,
) -> GaussianDraw:
    """A draw from the posterior with its KL; see `kernels.ops.GaussianSampleKL`."""
    check_gaussian(mean, log_scale, prior_mean, prior_log_scale, noise)
    dtype = wide(mean.dtype)
    raw_mean, raw_log_scale = mean.to(dtype), log_scale.to(dtype)
    if prior_mean is None or prior_log_scale is None:
        zero = torch.zeros((), dtype=dtype, device=mean.device)
        raw_prior_mean, raw_prior_log_scale = zero, zero
    else:
        raw_prior_mean, raw_prior_log_scale = prior_mean.to(dtype), prior_log_scale.to(dtype)
    if form.residual:
        raw_mean, raw_log_scale = raw_mean + raw_prior_mean, raw_log_scale + raw_prior_log_scale
    posterior = read_gaussian(raw_mean, raw_log_scale, form)
    prior = read_gaussian(raw_prior_mean, raw_prior_log_scale, form)
    eps = keyed_or_external(noise, seed, group, mean.shape, first_sample, dtype)  # (B, Z, h, w), as all above
    z = posterior.mean + posterior.scale * eps
    ratio = None
    if log_ratio:
        distance = (z - prior.mean) / prior.scale
        ratio = sum_per_sample(0.5 * (distance.square() - eps.square()) + prior.log_scale - posterior.log_scale)
    return GaussianDraw(z.to(mean.dtype), sum_per_sample(kl_divergence(posterior, prior)), ratio)


def gaussian_sample(
    mean: Tensor,
    log_scale: Tensor,
    *,
    seed: Tensor,
    group: int,
    form: GaussianForm = PLAIN,
    temperature: float = 1.0,
    first_sample: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """A draw mean + temperature * scale * noise; see `kernels.ops.GaussianSample`."""
    check_gaussian(mean, log_scale, None, None, noise)
    dtype = wide(mean.dtype)
    gaussian = read_gaussian(mean.to(dtype), log_scale.to(dtype), form)
    eps = keyed_or_external(noise, seed, group, mean.shape, first_sample, dtype)
    return (gaussian.mean + temperature * gaussian.scale * eps).to(mean.dtype)
