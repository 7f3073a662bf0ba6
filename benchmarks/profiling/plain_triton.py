# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
"""A draw of latents with its KL in plain Triton, as written first: what the fused operation is timed against.

One program a block of contiguous elements, Triton's own generator and functions, the KL element by element and then
summed by PyTorch, gradients from everything computed again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ops import PLAIN, GaussianDraw, GaussianForm
from kernels.reference.backend import REFERENCE

BLOCK = 1024


@triton.jit
def tanh(x):
    """Hyperbolic tangent."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def load(pointer, at, inside):
    """A block in float32."""
    return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def scaled(mean, log_scale, CLAMP: tl.constexpr, FLOOR: tl.constexpr):
    """Mean and scale, and the slopes of both in the raw values."""
    slope_mean, slope = 1.0, 1.0
    if CLAMP is not None:
        of_mean, of_scale = tanh(mean / CLAMP), tanh(log_scale / CLAMP)
        mean, log_scale = CLAMP * of_mean, CLAMP * of_scale
        slope_mean, slope = 1 - of_mean * of_mean, 1 - of_scale * of_scale
    scale = tl.exp(log_scale)
    return mean, scale + FLOOR, slope_mean, slope * scale


@triton.jit
def pair(raw, prior, at, inside, LEARNED: tl.constexpr, RESIDUAL: tl.constexpr):
    """Raw parameters of posterior and prior."""
    mean, log_scale = load(raw[0], at, inside), load(raw[1], at, inside)
    zero = tl.zeros_like(mean)
    prior_mean, prior_log_scale = zero, zero
    if LEARNED:
        prior_mean, prior_log_scale = load(prior[0], at, inside), load(prior[1], at, inside)
    if RESIDUAL:
        mean, log_scale = mean + prior_mean, log_scale + prior_log_scale
    return mean, log_scale, prior_mean, prior_log_scale


@triton.jit
def forward(
    raw,
    prior,
    z,
    kl,
    seed,
    n,
    LEARNED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CLAMP: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draws, and the KL of each element."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    mean, log_scale, prior_mean, prior_log_scale = pair(raw, prior, at, inside, LEARNED, RESIDUAL)
    m, s, _, _ = scaled(mean, log_scale, CLAMP, FLOOR)
    pm, ps, _, _ = scaled(prior_mean, prior_log_scale, CLAMP, FLOOR)
    tl.store(z + at, m + s * tl.randn(tl.load(seed), at), mask=inside)
    tl.store(kl + at, tl.log(ps / s) + (s * s + (m - pm) * (m - pm)) / (2 * ps * ps) - 0.5, mask=inside)


@triton.jit
def backward(
    raw,
    prior,
    grads,
    grad_z,
    grad_kl,
    seed,
    n,
    size,
    LEARNED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CLAMP: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the raw parameters; `size` elements a sample."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    mean, log_scale, prior_mean, prior_log_scale = pair(raw, prior, at, inside, LEARNED, RESIDUAL)
    m, s, slope_m, slope_s = scaled(mean, log_scale, CLAMP, FLOOR)
    pm, ps, slope_pm, slope_ps = scaled(prior_mean, prior_log_scale, CLAMP, FLOOR)
    upstream, rate = load(grad_z, at, inside), tl.load(grad_kl + at // size, mask=inside, other=0.0)
    gap = (m - pm) / (ps * ps)
    d_mean = (upstream + rate * gap) * slope_m
    d_scale = (upstream * tl.randn(tl.load(seed), at) + rate * (s / (ps * ps) - 1 / s)) * slope_s
    tl.store(grads[0] + at, d_mean, mask=inside)
    tl.store(grads[1] + at, d_scale, mask=inside)
    if LEARNED:
        d_prior_mean = -rate * gap * slope_pm
        d_prior_scale = rate * (1 / ps - (s * s + (m - pm) * (m - pm)) / (ps * ps * ps)) * slope_ps
        if RESIDUAL:
            d_prior_mean, d_prior_scale = d_prior_mean + d_mean, d_prior_scale + d_scale
        tl.store(grads[2] + at, d_prior_mean, mask=inside)
        tl.store(grads[3] + at, d_prior_scale, mask=inside)


class PlainDraw(torch.autograd.Function):
    """Draws, and the KL of each sample."""

    @staticmethod
    def forward(ctx: Any, seed: Tensor, form: GaussianForm, *raw: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw."""
        raw = tuple(one.contiguous() for one in raw)
        z, kl = torch.empty_like(raw[0]), torch.empty_like(raw[0], dtype=torch.float32)
        ctx.save_for_backward(seed, *raw)
        ctx.options = len(raw) > 2, form.residual, form.soft_clamp, form.scale_floor, BLOCK
        forward[(triton.cdiv(z.numel(), BLOCK),)](raw[:2], raw[2:] or None, z, kl, seed, z.numel(), *ctx.options)
        return z, kl.flatten(1).sum(1)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of the raw parameters."""
        seed, *raw = ctx.saved_tensors
        grads = tuple(torch.empty_like(one) for one in raw)
        n, size = raw[0].numel(), raw[0][0].numel()
        given = grad_z.contiguous(), grad_kl.contiguous(), seed, n, size
        prior = tuple(raw[2:]) or None
        backward[(triton.cdiv(n, BLOCK),)](tuple(raw[:2]), prior, grads, *given, *ctx.options)
        return None, None, *grads


def sample_kl(
    mean: Tensor,
    log_scale: Tensor,
    prior_mean: Tensor | None,
    prior_log_scale: Tensor | None,
    *,
    seed: Tensor,
    group: int,
    form: GaussianForm = PLAIN,
) -> GaussianDraw:
    """A draw with its KL; see `kernels.ops.GaussianSampleKL`, whose other requests it does not know."""
    prior = [one for one in (prior_mean, prior_log_scale) if one is not None]
    z, kl = PlainDraw.apply(seed, form, mean, log_scale, *prior)  # pyright: ignore[reportGeneralTypeIssues]
    return GaussianDraw(z, kl, None)


PLAIN_TRITON = dataclasses.replace(REFERENCE, name="plain Triton", gaussian_sample_kl=sample_kl)
