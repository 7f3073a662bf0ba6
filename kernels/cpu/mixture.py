"""CPU: the discretised logistic mixture, which works on a few pixels at a time and writes its gradient along.

Autograd over the reference keeps dozens of tensors of the components' size. Where there is a C compiler the mixture
runs in C (`mixture.c`); elsewhere in plain PyTorch, a few images at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library
from kernels.cpu.gradients import per_sample, refuse_second_order
from kernels.cpu.structures import pointer
from kernels.reference import mixture as reference
from kernels.reference.mixture import MIN_LOG_SCALE, mixture_components, parameters_per_component
from kernels.reference.precision import wide

CHUNK = 1 << 16
"""Components of pixels worked on at a time; a dozen tensors of this size stay in the cache."""


class Levels(NamedTuple):
    """Components of some images, (b, C, K, H, W) each: log probability is linear + log factor; its gradients."""

    linear: Tensor
    factor: Tensor
    d_mean: Tensor
    d_log_scale: Tensor


def level_terms(centred: Tensor, log_scale: Tensor, x: Tensor, half: float) -> Levels:
    """`kernels.reference.backend.level_log_prob` with its gradients in mean and log scale; overwrites `centred`.

    With a = e^-|p|, b = e^-|m|, W = 1 - e^-w: log probability = min(p, 0) - max(m, 0) + log(W / ((1 + a) (1 + b))).
    """
    below_highest, above_lowest = (x <= 1 - half).to(x.dtype), (x >= -1 + half).to(x.dtype)
    interior = below_highest * above_lowest
    inverse = log_scale.clamp_min(MIN_LOG_SCALE).neg_().exp_()
    width = inverse * (2 * half)
    upper = centred.add_(half).mul_(inverse)
    lower = upper - width
    a, b = upper.abs().neg_().exp_().mul_(below_highest), lower.abs().neg_().exp_().mul_(above_lowest)
    one_a, one_b = a + 1, b + 1
    bin_width = torch.expm1(-width).neg_()
    narrowing = bin_width.reciprocal().sub_(1).mul_(width).mul_(interior)
    bin_width.mul_(interior).add_(1 - interior)
    joint = (one_a * one_b).reciprocal_()
    tail = torch.where(upper > 0, a, below_highest).mul_(one_b).mul_(joint)  # sigma(-p)
    head = torch.where(lower > 0, above_lowest, b).mul_(one_a).mul_(joint)  # sigma(m)
    linear = upper.clamp_max(0).mul_(below_highest).sub_(lower.clamp_min(0).mul_(above_lowest))
    d_log_scale = lower.mul_(head).sub_(upper.mul_(tail)).sub_(narrowing).mul_(log_scale >= MIN_LOG_SCALE)
    return Levels(linear, bin_width.mul_(joint), head.sub_(tail).mul_(inverse), d_log_scale)


def mixture_chunk(parameters: Tensor, x: Tensor, k: int, bits: int, gradient: Tensor | None) -> Tensor:
    """Log p(x) (b,) of some images; writes the gradient of each parameter into `gradient` (b, P, H, W)."""
    channels = x.shape[1]
    logits, rest = (
        parameters[:, :k],
        parameters[:, k:].unflatten(1, (channels, -1)),
    )  # (b, K, H, W), (b, C, 3 K or 2 K, H, W)
    pixels = (2 * x - 1).unsqueeze(2)  # (b, C, 1, H, W)
    centred = pixels - rest[:, :, :k]  # (b, C, K, H, W)
    coefficients = rest[:, :, 2 * k :].tanh()
    red, green = pixels[:, 0], pixels[:, min(1, channels - 1)]
    if channels == 3:
        centred[:, 1].addcmul_(coefficients[:, 0], red, value=-1)
        centred[:, 2].addcmul_(coefficients[:, 1], red, value=-1).addcmul_(coefficients[:, 2], green, value=-1)
    log_scale = rest[:, :, k : 2 * k]
    terms = level_terms(centred, log_scale, pixels, 1.0 / (2**bits - 1))
    log_weights = F.log_softmax(logits, 1)
    joint = terms.linear.sum(1).add_(terms.factor.prod(1).log_()).add_(log_weights)  # (b, K, H, W)
    evidence = torch.logsumexp(joint, 1, keepdim=True)  # (b, 1, H, W)
    if gradient is not None:
        responsibility = joint.sub_(evidence).exp_()
        torch.sub(responsibility, log_weights.exp_(), out=gradient[:, :k])
        out = gradient[:, k:].unflatten(1, (channels, -1))
        responsibility = responsibility.unsqueeze(1)
        d_mean = torch.mul(terms.d_mean, responsibility, out=out[:, :, :k])
        torch.mul(terms.d_log_scale, responsibility, out=out[:, :, k : 2 * k])
        if channels == 3:
            slopes = coefficients.square_().neg_().add_(1)
            torch.mul(slopes[:, 0], d_mean[:, 1] * red, out=out[:, 0, 2 * k :])
            torch.mul(slopes[:, 1], d_mean[:, 2] * red, out=out[:, 1, 2 * k :])
            torch.mul(slopes[:, 2], d_mean[:, 2] * green, out=out[:, 2, 2 * k :])
    return evidence.flatten(1).sum(1)


def mixture_by_chunks(parameters: Tensor, x: Tensor, bits: int, gradient: Tensor | None) -> Tensor:
    """Log p(x) (B,), a few images at a time; writes the gradient for unit upstream into `gradient`."""
    k, dtype = mixture_components(parameters, x), parameters.dtype
    log_prob = parameters.new_empty(len(x))
    images = max(1, CHUNK // max(1, x[:1].numel() * k))
    for start in range(0, len(x), images):
        chunk = slice(start, start + images)
        part = None if gradient is None else gradient[chunk]
        log_prob[chunk] = mixture_chunk(parameters[chunk], x[chunk].to(dtype), k, bits, part)
    return log_prob


def in_order(parameters: Tensor) -> tuple[Tensor, bool]:
    """Parameters (B, P, H, W) in float32 as the C kernels read them: contiguous, or pixel by pixel without gaps."""
    values = parameters.float()
    if not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last):
        return values, True
    return values.contiguous(), False


def mixture(parameters: Tensor, x: Tensor, bits: int, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """Log p(x) (B,) float64 of the logistic mixture, and the gradient of the parameters for unit upstream."""
    batch, colours, height, width = x.shape
    (values, by_pixels), pixels = in_order(parameters), x.float().contiguous()  # held until C has read them
    log_prob = torch.zeros(batch, dtype=torch.float64)
    gradient = torch.empty_like(values) if differentiate else None
    library.loaded().vaebench_mixture(
        *(pointer(one) for one in (values, pixels, log_prob, gradient)),
        *(batch, mixture_components(values, x), colours, height * width, by_pixels),
        1.0 / (2**bits - 1),
        library.threads_for(values.numel(), batch),
    )
    return log_prob, gradient


class Mixture(torch.autograd.Function):
    """Log p(x) of the logistic mixture with its gradient."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, x: Tensor, bits: int, differentiate: bool) -> Tensor:
        """Value (B,); the gradient for unit upstream is all that is kept."""
        dtype = wide(parameters.dtype)
        if library.takes(parameters, half=True, autocast=True):
            log_prob, gradient = mixture(parameters, x, bits, differentiate)
        else:
            values = parameters.to(dtype)
            gradient = values.new_empty(values.shape) if differentiate else None
            log_prob = mixture_by_chunks(values, x, bits, gradient)
        ctx.dtype = parameters.dtype
        ctx.save_for_backward(gradient)
        return log_prob.to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the parameters."""
        refuse_second_order()
        (gradient,) = ctx.saved_tensors
        return (gradient * per_sample(upstream, gradient)).to(ctx.dtype), None, None, None


def logistic_mixture_log_prob(
    parameters: Tensor, x: Tensor, *, bits: int, published_edge: float | None = None
) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.LogisticMixtureLogProb`. Published rules take the reference."""
    if published_edge is not None:
        return reference.logistic_mixture_log_prob(parameters, x, bits=bits, published_edge=published_edge)
    mixture_components(parameters, x)
    differentiate = torch.is_grad_enabled() and parameters.requires_grad
    return Mixture.apply(parameters, x.detach(), bits, differentiate)


def logistic_mixture_mean(parameters: Tensor, *, channels: int) -> Tensor:
    """Mean image (B, C, H, W); see `kernels.ops.LogisticMixtureMean`. Gradients take the reference."""
    differentiate = torch.is_grad_enabled() and parameters.requires_grad
    if differentiate or not library.takes(parameters, half=True, autocast=True):
        return reference.logistic_mixture_mean(parameters, channels=channels)
    batch, count, height, width = parameters.shape
    out = torch.empty(batch, channels, height, width)
    values, by_pixels = in_order(parameters)
    library.loaded().vaebench_mixture_mean(
        *(values.data_ptr(), out.data_ptr()),
        *(batch, count // parameters_per_component(channels), channels, height * width, by_pixels),
        library.threads_for(values.numel(), batch),
    )
    return out
