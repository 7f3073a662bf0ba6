"""The short way of plain eager code to the fused operations: torch.autograd.Function, and the plans directly.

An operator registered from Python costs the host more than its kernels cost the GPU. Where nobody looks at operators
(`unobserved`), only autograd has to know of them. Values, gradients and what is saved are those of
`kernels.gpu.registered`, which also answers for gradients of gradients: it refuses them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernels.gpu import latent_plan, mixture_plan, norm_plan, registered
from kernels.gpu.latent_plan import Gradients, Request
from kernels.gpu.norm_plan import Affine, Norm

Numbers = tuple[float, float, int]
"""Momentum, epsilon and repeats of a batch norm."""
PLAIN_TYPES = {Tensor, torch.nn.Parameter, type(None)}


def unobserved(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors in plain eager code.

    No tracing or compilation, no modes, no transforms of functions, no subclass of Tensor, no lazy negation,
    no tensor without memory.
    """
    if torch.compiler.is_compiling():
        return False
    observed = (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )
    if observed:
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN_TYPES or (tensor is not None and (tensor.is_neg() or tensor.is_meta)):
            return False
    return True


def direct_backward(*gradients: Tensor) -> bool:
    """Whether a backward pass may take the plans directly: nobody differentiates or observes it."""
    return not torch.is_grad_enabled() and unobserved(*gradients)


class FusedGaussian(torch.autograd.Function):
    """z, KL and log ratio of latents; the latter two are None where they are not asked for."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        mean: Tensor,
        log_scale: Tensor,
        prior_mean: Tensor | None,
        prior_log_scale: Tensor | None,
        noise: Tensor | None,
        request: Request,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Draw."""
        ctx.save_for_backward(mean, log_scale, prior_mean, prior_log_scale, noise, request.seed)
        ctx.request = request[1:]
        return draw(mean, log_scale, prior_mean, prior_log_scale, noise, request)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_z: Tensor, grad_kl: Tensor | None, grad_log_ratio: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the four raw parameters."""
        mean, log_scale, prior_mean, prior_log_scale, noise, seed = ctx.saved_tensors
        group, first_sample, form, temperature, log_ratio = ctx.request
        grad_kl = None if temperature is not None or grad_kl is None else grad_kl.float().contiguous()
        grad_log_ratio = None if not log_ratio or grad_log_ratio is None else grad_log_ratio.float().contiguous()
        prior_needed = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        parameters = mean, log_scale, prior_mean, prior_log_scale
        if direct_backward(grad_z, *latent_plan.present(grad_kl), *latent_plan.present(grad_log_ratio)):
            request = Request(seed, *ctx.request)
            upstream, prior = Gradients(grad_z, grad_kl, grad_log_ratio), registered.pair_of(*parameters[2:])
            gradients = latent_plan.gaussian_backward(mean, log_scale, prior, noise, request, upstream, prior_needed)
            return *gradients, None, None
        scalars = group, first_sample, form.soft_clamp, form.scale_floor, form.residual, temperature
        d_mean, d_log_scale, *d_prior = registered.gaussian_backward(
            grad_z, grad_kl, grad_log_ratio, *parameters, noise, seed, *scalars, prior_needed
        )
        return d_mean, d_log_scale, *(d_prior if prior_needed else (None, None)), None, None


def draw(
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    noise: Tensor | None,
    request: Request,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """z, KL and log ratio without gradients."""
    return latent_plan.gaussian_forward(
        mean, log_scale, registered.pair_of(prior_mean, prior_log_scale), noise, request
    )


class FusedMixture(torch.autograd.Function):
    """Log probabilities (B,) of images."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, x: Tensor, bits: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Evaluate."""
        log_prob, sums = mixture_plan.mixture_forward(parameters, x, bits)
        ctx.save_for_backward(parameters, x, sums)
        ctx.bits = bits
        return log_prob

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the parameters."""
        upstream = upstream.float().contiguous()
        parameters, x, sums = ctx.saved_tensors
        if direct_backward(upstream):
            return mixture_plan.mixture_backward(upstream, parameters, x, sums, ctx.bits), None, None
        return registered.mixture_backward(upstream, parameters, x, sums, ctx.bits), None, None


def norm_gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, from what a batch norm has saved."""
    x, mean, spread, weight, bias = ctx.saved_tensors
    if direct_backward(grad_y):
        grad_x, _, rows = norm_plan.norm_backward(grad_y, x, (mean, spread, weight, bias), ctx.eps, ctx.norm)
    else:
        form = ctx.eps, ctx.norm.training, ctx.norm.swish
        grad_x, sums = registered.norm_backward(grad_y, x, mean, spread, weight, bias, *form)
        rows = sums.unbind()
    grad_bias, grad_weight = rows
    if weight.dtype is not torch.float32 or bias.dtype is not torch.float32:
        grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
    return grad_x, grad_weight, grad_bias


class FusedBatchNorm(torch.autograd.Function):
    """Batch norm [and swish] by given statistics."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, mean: Tensor, spread: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: Norm
    ) -> Tensor:
        """Normalise and activate."""
        ctx.save_for_backward(x, mean, spread, weight, bias)
        ctx.eps, ctx.norm = eps, norm
        return norm_plan.norm_forward(x, (mean, spread, weight, bias), eps, norm)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, weight and bias."""
        grad_x, grad_weight, grad_bias = norm_gradients(ctx, grad_y)
        return grad_x, None, None, grad_weight, grad_bias, None, None


class FusedBatchNormTraining(torch.autograd.Function):
    """Batch norm [and swish] by the batch's statistics, which move the running ones."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], numbers: Numbers, norm: Norm
    ) -> Tensor:
        """Normalise and activate."""
        y, mean, inverse = norm_plan.norm_training(x, (*running, weight, bias), *numbers, norm)
        ctx.save_for_backward(x, mean, inverse, weight, bias)
        ctx.eps, ctx.norm = numbers[1], norm
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, weight and bias."""
        return *norm_gradients(ctx, grad_y), None, None, None


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of an operation on these, or the profiler, which sees functions by name."""
    if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def gaussian(
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    noise: Tensor | None,
    request: Request,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """z, KL and log ratio; the latter two are None where they are not asked for."""
    parameters = mean, log_scale, prior_mean, prior_log_scale
    if recorded(*parameters):
        return FusedGaussian.apply(*parameters, noise, request)  # pyright: ignore[reportReturnType]
    return draw(*parameters, noise, request)


def mixture(parameters: Tensor, x: Tensor, bits: int) -> Tensor:
    """Log probability (B,)."""
    if recorded(parameters):
        return FusedMixture.apply(parameters, x, bits)  # pyright: ignore[reportReturnType]
    return mixture_plan.mixture_forward(parameters, x, bits)[0]


def norm_training(x: Tensor, channels: Affine, numbers: Numbers, norm: Norm) -> Tensor:
    """X normalised by its own statistics and activated; moves the running statistics, and autograd is told so.

    `channels`: running mean and variance, weight and bias.
    """
    running_mean, running_var, weight, bias = channels
    running = running_mean, running_var
    if recorded(x, weight, bias):
        y: Tensor = FusedBatchNormTraining.apply(x, weight, bias, running, numbers, norm)  # pyright: ignore[reportAssignmentType]
    else:
        y, _, _ = norm_plan.norm_training(x, channels, *numbers, norm)
    torch.autograd.graph.increment_version(running)
    return y


def norm(x: Tensor, channels: Affine, eps: float, form: Norm) -> Tensor:
    """X normalised by given mean and variance and activated; `channels`: those, weight and bias."""
    mean, variance, weight, bias = channels
    if recorded(x, weight, bias):
        return FusedBatchNorm.apply(x, mean, variance, weight, bias, eps, form)  # pyright: ignore[reportReturnType]
    return norm_plan.norm_forward(x, channels, eps, form)
