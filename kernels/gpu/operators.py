"""FUSED: the Triton kernels as operations on tensors.

Plain eager code takes the short way of `kernels.gpu.eager`; compilation, export, modes and transforms see the
operators of `kernels.gpu.registered`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu import eager
from kernels.gpu.depthwise.operators import convolved
from kernels.gpu.latent_plan import Request
from kernels.gpu.launches import Plans
from kernels.gpu.norm_plan import Norm
from kernels.gpu.registered import gaussian, mixture, norm, norm_statistics
from kernels.ops import PLAIN, Activation, GaussianDraw, GaussianForm, Ops
from kernels.reference.backend import REFERENCE
from kernels.reference.gaussian import check_gaussian
from kernels.reference.mixture import mixture_components
from kernels.reference.network import Parts, network_of
from kernels.reference.norm import check_norm


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
    """A draw from the posterior with its KL; see `kernels.ops.GaussianSampleKL`. Float64 takes the reference."""
    if mean.dtype == torch.float64:
        return REFERENCE.gaussian_sample_kl(
            mean,
            log_scale,
            prior_mean,
            prior_log_scale,
            seed=seed,
            group=group,
            form=form,
            first_sample=first_sample,
            noise=noise,
            log_ratio=log_ratio,
        )
    check_gaussian(mean, log_scale, prior_mean, prior_log_scale, noise)
    if eager.unobserved(mean, log_scale, prior_mean, prior_log_scale, noise, seed):
        request = Request(seed, group, first_sample, form, None, log_ratio)
        z, kl, ratio = eager.gaussian(mean, log_scale, prior_mean, prior_log_scale, noise, request)
        assert kl is not None
        return GaussianDraw(z, kl, ratio)
    scalars = (form.soft_clamp, form.scale_floor, form.residual, None, log_ratio)
    parameters = (mean, log_scale, prior_mean, prior_log_scale, noise, seed)
    z, kl, ratio = gaussian(*parameters, group, first_sample, *scalars)
    return GaussianDraw(z, kl, ratio if log_ratio else None)


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
    """A draw at a temperature; see `kernels.ops.GaussianSample`. Float64 takes the reference."""
    if mean.dtype == torch.float64:
        return REFERENCE.gaussian_sample(
            mean,
            log_scale,
            seed=seed,
            group=group,
            form=form,
            temperature=temperature,
            first_sample=first_sample,
            noise=noise,
        )
    check_gaussian(mean, log_scale, None, None, noise)
    if eager.unobserved(mean, log_scale, noise, seed):
        request = Request(seed, group, first_sample, form, float(temperature), False)
        return eager.gaussian(mean, log_scale, None, None, noise, request)[0]
    scalars = (form.soft_clamp, form.scale_floor, form.residual, temperature, False)
    return gaussian(mean, log_scale, None, None, noise, seed, group, first_sample, *scalars)[0]


def logistic_mixture_log_prob(
    parameters: Tensor, x: Tensor, *, bits: int, published_edge: float | None = None
) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.LogisticMixtureLogProb`.

    Published rules and float64 take the reference.
    """
    if published_edge is not None or parameters.dtype == torch.float64:
        return REFERENCE.logistic_mixture_log_prob(parameters, x, bits=bits, published_edge=published_edge)
    mixture_components(parameters, x)
    if eager.unobserved(parameters, x):
        return eager.mixture(parameters, x.detach(), bits)
    return mixture(parameters, x.detach(), bits)[0]


NORMS = {(training, swish): Norm(training, swish) for training in (False, True) for swish in (False, True)}
CHECKED: Plans[bool] = Plans()


def check_once(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    repeats: int,
    activation: Activation,
) -> None:
    """As `check_norm`, which looks at shapes it has not yet seen only."""
    channels = running_mean, running_var, weight, bias
    shapes = x.shape, running_mean.shape, running_var.shape, weight.shape, bias.shape
    if (shapes, training, repeats, activation) not in CHECKED:
        check_norm(x, channels, training, repeats, activation)
        CHECKED.keep((shapes, training, repeats, activation), True)


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
    """Batch norm and swish; see `kernels.ops.NormSwish`. Float64 takes the reference."""
    if x.dtype == torch.float64:
        return REFERENCE.norm_swish(
            x,
            running_mean,
            running_var,
            weight,
            bias,
            training=training,
            momentum=momentum,
            eps=eps,
            repeats=repeats,
            activation=activation,
        )
    if eager.unobserved(x, running_mean, running_var, weight, bias):
        check_once(x, running_mean, running_var, weight, bias, training, repeats, activation)
        channels, form = (running_mean, running_var, weight, bias), NORMS[training, activation == "swish"]
        if training:
            return eager.norm_training(x, channels, (float(momentum), float(eps), repeats), form)
        return eager.norm(x, channels, float(eps), form)
    mean, spread = running_mean, running_var
    check_norm(x, (running_mean, running_var, weight, bias), training, repeats, activation)
    if training:
        mean, spread = norm_statistics(x.detach(), running_mean, running_var, momentum, eps, repeats)
    return norm(x, mean, spread, weight, bias, eps, training, activation == "swish")


FUSED = Ops(
    "fused",
    gaussian_sample_kl,
    gaussian_sample,
    logistic_mixture_log_prob,
    REFERENCE.logistic_mixture_mean,
    norm_swish,
    REFERENCE.bernoulli_log_prob,
    REFERENCE.image_linear,
    network_of(Parts(norm_swish, convolved)),
)
