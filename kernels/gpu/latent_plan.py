"""Launches the Triton kernels: strides, block sizes, warps and 64-bit indexing, decided once here.

Nothing is copied to be made contiguous unless the trailing dimensions of a tensor do not collapse into one
(channel, pixel) pair of strides, or a pair of mean and log scale differs in its strides.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kernels.gpu import gaussian
from kernels.interpreter import interpreting
from kernels.ops import GaussianForm

Layout = Literal["flat", "channels_last", "strided"]
Fast = Literal[0, 1, 2]
"""Whose approximate instructions are used: nobody's, NVIDIA's (`kernels.gpu.device.CUDA`) or AMD's (HIP)."""
Strides = tuple[int, int, int]
Pair = tuple[Tensor, Tensor]

LATENTS_PER_THREAD = 16
"""Enough to amortise the keys of the noise and the reduction of the KL."""
BLOCKS = (2048, 1024, 512, 256, 128)
USEFUL_SHARE = 0.8
"""The largest block is taken whose lanes are used to at least this share."""
SMALLEST_EXACT = 512
"""Smaller blocks give a thread too few latents to be worth the masks they save."""
MAX_BLOCKS = 65535
"""Bound of the second grid axis of CUDA."""


@dataclass(frozen=True)
class Walk:
    """How programs walk through the latents of a sample.

    layout "flat": each sample is contiguous (also when its rows are halves of a convolution's output);
    "channels_last": channels are contiguous, and a program takes four neighbouring pixels of each channel, which
    share a Philox call, and walks along the channels; "strided": any strides, in logical order.

    Args:
        layout: see above.
        channels: number of channels for "channels_last", else 0.
        unit: number that divides all strides and the size; strides are given in this unit.
        alignment: bytes that divide the address of every sample of every tensor.
        block: latents of one program.
        full: no program reaches past the end of its sample, so that nothing is masked.
        neighbours: latents side by side in a thread, 128 bits: 8 of 16 bits, else 4.
        fast: whose approximate instructions are used.
    """

    layout: Layout
    channels: int
    unit: int
    alignment: int
    block: int
    full: bool
    neighbours: int
    fast: Fast

    def warps(self, lanes: int) -> int:
        """Warps of `lanes` threads in one program; a channels-last thread holds four pixels of its neighbours."""
        latents = 4 * self.neighbours if self.layout == "channels_last" else LATENTS_PER_THREAD
        return max(1, self.block // (lanes * latents))


class Extent(NamedTuple):
    """Samples, and the channels and pixels of one; a vector of latents counts as pixels of one channel."""

    samples: int
    channels: int
    pixels: int

    @property
    def size(self) -> int:
        """Latents of one sample."""
        return self.channels * self.pixels


def extent_of(tensor: Tensor) -> Extent:
    """The extent of latents (B, ...)."""
    channels, pixels = tensor.shape[1] if tensor.ndim > 1 else 1, math.prod(tensor.shape[2:])
    if pixels == 1:
        channels, pixels = 1, channels
    return Extent(tensor.shape[0], channels, pixels)


def strides_of(tensor: Tensor) -> Strides | None:
    """(sample, channel, pixel) strides of latents (B, C, ...), or None where the pixels have no single stride."""
    dims = list(zip(tensor.shape, tensor.stride(), strict=True))[2:]
    dims = [(size, stride) for size, stride in dims if size > 1]
    if any(outer != size * inner for (_, outer), (size, inner) in itertools.pairwise(dims)):
        return None
    sample = tensor.stride(0) if tensor.shape[0] > 1 else 0
    channel = tensor.stride(1) if tensor.ndim > 1 and tensor.shape[1] > 1 else 0
    return (sample, channel, dims[-1][1]) if dims else (sample, 0, channel)


def is_flat(strides: Strides, extent: Extent) -> bool:
    """Whether a sample is contiguous."""
    _, channel, pixel = strides
    return (extent.pixels == 1 or pixel == 1) and (extent.channels == 1 or channel == extent.pixels)


def is_channels_last(strides: Strides, extent: Extent) -> bool:
    """Whether channels are contiguous, pixels come in fours, and a sample spans fewer than 2^31 elements."""
    _, channel, pixel = strides
    return channel == 1 and extent.pixels % 4 == 0 and extent.channels * extent.pixels * max(pixel, 1) < 2**31


def choose_layout(fields: Iterable[Strides], extent: Extent) -> Layout:
    """The fastest layout that all fields share."""
    fields = list(fields)
    if all(is_flat(strides, extent) for strides in fields):
        return "flat"
    if all(is_channels_last(strides, extent) for strides in fields):
        return "channels_last"
    return "strided"


def choose_block(size: int, smallest: int) -> int:
    """Latents of one program: the largest block that divides the size, else that is well used, else the best used."""
    share = {block: size / (-(-size // block) * block) for block in BLOCKS if block >= smallest}
    exact = [block for block in share if share[block] == 1 and block >= SMALLEST_EXACT]
    well_used = [block for block in share if share[block] >= USEFUL_SHARE]
    return (exact or well_used or [max(share, key=lambda block: share[block])])[0]


def used_strides(strides: Strides, layout: Layout) -> Strides:
    """The strides that a layout reads; 0 for the others."""
    sample, channel, pixel = strides
    return {"flat": (sample, 0, 0), "channels_last": (sample, 0, pixel), "strided": (sample, channel, pixel)}[layout]


class Field(NamedTuple):
    """Tensors of latents that share their strides."""

    tensors: tuple[Tensor, ...]
    strides: Strides

    def argument(self, walk: Walk) -> tuple[Tensor | Strides, ...]:
        """The field as the kernels take it."""
        sample, channel, pixel = used_strides(self.strides, walk.layout)
        return *self.tensors, (sample // walk.unit, channel // walk.unit, pixel // walk.unit)

    def addresses(self) -> list[int]:
        """Numbers of bytes whose common divisors divide the address of every sample."""
        sizes = [self.strides[0] * tensor.element_size() for tensor in self.tensors]
        return [*sizes, *(tensor.data_ptr() for tensor in self.tensors)]


def field(*tensors: Tensor) -> Field | None:
    """The field of `tensors`, copied only if their strides differ or do not collapse; None without tensors."""
    if not tensors:
        return None
    strides = {strides_of(tensor) for tensor in tensors}
    if len(strides) > 1 or None in strides:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
    common = strides_of(tensors[0])
    assert common is not None
    return Field(tensors, common)


def present(tensor: Tensor | None) -> tuple[Tensor, ...]:
    """The tensor if there is one."""
    return () if tensor is None else (tensor,)


def argument(one: Field | None, walk: Walk) -> tuple[Tensor | Strides, ...] | None:
    """A field as the kernels take it; None for None."""
    return None if one is None else one.argument(walk)


def choose_walk(fields: Iterable[Field | None], like: Tensor) -> Walk:
    """The walk for fields of latents shaped like `like`."""
    given, extent = [one for one in fields if one is not None], extent_of(like)
    layout = choose_layout([one.strides for one in given], extent)
    numbers = [extent.size, *(number for one in given for number in used_strides(one.strides, layout))]
    addresses = [number for one in given for number in one.addresses()]
    sixteen_bit = all(tensor.element_size() == 2 for one in given for tensor in one.tensors)
    neighbours = 8 if sixteen_bit and (layout != "channels_last" or extent.channels % 8 == 0) else 4
    block = choose_block(extent.size, smallest=32 * neighbours)
    limit = min(2**31, block * MAX_BLOCKS)
    if extent.size >= limit:
        raise ValueError(f"expected fewer than {limit} latents a sample, got {extent.size}")
    return Walk(
        layout=layout,
        channels=extent.channels if layout == "channels_last" else 0,
        unit=1 if layout == "strided" else math.gcd(16, *numbers),
        alignment=math.gcd(16, *addresses),
        block=block,
        full=extent.size % block == 0,
        neighbours=neighbours,
        fast=fast_math(like),
    )


def output_like(mean: Tensor) -> Tensor:
    """Uninitialised latents in the mean's memory format, contiguous where its pixels have no single stride."""
    output = torch.empty_like(mean)
    return output if strides_of(output) is not None else mean.new_empty(mean.shape)


def alike(tensor: Tensor, like: Tensor) -> Tensor:
    """Uninitialised memory in the strides of `tensor` and the type of `like`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=like.dtype, device=like.device)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, so that a kernel is launched where its data are."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def fast_math(tensor: Tensor) -> Fast:
    """Whose approximate instructions the tensor's device has."""
    if not tensor.is_cuda or interpreting():
        return 0
    return 1 if torch.version.hip is None else 2


def warp_lanes() -> int:
    """Threads of a warp: 64 on ROCm, 32 elsewhere."""
    return 32 if torch.version.hip is None else 64


class Gradients(NamedTuple):
    """Upstream gradients of z, and of KL and log ratio (B,) float32 contiguous, or None."""

    z: Tensor
    kl: Tensor | None
    log_ratio: Tensor | None


class Request(NamedTuple):
    """What one draw is asked for, besides the tensors of latents; see `kernels.ops.GaussianSampleKL`.

    A `temperature` asks for a draw alone, without KL.
    """

    seed: Tensor
    group: int
    first_sample: int
    form: GaussianForm
    temperature: float | None
    log_ratio: bool


def total(parts: Tensor) -> Tensor:
    """Second stage of the sum over blocks, in a fixed order: (B, blocks) -> (B,)."""
    return parts.sum(1) if parts.shape[1] != 1 else parts.view(-1)


def launch(kernel: Any, extent: Extent, walk: Walk, request: Request, *arguments: object) -> None:
    """Run a kernel of `kernels.gpu.gaussian` with one program for each block of each sample."""
    grid = (extent.samples, -(-extent.size // walk.block))
    kernel[grid](
        *arguments,
        extent.size // walk.unit,
        extent.pixels,
        request.group,
        request.first_sample,
        request.temperature,
        FORM=request.form,
        WALK=walk,
        num_warps=walk.warps(warp_lanes()),
        enable_fp_fusion=True,
    )


def gaussian_forward(
    mean: Tensor, log_scale: Tensor, prior: Pair | None, noise: Tensor | None, request: Request
) -> tuple[Tensor, Tensor, Tensor]:
    """z, KL (B,) and log ratio (B,), float32; what was not asked for is empty."""
    extent, z = extent_of(mean), output_like(mean)
    kl_rows = mean.shape[0] if request.temperature is None else 0
    ratio_rows = mean.shape[0] if request.log_ratio else 0
    if not z.numel():
        return z, mean.new_zeros(kl_rows, dtype=torch.float32), mean.new_zeros(ratio_rows, dtype=torch.float32)
    fields = field(mean, log_scale), field(*(prior or ())), field(*present(noise)), field(z)
    walk = choose_walk(fields, mean)
    blocks = -(-extent.size // walk.block)
    kl = mean.new_empty((kl_rows, blocks), dtype=torch.float32)
    ratio = mean.new_empty((ratio_rows, blocks), dtype=torch.float32)
    posterior_at, prior_at, noise_at, z_at = (argument(one, walk) for one in fields)
    sums = kl if kl_rows else None, ratio if ratio_rows else None
    with on_device(mean):
        launch(gaussian.forward, extent, walk, request, posterior_at, prior_at, noise_at, request.seed, z_at, *sums)
        return z, total(kl), total(ratio)


def gaussian_backward(
    mean: Tensor,
    log_scale: Tensor,
    prior: Pair | None,
    noise: Tensor | None,
    request: Request,
    gradients: Gradients,
    prior_needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of mean, log scale, prior mean and prior log scale; those of the prior are empty if not needed."""
    extent, d_mean = extent_of(mean), output_like(mean)
    d_posterior = d_mean, alike(d_mean, log_scale)
    d_prior = (alike(d_mean, prior[0]), alike(d_mean, prior[1])) if prior is not None and prior_needed else ()
    if d_mean.numel():
        outputs = field(*d_posterior), field(*d_prior)
        fields = field(mean, log_scale), field(*(prior or ())), field(*present(noise)), field(gradients.z), *outputs
        walk = choose_walk(fields, mean)
        posterior_at, prior_at, noise_at, z_at, *outputs_at = (argument(one, walk) for one in fields)
        sums = gradients.kl, gradients.log_ratio
        with on_device(mean):
            launch(
                gaussian.backward,
                extent,
                walk,
                request,
                posterior_at,
                prior_at,
                noise_at,
                request.seed,
                z_at,
                *sums,
                *outputs_at,
            )
    empty = mean.new_empty(0)
    return *d_posterior, *(d_prior or (empty, empty.clone()))
