"""REFERENCE: every operation in plain PyTorch, on any device. The specification and the test oracle.

Computes in float32 or wider, whatever the inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.ops import PLAIN, Activation, GaussianDraw, GaussianForm, Ops
from kernels.reference.philox import normals

MIN_LOG_SCALE = -7.0
NOT_BINARY = "Bernoulli likelihood: expected binary images (0 and 1), got other values; binarise them"
"""Lower bound of a logistic component's log scale (Salimans et al. 2017)."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that values of `dtype` are computed in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


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


def kl_divergence(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """KL(posterior, prior) per variable, nats: (shift^2 + ratio^2 - 1) / 2 - log ratio."""
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
    eps = keyed_or_external(noise, seed, group, mean.shape, first_sample, dtype)
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


def mixture_components(parameters: Tensor, x: Tensor) -> int:
    """Number K of mixture components of likelihood parameters (B, P, H, W) for images x (B, C, H, W).

    Raises:
        ValueError: the shapes do not fit together.
    """
    channels = x.shape[1] if x.ndim == 4 else 0
    if channels not in (1, 3):
        raise ValueError(f"x: expected (B, 1, H, W) or (B, 3, H, W), got {tuple(x.shape)}")
    per_component = 10 if channels == 3 else 3
    expected = (x.shape[0], parameters.shape[1] if parameters.ndim == 4 else 0, *x.shape[2:])
    if tuple(parameters.shape) != expected or expected[1] % per_component or not expected[1]:
        raise ValueError(
            f"parameters: expected ({x.shape[0]}, {per_component} K, {x.shape[2]}, {x.shape[3]}) for {channels} "
            f"channel(s), got {tuple(parameters.shape)}"
        )
    return expected[1] // per_component


def component_means(means: Tensor, coefficient_logits: Tensor, x: Tensor) -> Tensor:
    """Means (B, 3, K, H, W) of green given red, and of blue given red and green; x (B, 3, 1, H, W) in [-1, 1]."""
    c0, c1, c2 = torch.tanh(coefficient_logits).unbind(1)
    red, green = x[:, 0], x[:, 1]
    mean_red, mean_green, mean_blue = means.unbind(1)
    return torch.stack((mean_red, mean_green + c0 * red, mean_blue + c1 * red + c2 * green), 1)


def level_log_prob(centred: Tensor, log_scale: Tensor, x: Tensor, half: float) -> Tensor:
    """Log probability of a pixel's level under logistic components, nats.

    With p, m = (centred +- half) / scale: sigma(p) - sigma(m) = sigma(p) sigma(-m) (1 - exp(-2 half / scale)), exact
    without a threshold. The lowest level keeps sigma(p) alone and the highest sigma(-m) alone, so that the
    probabilities of all levels sum to one.

    Args:
        centred: x - mean.
        log_scale: clamped log scales.
        x: pixels in [-1, 1].
        half: half the distance between two levels.
    """
    inverse = torch.exp(-log_scale)
    below = F.logsigmoid((centred + half) * inverse)
    above = F.logsigmoid((half - centred) * inverse)
    width = torch.log(-torch.expm1(-2 * half * inverse))
    lowest, highest = x < -1 + half, x > 1 - half
    return torch.where(lowest, below, torch.where(highest, above, below + above + width))


def level_log_prob_original(centred: Tensor, log_scale: Tensor, x: Tensor, half: float) -> Tensor:
    """`level_log_prob` by the rules of the original NVAE code, with its thresholds.

    Interior: log of the difference of two sigmoids, or the density at the centre times the bin's width where the
    difference is at most 1e-5; x < -0.999 is the lowest level and x > 0.99 the highest (which catches level 254).
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (centred + half) * inverse, (centred - half) * inverse
    difference = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = centred * inverse
    log_density = middle - log_scale - 2 * F.softplus(middle)
    interior = torch.where(difference > 1e-5, difference.clamp_min(1e-10).log(), log_density + math.log(2 * half))
    lowest, highest = upper - F.softplus(upper), -F.softplus(lower)
    return torch.where(x < -0.999, lowest, torch.where(x > 0.99, highest, interior))


def logistic_mixture_log_prob(parameters: Tensor, x: Tensor, *, bits: int, original_edges: bool = False) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.LogisticMixtureLogProb`."""
    k = mixture_components(parameters, x)
    batch, channels, height, width = x.shape
    dtype = wide(parameters.dtype)
    logits, rest = parameters.to(dtype).split((k, parameters.shape[1] - k), 1)
    rest = rest.reshape(batch, channels, -1, height, width)
    means, log_scales = rest[:, :, :k], rest[:, :, k : 2 * k].clamp_min(MIN_LOG_SCALE)
    pixels = (2 * x.to(dtype) - 1).unsqueeze(2)
    if channels == 3:
        means = component_means(means, rest[:, :, 2 * k :], pixels)
    rule = level_log_prob_original if original_edges else level_log_prob
    per_channel = rule(pixels - means, log_scales, pixels, 1.0 / (2**bits - 1))
    per_component = per_channel.sum(1) + F.log_softmax(logits, 1)
    return torch.logsumexp(per_component, 1).flatten(1).sum(1)


def check_norm(x: Tensor, channels: Iterable[Tensor], training: bool, repeats: int, activation: str) -> None:
    """Raise ValueError unless the arguments of `norm_swish` fit together; `channels` are its tensors (C,)."""
    if x.ndim != 4:
        raise ValueError(f"x: expected (B, C, h, w), got {tuple(x.shape)}")
    for tensor in channels:
        if tuple(tensor.shape) != (x.shape[1],):
            raise ValueError(f"expected statistics, weight and bias ({x.shape[1]},), got {tuple(tensor.shape)}")
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"x: expected more than one value per channel in training, got {tuple(x.shape)}")
    if repeats < 1:
        raise ValueError(f"repeats: expected 1 or more, got {repeats}")
    if activation not in get_args(Activation):
        raise ValueError(f"activation: expected one of {get_args(Activation)}, got '{activation}'")


def norm_swish(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    repeats: int = 1,
    activation: Activation = "swish",
) -> Tensor:
    """Batch norm, then swish; see `kernels.ops.NormSwish`. Each of the two rounds to the type of x.

    Repeated pixels change neither mean nor biased variance; the unbiased variance of n values, r times each, is that of
    the n values times r (n - 1) / (r n - 1).
    """
    check_norm(x, (running_mean, running_var, weight, bias), training, repeats, activation)
    corrected = training and repeats > 1 and x.numel() > 0
    moved = running_var.clone() if corrected else running_var
    y = F.batch_norm(x, running_mean, moved, weight, bias, training, momentum, eps)
    if corrected:
        count, kept = x.numel() // x.shape[1], (1 - momentum) * running_var
        running_var.copy_(kept + (moved - kept) * (repeats * (count - 1) / (repeats * count - 1)))
    return F.silu(y) if activation == "swish" else y


def require_binary(x: Tensor) -> None:
    """Raise ValueError unless x holds zeros and ones only, the squares of themselves; a GPU is not waited for."""
    squares = x * x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async((squares == x).all(), NOT_BINARY)  # pyright: ignore[reportPrivateImportUsage]
    elif not torch.equal(squares, x):
        raise ValueError(NOT_BINARY)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.BernoulliLogProb`."""
    require_binary(x)
    logits = logits.to(wide(logits.dtype))
    return -F.binary_cross_entropy_with_logits(logits, x.to(logits), reduction="none").flatten(1).sum(1)


def image_linear(x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """X W + b; see `kernels.ops.ImageLinear`."""
    return F.linear(x, rows.t(), bias)


REFERENCE = Ops("reference", gaussian_sample_kl, gaussian_sample, logistic_mixture_log_prob, norm_swish)
