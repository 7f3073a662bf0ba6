"""CPU: draws of diagonal Gaussians with their KL, and gradients written by hand.

Autograd over the reference keeps a dozen tensors of the latents' size. Here the Gaussian keeps what both passes need,
its noise among it (drawing it again costs more than reading it). Where there is a C compiler, noise and Gaussian run in
C (`philox.c`, `gaussian.c`); elsewhere in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.gradients import dtypes_of, per_sample, refuse_second_order, through, typed
from kernels.cpu.structures import Form, Raw, Shape, pointer
from kernels.ops import PLAIN, GaussianDraw, GaussianForm
from kernels.reference import gaussian as reference
from kernels.reference.gaussian import check_gaussian, keyed_or_external, sum_per_sample
from kernels.reference.precision import wide


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
        refuse_second_order()
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


def normals(seed: Tensor, group: int, shape: torch.Size, first_sample: int) -> Tensor:
    """`kernels.reference.philox.normals` in float32 on the CPU: the same words, normals within 1e-6."""
    noise, samples = torch.empty(shape), shape[0]
    size, threads = noise.numel() // max(1, samples), library.threads_for(noise.numel(), samples)
    library.loaded().vaebench_normals(noise.data_ptr(), int(seed), group, first_sample, samples, size, threads)
    return noise


def by_pixels(x: Tensor) -> bool:
    """Whether a map (B, C, h, w) in float32 lies pixel by pixel: whole, or some channels of a wider map."""
    if x.ndim != 4 or x.dtype != torch.float32 or x.shape[1] == 1:
        return False
    _, channel, line, pixel = x.stride()
    height, width = x.shape[2:]
    return channel == 1 and pixel >= x.shape[1] and (height == 1 or line == width * pixel) and height * width > 1


def to_planes(x: Tensor) -> Tensor:
    """The map (B, C, h, w) channel by channel: contiguous."""
    if not by_pixels(x):
        return x.contiguous()
    images, channels, height, width = x.shape
    out = torch.empty(x.shape)
    pixels, threads = height * width, library.threads_for(x.numel(), images)
    library.loaded().vaebench_to_planes(
        x.data_ptr(), x.stride(0), x.stride(3), out.data_ptr(), images, pixels, channels, threads
    )
    return out


def to_pixels(x: Tensor) -> Tensor:
    """The contiguous map (B, C, h, w) in float32 pixel by pixel: channels-last."""
    images, channels, height, width = x.shape
    out = torch.empty(x.shape, memory_format=torch.channels_last)
    pixels, threads = height * width, library.threads_for(x.numel(), images)
    library.loaded().vaebench_to_pixels(x.data_ptr(), out.data_ptr(), images, pixels, channels, threads)
    return out


class Parameters(NamedTuple):
    """Raw mean and log scale (B, ...) in float32, or their gradients, which lie alike.

    By pixels, `step` floats apart; or, where it is 0, with contiguous samples that lie equally far apart.
    """

    mean: Tensor
    log_scale: Tensor
    step: int = 0

    @property
    def order(self) -> torch.memory_format:
        """Of maps that lie in the same order without gaps."""
        return torch.channels_last if self.step else torch.contiguous_format

    def raw(self) -> Raw:
        """The parameters as the C kernels take them."""
        row = self.mean.stride(0) if len(self.mean) > 1 else 0
        return Raw(self.mean.data_ptr(), self.log_scale.data_ptr(), row, self.step)


def parameters(*raw: Tensor | None) -> list[Parameters]:
    """Mean and log scale, and those of a prior unless they are null, as the C kernels read them: all in one order.

    The halves of a convolution's output are read in place.
    """
    values = [value.float() for value in raw if value is not None]
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if all(map(by_pixels, values)) and all(mean.stride() == log_scale.stride() for mean, log_scale in pairs):
        return [Parameters(mean, log_scale, mean.stride(3)) for mean, log_scale in pairs]
    rows = (pair if in_rows(*pair) else (to_planes(pair[0]), to_planes(pair[1])) for pair in pairs)
    return [Parameters(mean, log_scale) for mean, log_scale in rows]


def in_rows(mean: Tensor, log_scale: Tensor) -> bool:
    """Whether samples are contiguous and lie equally far apart."""
    return all(one[:1].is_contiguous() for one in (mean, log_scale)) and mean.stride(0) == log_scale.stride(0)


def new_parameters(like: Parameters) -> Parameters:
    """Uninitialised parameters that lie like others: by pixels as the halves of one map, else contiguous."""
    if not like.step:
        return Parameters(torch.empty(like.mean.shape), torch.empty(like.mean.shape))
    batch, channels, height, width = like.mean.shape
    both = torch.empty(batch, 2 * channels, height, width, memory_format=torch.channels_last)
    return Parameters(both[:, :channels], both[:, channels:], 2 * channels)


def form_of(form: GaussianForm) -> Form:
    """The form as the C kernels take it."""
    return Form(form.soft_clamp or 0.0, form.scale_floor, form.residual)


def described(pairs: Sequence[Parameters]) -> list[Raw]:
    """Those of the posterior and of the prior, if there is one, as the C kernels take them."""
    return [*(pair.raw() for pair in pairs), Raw()][:2]


def gaussian(
    raw: Sequence[Parameters],
    form: GaussianForm,
    noise: Tensor | None,
    key: tuple[int, int, int],
    log_ratio: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """z, KL (B,), the noise used, and log q(z) - log p(z) (B,) if asked for; float32, maps in the order of `raw`.

    `raw` are the parameters of the posterior and of the prior, if there is one; `key` is (seed, group, first sample).
    """
    samples, order = len(raw[0].mean), raw[0].order
    z, kl = torch.empty(raw[0].mean.shape, memory_format=order), torch.zeros(samples)
    ratio = torch.zeros(samples) if log_ratio else None
    eps = torch.empty_like(z) if noise is None else noise.float().contiguous(memory_format=order)
    library.loaded().vaebench_gaussian(
        *described(raw),
        form_of(form),
        eps.data_ptr(),
        noise is None,
        *key,
        *(pointer(one) for one in (z, kl, ratio)),
        samples,
        shape_of(z),
        library.threads_for(z.numel(), samples),
    )
    return z, kl, eps, ratio


def shape_of(latents: Tensor) -> Shape:
    """Channels and pixels of latents (B, ...)."""
    pixels = latents.shape[2] * latents.shape[3] if latents.ndim == 4 else 1
    return Shape(latents.numel() // max(1, len(latents) * pixels), pixels)


def gaussian_backward(
    raw: Sequence[Parameters], form: GaussianForm, noise: Tensor, grad_z: Tensor, grad_kl: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of mean and log scale, and of those of the prior if there is one, float32, in the order of `raw`."""
    samples, found, order = len(noise), [new_parameters(pair) for pair in raw], raw[0].order
    grad_z = grad_z.float()
    grad_z = grad_z.contiguous(memory_format=order) if raw[0].step else to_planes(grad_z)
    upstream = noise, grad_z, grad_kl.float().contiguous()
    library.loaded().vaebench_gaussian_backward(
        *described(raw),
        form_of(form),
        *(one.data_ptr() for one in upstream),
        *described(found),
        samples,
        shape_of(noise),
        library.threads_for(noise.numel(), samples),
    )
    return tuple(half for pair in found for half in pair[:2])


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
        raw = parameters(mean, log_scale, prior_mean, prior_log_scale)
        z, kl, eps, _ = gaussian(raw, form, noise, key)
        ctx.save_for_backward(eps, *(half for pair in raw for half in pair[:2]))
        ctx.form, ctx.dtypes = form, dtypes_of(mean, log_scale, prior_mean, prior_log_scale)
        return z.to(mean.dtype), kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of the raw values."""
        refuse_second_order()
        eps, *raw = ctx.saved_tensors
        gradients = gaussian_backward(parameters(*raw), ctx.form, eps, grad_z, grad_kl)
        return *typed((*gradients, None, None)[:4], ctx.dtypes), None, None, None


def draw_noise(
    noise: Tensor | None, seed: Tensor, group: int, shape: torch.Size, first_sample: int, dtype: torch.dtype
) -> Tensor:
    """The external noise if there is one, else the keyed noise, from the C kernel where there is one."""
    if noise is None and dtype == torch.float32 and seed.device.type == "cpu" and library.library() is not None:
        return normals(seed, group, shape, first_sample)
    return keyed_or_external(noise, seed, group, shape, first_sample, dtype)


def in_c_with_log_ratio(
    raw: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    noise: Tensor | None,
    key: tuple[int, int, int],
    form: GaussianForm,
) -> GaussianDraw:
    """A draw with its KL and log q(z) - log p(z) through the C kernels, without gradients."""
    z, kl, _, ratio = gaussian(parameters(*raw), form, noise, key, log_ratio=True)
    return GaussianDraw(z.to(raw[0].dtype), kl, ratio)


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
    raw, in_c = (mean, log_scale, prior_mean, prior_log_scale), library.takes(mean, half=True, autocast=True)
    gradients = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in raw)
    if log_ratio and in_c and not gradients:
        return in_c_with_log_ratio(raw, noise, (int(seed), group, first_sample), form)
    if not log_ratio and in_c:
        z, kl = NativeGaussian.apply(*raw, noise, (int(seed), group, first_sample), form)
        return GaussianDraw(z, kl, None)
    eps = draw_noise(noise, seed, group, mean.shape, first_sample, wide(mean.dtype))
    if log_ratio:
        return reference.gaussian_sample_kl(*raw, seed=seed, group=group, form=form, noise=eps, log_ratio=True)
    z, kl = Gaussian.apply(*raw, eps, form)
    return GaussianDraw(z, kl, None)


def takes_pixels(mean: Tensor, log_scale: Tensor, form: GaussianForm) -> bool:
    """Whether C draws from these parameters as they lie, pixel by pixel: raw values taken as they are, no gradients."""
    gradients = torch.is_grad_enabled() and (mean.requires_grad or log_scale.requires_grad)
    as_they_are = form.soft_clamp is None and not form.scale_floor
    alike = by_pixels(mean) and by_pixels(log_scale) and mean.stride() == log_scale.stride()
    return library.takes(mean, autocast=True) and as_they_are and alike and not gradients


def sample_pixels(mean: Tensor, log_scale: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Z = mean + temperature exp(log_scale) noise (B, C, h, w), channels-last."""
    z = to_pixels(noise.contiguous())
    images, channels, height, width = mean.shape
    library.loaded().vaebench_gaussian_sample(
        *(mean.data_ptr(), log_scale.data_ptr(), mean.stride(0), mean.stride(3), temperature, z.data_ptr()),
        *(images, height * width, channels, library.threads_for(z.numel(), images)),
    )
    return z


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
    if takes_pixels(mean, log_scale, form):
        check_gaussian(mean, log_scale, None, None, noise)
        return sample_pixels(
            mean, log_scale, draw_noise(noise, seed, group, mean.shape, first_sample, mean.dtype), temperature
        )
    eps = draw_noise(noise, seed, group, mean.shape, first_sample, wide(mean.dtype))
    return reference.gaussian_sample(
        mean, log_scale, seed=seed, group=group, form=form, temperature=temperature, noise=eps
    )
