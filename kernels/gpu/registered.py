"""The Triton kernels registered as PyTorch operators, for whatever looks at a program's operators.

With `torch.library.custom_op`, so that torch.compile, torch.export, fake tensors and dispatch modes see one opaque
operation each. Plain eager code takes the shorter way of `kernels.gpu.eager`. Saved for the backward pass are the
inputs and the seed, for the mixture also two numbers a pixel, and for batch norm two a channel. Second-order gradients
are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.gpu import latent_plan, mixture_plan, norm_plan
from kernels.gpu.latent_plan import Gradients, Request
from kernels.ops import GaussianForm


def request_of(
    seed: Tensor,
    group: int,
    first_sample: int,
    soft_clamp: float | None,
    scale_floor: float,
    residual: bool,
    temperature: float | None,
    log_ratio: bool,
) -> Request:
    """The request that an operator's plain arguments stand for."""
    form = GaussianForm(soft_clamp, scale_floor, residual)
    return Request(seed, group, first_sample, form, temperature, log_ratio)


def pair_of(mean: Tensor | None, log_scale: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The prior's parameters, or None without a prior."""
    return None if mean is None or log_scale is None else (mean, log_scale)


def present_or_empty(sums: Tensor | None, like: Tensor) -> Tensor:
    """The sums, empty where they were not asked for."""
    return like.new_empty(0, dtype=torch.float32) if sums is None else sums


@torch.library.custom_op("vaebench::gaussian", mutates_args=())
def gaussian(
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    noise: Tensor | None,
    seed: Tensor,
    group: int,
    first_sample: int,
    soft_clamp: float | None,
    scale_floor: float,
    residual: bool,
    temperature: float | None,
    log_ratio: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, KL and log ratio; the sums are empty where they are not asked for."""
    request = request_of(seed, group, first_sample, soft_clamp, scale_floor, residual, temperature, log_ratio)
    prior = pair_of(prior_mean, prior_log_scale)
    z, kl, ratio = latent_plan.gaussian_forward(mean, log_scale, prior, noise, request)
    return z, present_or_empty(kl, mean), present_or_empty(ratio, mean)


@gaussian.register_fake
def _(mean: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    temperature, log_ratio = rest[-2:]
    samples = mean.shape[0]
    kl = mean.new_empty(samples if temperature is None else 0, dtype=torch.float32)
    return latent_plan.output_like(mean), kl, mean.new_empty(samples if log_ratio else 0, dtype=torch.float32)


@torch.library.custom_op("vaebench::gaussian_backward", mutates_args=())
def gaussian_backward(
    grad_z: Tensor,
    grad_kl: Tensor | None,
    grad_log_ratio: Tensor | None,
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    noise: Tensor | None,
    seed: Tensor,
    group: int,
    first_sample: int,
    soft_clamp: float | None,
    scale_floor: float,
    residual: bool,
    temperature: float | None,
    prior_needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four raw parameters; those of the prior are empty if not needed."""
    log_ratio = grad_log_ratio is not None
    request = request_of(seed, group, first_sample, soft_clamp, scale_floor, residual, temperature, log_ratio)
    prior = pair_of(prior_mean, prior_log_scale)
    gradients = Gradients(grad_z, grad_kl, grad_log_ratio)
    d_mean, d_log_scale, *d_prior = latent_plan.gaussian_backward(
        mean, log_scale, prior, noise, request, gradients, prior_needed
    )
    d_prior_mean, d_prior_log_scale = (mean.new_empty(0) if one is None else one for one in d_prior)
    return d_mean, d_log_scale, d_prior_mean, d_prior_log_scale


@gaussian_backward.register_fake
def _(
    grad_z: Tensor, grad_kl: Tensor | None, grad_log_ratio: Tensor | None, mean: Tensor, log_scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prior_mean, prior_log_scale, *_, prior_needed = rest
    d_mean = latent_plan.output_like(mean)
    d_log_scale = latent_plan.alike(d_mean, log_scale)
    if prior_mean is None or prior_log_scale is None or not prior_needed:
        return d_mean, d_log_scale, mean.new_empty(0), mean.new_empty(0)
    return d_mean, d_log_scale, latent_plan.alike(d_mean, prior_mean), latent_plan.alike(d_mean, prior_log_scale)


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    """Keep the inputs and the seed for the backward pass."""
    *tensors, group, first_sample, soft_clamp, scale_floor, residual, temperature, log_ratio = inputs
    ctx.save_for_backward(*tensors)
    ctx.scalars = (group, first_sample, soft_clamp, scale_floor, residual, temperature)
    ctx.log_ratio = log_ratio


def differentiate(ctx: Any, grad_z: Tensor, grad_kl: Tensor, grad_log_ratio: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's inputs, None for all but the four raw parameters."""
    mean, log_scale, prior_mean, prior_log_scale, noise, seed = ctx.saved_tensors
    with_kl = ctx.scalars[-1] is None
    prior_needed = any(ctx.needs_input_grad[2:4])
    d_mean, d_log_scale, d_prior_mean, d_prior_log_scale = gaussian_backward(
        grad_z,
        grad_kl.float().contiguous() if with_kl else None,
        grad_log_ratio.float().contiguous() if ctx.log_ratio else None,
        mean,
        log_scale,
        prior_mean,
        prior_log_scale,
        noise,
        seed,
        *ctx.scalars,
        prior_needed,
    )
    d_prior = (d_prior_mean, d_prior_log_scale) if prior_needed else (None, None)
    return d_mean, d_log_scale, *d_prior, *(None,) * 9


def refuse(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Second-order gradients do not exist here."""
    raise RuntimeError(
        "fused operations have no second-order gradients; build the model with kernels.reference.backend.REFERENCE"
    )


gaussian.register_autograd(differentiate, setup_context=save_inputs)
gaussian_backward.register_autograd(refuse)


@torch.library.custom_op("vaebench::mixture", mutates_args=())
def mixture(parameters: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Log probability (B,), and two log-sum-exps of each pixel for the backward pass."""
    return mixture_plan.mixture_forward(parameters, x, bits)


@mixture.register_fake
def _(parameters: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    batch, size = x.shape[0], x.shape[2] * x.shape[3]
    return x.new_empty(batch, dtype=torch.float32), x.new_empty((2, batch, size), dtype=torch.float32)


@torch.library.custom_op("vaebench::mixture_backward", mutates_args=())
def mixture_backward(upstream: Tensor, parameters: Tensor, x: Tensor, sums: Tensor, bits: int) -> Tensor:
    """Gradient of the likelihood's parameters."""
    return mixture_plan.mixture_backward(upstream, parameters, x, sums, bits)


@mixture_backward.register_fake
def _(upstream: Tensor, parameters: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(parameters)


def save_mixture(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    """Keep the inputs and the pixels' log-sum-exps for the backward pass."""
    parameters, x, ctx.bits = inputs
    ctx.save_for_backward(parameters, x, output[1])


def differentiate_mixture(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    """Gradient of the parameters."""
    return mixture_backward(upstream.float().contiguous(), *ctx.saved_tensors, ctx.bits), None, None


mixture.register_autograd(differentiate_mixture, setup_context=save_mixture)
mixture_backward.register_autograd(refuse)


@torch.library.custom_op("vaebench::norm_statistics", mutates_args=("running_mean", "running_var"))
def norm_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, repeats: int
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std of each channel of the batch; moves the running statistics. Not differentiable by itself."""
    return norm_plan.norm_statistics(x, running_mean, running_var, momentum, eps, repeats)


@norm_statistics.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], dtype=torch.float32), x.new_empty(x.shape[1], dtype=torch.float32)


@torch.library.custom_op("vaebench::norm", mutates_args=())
def norm(
    x: Tensor, mean: Tensor, spread: Tensor, weight: Tensor, bias: Tensor, eps: float, training: bool, swish: bool
) -> Tensor:
    """X normalised and activated; the gradient in training takes mean and spread for the statistics of x."""
    return norm_plan.norm_forward(x, (mean, spread, weight, bias), eps, norm_plan.Norm(training, swish))


@norm.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return norm_plan.output_like(x)


@torch.library.custom_op("vaebench::norm_backward", mutates_args=())
def norm_backward(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    training: bool,
    swish: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and those of bias and weight as rows (2, C)."""
    norm = norm_plan.Norm(training, swish)
    grad_x, sums, _ = norm_plan.norm_backward(grad_y, x, (mean, spread, weight, bias), eps, norm)
    return grad_x, sums


@norm_backward.register_fake
def _(grad_y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return norm_plan.output_like(x), x.new_empty((2, x.shape[1]), dtype=torch.float32)


def save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the input and what belongs to its channels for the backward pass."""
    ctx.save_for_backward(*inputs[:5])
    ctx.scalars = inputs[5:]


def differentiate_norm(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias."""
    grad_x, sums = norm_backward(grad_y, *ctx.saved_tensors, *ctx.scalars)
    weight, bias = ctx.saved_tensors[3:]
    return grad_x, None, None, sums[1].to(weight.dtype), sums[0].to(bias.dtype), None, None, None


norm.register_autograd(differentiate_norm, setup_context=save_norm)
norm_backward.register_autograd(refuse)
