"""REFERENCE: log-likelihood of the discretised mixture of logistics (Salimans et al. 2017, PixelCNN++)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.reference.precision import wide

MIN_LOG_SCALE = -7.0
"""Lower bound of a logistic component's log scale, that of PixelCNN++ (Salimans et al. 2017)."""


def parameters_per_component(channels: int) -> int:
    """Likelihood parameters of one component: 10 for three channels, 3 for one.

    A logit, and for each channel a mean and a log scale; three channels are coupled by three coefficients more.
    """
    return 10 if channels == 3 else 3


def mixture_components(parameters: Tensor, x: Tensor) -> int:
    """Number K of mixture components of likelihood parameters (B, P, H, W) for images x (B, C, H, W).

    Raises:
        ValueError: the shapes do not fit together.
    """
    channels = x.shape[1] if x.ndim == 4 else 0
    if channels not in (1, 3):
        raise ValueError(f"x: expected (B, 1, H, W) or (B, 3, H, W), got {tuple(x.shape)}")
    per_component = parameters_per_component(channels)
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


def level_log_prob_published(centred: Tensor, log_scale: Tensor, x: Tensor, half: float, edge: float) -> Tensor:
    """`level_log_prob` by the rules of the published codes of NVAE and VDVAE, with their thresholds.

    Interior: log of the difference of two sigmoids, or the density at the centre times the bin's width where the
    difference is at most 1e-5; x < -0.999 is the lowest level and x > `edge` the highest.
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (centred + half) * inverse, (centred - half) * inverse
    difference = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = centred * inverse
    log_density = middle - log_scale - 2 * F.softplus(middle)
    interior = torch.where(difference > 1e-5, difference.clamp_min(1e-10).log(), log_density + math.log(2 * half))
    lowest, highest = upper - F.softplus(upper), -F.softplus(lower)
    return torch.where(x < -0.999, lowest, torch.where(x > edge, highest, interior))


def logistic_mixture_log_prob(
    parameters: Tensor, x: Tensor, *, bits: int, published_edge: float | None = None
) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.LogisticMixtureLogProb`."""
    k = mixture_components(parameters, x)
    batch, channels, height, width = x.shape
    dtype = wide(parameters.dtype)
    logits, rest = parameters.to(dtype).split((k, parameters.shape[1] - k), 1)  # (B, K, H, W), (B, P - K, H, W)
    rest = rest.reshape(batch, channels, rest.shape[1] // channels, height, width)  # (B, C, 3 K or 2 K, H, W)
    means, log_scales = rest[:, :, :k], rest[:, :, k : 2 * k].clamp_min(MIN_LOG_SCALE)  # (B, C, K, H, W)
    pixels = (2 * x.to(dtype) - 1).unsqueeze(2)  # (B, C, 1, H, W)
    if channels == 3:
        means = component_means(means, rest[:, :, 2 * k :], pixels)
    given = pixels - means, log_scales, pixels, 1.0 / (2**bits - 1)
    published = published_edge is not None
    per_channel = level_log_prob_published(*given, published_edge) if published else level_log_prob(*given)
    per_component = per_channel.sum(1) + F.log_softmax(logits, 1)  # (B, K, H, W)
    return torch.logsumexp(per_component, 1).flatten(1).sum(1)


def logistic_mixture_mean(parameters: Tensor, *, channels: int) -> Tensor:
    """Mean image (B, C, H, W); see `kernels.ops.LogisticMixtureMean`."""
    batch, count, height, width = parameters.shape
    k = count // parameters_per_component(channels)
    parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    weights = torch.softmax(parameters[:, :k], dim=1)
    rest = parameters[:, k:].reshape(batch, channels, -1, k, height, width)
    scales = rest[:, :, 1].clamp_min(MIN_LOG_SCALE).exp()
    coefficients = tuple(torch.tanh(rest[:, c, 2]) for c in range(3)) if channels == 3 else ()
    clamped: list[Tensor] = []  # each (B, K, H, W)
    for index in range(channels):
        shifted, s = rest[:, index, 0] + coupling(coefficients, clamped), scales[:, index]
        clamped.append(-1 + s * (F.softplus((shifted + 1) / s) - F.softplus((shifted - 1) / s)))
    mixed = torch.stack([(weights * channel).sum(1) for channel in clamped], dim=1)
    return (mixed / 2 + 0.5).clamp(0, 1)


def coupling(coefficients: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor | float:
    """Shift of the next channel's mean by the channels before: 0; c0 R; c1 R + c2 G."""
    if not before:
        return 0.0
    if len(before) == 1:
        return coefficients[0] * before[0]
    return coefficients[1] * before[0] + coefficients[2] * before[1]
