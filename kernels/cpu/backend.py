"""CPU: the operations on a CPU, with gradients written by hand.

Autograd over the reference keeps a dozen tensors of the latents' size and, for the logistic mixture, dozens of its
components'. Here the Gaussian keeps what both passes need, its noise among it (drawing it again costs more than reading
it); the mixture works on a few pixels at a time and writes its gradient along with its value. Where there is a C
compiler, noise and mixture run in C (`library.c`); elsewhere in plain PyTorch, a few images at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library, pixels
from kernels.cpu.cell import convolution, residual_cell
from kernels.cpu.packed_cell import prepare_cell, run_prepared
from kernels.cpu.weights import spectral_norms, weight_norm
from kernels.ops import PLAIN, GaussianDraw, GaussianForm, NetworkOps, Ops
from kernels.reference.backend import REFERENCE
from kernels.reference.gaussian import check_gaussian, keyed_or_external, sum_per_sample
from kernels.reference.mixture import MIN_LOG_SCALE, mixture_components
from kernels.reference.precision import wide

CHUNK = 1 << 16
"""Components of pixels worked on at a time; a dozen tensors of this size stay in the cache."""


class Read(NamedTuple):
    """A Gaussian read from raw values, and the slopes of mean and log scale in them (None: 1)."""

    mean: Tensor
    scale: Tensor
    log_scale: Tensor
    mean_slope: Tensor | None
    slope: Tensor | None


def soft_clamp(value: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The value c tanh(v / c) and its slope."""
    tanh = (value / c).tanh_()
    return tanh * c, torch.addcmul(torch.ones((), dtype=tanh.dtype), tanh, tanh, value=-1)


def read(mean: Tensor, log_scale: Tensor, form: GaussianForm) -> Read:
    """The Gaussian of raw values; residual offsets are already added."""
    mean_slope, slope = None, None
    if form.soft_clamp is not None:
        mean, mean_slope = soft_clamp(mean, form.soft_clamp)
        log_scale, slope = soft_clamp(log_scale, form.soft_clamp)
    scale = log_scale.exp()
    if form.scale_floor:
        narrow, scale = scale, scale + form.scale_floor
        share = narrow.div_(scale)
        slope = share if slope is None else share.mul_(slope)
        log_scale = scale.log()
    return Read(mean, scale, log_scale, mean_slope, slope)


def through(gradient: Tensor, slope: Tensor | None) -> Tensor:
    """A gradient, multiplied in place by a slope."""
    return gradient if slope is None else gradient.mul_(slope)


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) shaped to multiply tensors (B, ...)."""
    return value.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def dtypes_of(*tensors: Tensor | None) -> tuple[torch.dtype | None, ...]:
    """Types of tensors; None for None."""
    return tuple(None if tensor is None else tensor.dtype for tensor in tensors)


def typed(gradients: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> Iterator[Tensor | None]:
    """Gradients in the types of what they belong to."""
    pairs = zip(gradients, dtypes, strict=True)
    return (None if one is None or dtype is None else one.to(dtype) for one, dtype in pairs)


class Gaussian(torch.autograd.Function):
    """z and KL of a diagonal Gaussian."""

    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        log_scale: Tensor,
        prior_mean: Tensor | None,
        prior_log_scale: Tensor | None,
        noise: Tensor,
        form: GaussianForm,
    ) -> tuple[Tensor, Tensor]:
        """Draw, and keep what the gradients need."""
        dtype = noise.dtype
        raw_mean, raw_log_scale = mean.to(dtype), log_scale.to(dtype)
        p = None
        if prior_mean is not None and prior_log_scale is not None:
            p_mean, p_log_scale = prior_mean.to(dtype), prior_log_scale.to(dtype)
            if form.residual:
                raw_mean, raw_log_scale = raw_mean + p_mean, raw_log_scale + p_log_scale
            p = read(p_mean, p_log_scale, form)
        q = read(raw_mean, raw_log_scale, form)
        step = q.scale * noise
        z = (q.mean + step).to(mean.dtype)
        if p is None:
            inverse = torch.full((), 1 / (1 + form.scale_floor), dtype=dtype)
            shift, ratio = q.mean * inverse, q.scale * inverse
            gap = q.log_scale + inverse.log()
        else:
            inverse = p.scale.reciprocal_()
            shift, ratio = (q.mean - p.mean).mul_(inverse), q.scale * inverse
            gap = q.log_scale - p.log_scale
        cost = torch.addcmul(shift.square(), ratio, ratio).sub_(1).mul_(0.5).sub_(gap)
        slopes = q.mean_slope, q.slope, *((p.mean_slope, p.slope) if p else (None, None))
        ctx.save_for_backward(step, shift, ratio, inverse, *slopes)
        ctx.dtypes = dtypes_of(mean, log_scale, prior_mean, prior_log_scale)
        ctx.residual = form.residual
        return z, sum_per_sample(cost)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of the raw values; the formulas are those of `kernels.gpu.gaussian.gradients`."""
        library.refuse_second_order()
        step, shift, ratio, inverse, q_mean_slope, q_slope, p_mean_slope, p_slope = ctx.saved_tensors
        k, g = per_sample(grad_kl, shift), grad_z.to(shift.dtype)
        weighted = shift * k
        pull = weighted * inverse
        d_log = (ratio * ratio).sub_(1).mul_(k)
        prior: tuple[Tensor | None, Tensor | None] = None, None
        if ctx.dtypes[2] is not None:
            p_log = torch.addcmul(d_log, weighted, shift).neg_()
            prior = through(pull.neg(), p_mean_slope), through(p_log, p_slope)
        d_mean = through(pull.add_(g), q_mean_slope)
        d_log = through(d_log.addcmul_(step, g), q_slope)
        if ctx.residual and prior[0] is not None and prior[1] is not None:
            prior = prior[0].add_(d_mean), prior[1].add_(d_log)
        return *typed((d_mean, d_log, *prior), ctx.dtypes), None, None


class NativeGaussian(torch.autograd.Function):
    """z and KL of a diagonal Gaussian through the C kernels; keeps the parameters and the noise."""

    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        log_scale: Tensor,
        prior_mean: Tensor | None,
        prior_log_scale: Tensor | None,
        noise: Tensor | None,
        key: tuple[int, int, int],
        form: GaussianForm,
    ) -> tuple[Tensor, Tensor]:
        """Draw; `key` is (seed, group, first sample)."""
        posterior, lib = library.parameters(mean, log_scale), library.library()
        prior = None
        if prior_mean is not None and prior_log_scale is not None:
            prior = library.parameters(prior_mean, prior_log_scale)
        assert lib is not None
        z, kl, eps, _ = library.gaussian(lib, posterior, prior, form, noise, key)
        ctx.save_for_backward(eps, *posterior, *(prior or ()))
        ctx.form, ctx.dtypes = form, dtypes_of(mean, log_scale, prior_mean, prior_log_scale)
        return z.to(mean.dtype), kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of the raw values."""
        library.refuse_second_order()
        eps, mean, log_scale, *prior_pair = ctx.saved_tensors
        posterior = library.Parameters(mean, log_scale)
        prior, lib = library.Parameters(*prior_pair) if prior_pair else None, library.library()
        assert lib is not None
        gradients = library.gaussian_backward(lib, posterior, prior, ctx.form, eps, grad_z, grad_kl)
        return *typed((*gradients, None, None)[:4], ctx.dtypes), None, None, None


def runs_in_c(values: Tensor) -> bool:
    """Whether the C kernels are there and take these values: on the CPU, computed in float32."""
    return values.device.type == "cpu" and values.dtype != torch.float64 and library.library() is not None


def draw_noise(
    noise: Tensor | None, seed: Tensor, group: int, shape: torch.Size, first_sample: int, dtype: torch.dtype
) -> Tensor:
    """The external noise if there is one, else the keyed noise, from the C kernel where there is one."""
    lib = library.library()
    if noise is None and lib is not None and dtype == torch.float32 and seed.device.type == "cpu":
        return library.normals(lib, seed, group, shape, first_sample)
    return keyed_or_external(noise, seed, group, shape, first_sample, dtype)


def in_c_with_log_ratio(
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    noise: Tensor | None,
    key: tuple[int, int, int],
    form: GaussianForm,
) -> GaussianDraw:
    """A draw with its KL and log q(z) - log p(z) through the C kernels, without gradients."""
    lib, (mean, log_scale, prior_mean, prior_log_scale) = library.loaded(), parameters
    prior = None
    if prior_mean is not None and prior_log_scale is not None:
        prior = library.parameters(prior_mean, prior_log_scale)
    z, kl, _, ratio = library.gaussian(
        lib, library.parameters(mean, log_scale), prior, form, noise, key, log_ratio=True
    )
    return GaussianDraw(z.to(mean.dtype), kl, ratio)


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
    """A draw with its KL; see `kernels.ops.GaussianSampleKL`. A log ratio with gradients takes the reference."""
    check_gaussian(mean, log_scale, prior_mean, prior_log_scale, noise)
    parameters, dtype = (mean, log_scale, prior_mean, prior_log_scale), wide(mean.dtype)
    gradients = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in parameters)
    if log_ratio and runs_in_c(mean) and not gradients:
        return in_c_with_log_ratio(parameters, noise, (int(seed), group, first_sample), form)
    if not log_ratio and runs_in_c(mean):
        z, kl = NativeGaussian.apply(*parameters, noise, (int(seed), group, first_sample), form)
        return GaussianDraw(z, kl, None)
    eps = draw_noise(noise, seed, group, mean.shape, first_sample, dtype)
    if log_ratio:
        return REFERENCE.gaussian_sample_kl(*parameters, seed=seed, group=group, form=form, noise=eps, log_ratio=True)
    z, kl = Gaussian.apply(*parameters, eps, form)
    return GaussianDraw(z, kl, None)


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
    logits, rest = parameters[:, :k], parameters[:, k:].unflatten(1, (channels, -1))
    pixels = (2 * x - 1).unsqueeze(2)
    centred = pixels - rest[:, :, :k]
    coefficients = rest[:, :, 2 * k :].tanh()
    red, green = pixels[:, 0], pixels[:, min(1, channels - 1)]
    if channels == 3:
        centred[:, 1].addcmul_(coefficients[:, 0], red, value=-1)
        centred[:, 2].addcmul_(coefficients[:, 1], red, value=-1).addcmul_(coefficients[:, 2], green, value=-1)
    log_scale = rest[:, :, k : 2 * k]
    terms = level_terms(centred, log_scale, pixels, 1.0 / (2**bits - 1))
    log_weights = F.log_softmax(logits, 1)
    joint = terms.linear.sum(1).add_(terms.factor.prod(1).log_()).add_(log_weights)
    evidence = torch.logsumexp(joint, 1, keepdim=True)
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


class Mixture(torch.autograd.Function):
    """Log p(x) of the logistic mixture with its gradient."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, x: Tensor, bits: int, differentiate: bool) -> Tensor:
        """Value (B,); the gradient for unit upstream is all that is kept."""
        dtype, lib = wide(parameters.dtype), library.library()
        values = parameters.to(dtype)
        gradient = values.new_empty(values.shape) if differentiate else None
        if lib is not None and runs_in_c(parameters):
            log_prob = library.mixture(lib, values.contiguous(), x.float().contiguous(), bits, gradient).to(dtype)
        else:
            log_prob = mixture_by_chunks(values, x, bits, gradient)
        ctx.dtype = parameters.dtype
        ctx.save_for_backward(gradient)
        return log_prob

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the parameters."""
        library.refuse_second_order()
        (gradient,) = ctx.saved_tensors
        return (gradient * per_sample(upstream, gradient)).to(ctx.dtype), None, None, None


def logistic_mixture_log_prob(parameters: Tensor, x: Tensor, *, bits: int, original_edges: bool = False) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.LogisticMixtureLogProb`. The original's edges take the reference."""
    if original_edges:
        return REFERENCE.logistic_mixture_log_prob(parameters, x, bits=bits, original_edges=True)
    mixture_components(parameters, x)
    differentiate = torch.is_grad_enabled() and parameters.requires_grad
    return Mixture.apply(parameters, x.detach(), bits, differentiate)


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
    """A draw at a temperature; see `kernels.ops.GaussianSample`."""
    eps = draw_noise(noise, seed, group, mean.shape, first_sample, wide(mean.dtype))
    return REFERENCE.gaussian_sample(
        mean, log_scale, seed=seed, group=group, form=form, temperature=temperature, noise=eps
    )


NETWORK = NetworkOps(residual_cell, prepare_cell, run_prepared, convolution, weight_norm, spectral_norms)
CPU = Ops(
    "cpu",
    gaussian_sample_kl,
    gaussian_sample,
    logistic_mixture_log_prob,
    REFERENCE.norm_swish,
    pixels.bernoulli_log_prob,
    pixels.image_linear,
    NETWORK,
)
