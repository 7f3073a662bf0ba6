"""Launches the Triton kernels: strides, block sizes, warps and 64-bit indexing, decided once here.

Nothing is copied to be made contiguous unless the trailing dimensions of a tensor do not collapse into one
(channel, pixel) pair of strides, or a pair of mean and log scale differs in its strides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kernels.gpu import gaussian
from kernels.gpu.launches import Launch, Plans, aligned, layout_key, on_device
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
INT_32 = 2**31
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
    """Uninitialised memory in the strides of `tensor`, which is dense, and the type of `like`."""
    return torch.empty_like(tensor, dtype=like.dtype)


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


def new_parts(like: Tensor, rows: int, blocks: int) -> Tensor:
    """Uninitialised float32 parts of each row's sum, (rows, blocks), or (rows,) where one block holds all of it."""
    return like.new_empty(rows if blocks == 1 else (rows, blocks), dtype=torch.float32)


def total(parts: Tensor) -> Tensor:
    """Second stage of the sum over blocks, in a fixed order: (B, blocks) -> (B,)."""
    return parts.sum(1) if parts.ndim == 2 else parts


class Place(NamedTuple):
    """Where the tensors of a field are read: with these strides, in units, in a contiguous copy if `copied`."""

    copied: bool
    strides: Strides

    def copies(self, *tensors: Tensor) -> tuple[Tensor | Strides, ...]:
        """The field as the kernels take it, copied."""
        return *(one.contiguous() for one in tensors), self.strides


class Plan(NamedTuple):
    """How a kernel of `kernels.gpu.gaussian` is launched.

    Args:
        launch: one program for each block of each sample.
        places: of posterior, prior, noise and z or its gradient, then of gradients that are written.
        sizes: latents of a sample in units, and pixels.
        blocks: of a sample.
        like_mean: z takes the mean's memory format.
    """

    launch: Launch
    places: tuple[Place | None, ...]
    sizes: tuple[int, int]
    blocks: int
    like_mean: bool

    def arguments(self, *fields: tuple[Tensor, ...]) -> list[tuple[Tensor | Strides, ...] | None]:
        """Fields as the kernels take them; None for those without tensors."""
        return [
            None if place is None else place.copies(*tensors) if place.copied else (*tensors, place.strides)
            for place, tensors in zip(self.places, fields, strict=True)
        ]


def plan_launch(kernel: Any, mean: Tensor, request: Request, *groups: tuple[Tensor, ...]) -> Plan:
    """Plan a kernel for a request on fields given by their `groups` of tensors."""
    fields, extent = [field(*tensors) for tensors in groups], extent_of(mean)
    walk = choose_walk(fields, mean)
    blocks = -(-extent.size // walk.block)
    form = GaussianForm(
        None if request.form.soft_clamp is None else float(request.form.soft_clamp),
        float(request.form.scale_floor),
        bool(request.form.residual),
    )

    def place(one: Field | None, tensors: tuple[Tensor, ...]) -> Place | None:
        if one is None:
            return None
        copied = any(here is not there for here, there in zip(one.tensors, tensors, strict=True))
        sample, channel, pixel = used_strides(one.strides, walk.layout)
        return Place(copied, (sample // walk.unit, channel // walk.unit, pixel // walk.unit))

    return Plan(
        Launch(kernel, (extent.samples, blocks), form, walk, num_warps=walk.warps(warp_lanes())),
        tuple(place(one, tensors) for one, tensors in zip(fields, groups, strict=True)),
        (extent.size // walk.unit, extent.pixels),
        blocks,
        strides_of(torch.empty_like(mean)) is not None,
    )


def request_key(request: Request) -> Hashable:
    """What a launch depends on in a request; numbers that Triton does not specialise on count by their width."""
    seed, group, first_sample, form, temperature, log_ratio = request
    wide = not (-INT_32 <= group < INT_32 and -INT_32 <= first_sample < INT_32)
    numbers = (group, first_sample) if wide else None
    return layout_key(seed), numbers, form, temperature is None, log_ratio


def keys_of(tensors: Iterable[Tensor]) -> Hashable:
    """Those of several tensors."""
    return tuple([layout_key(one) for one in tensors])


FORWARD: Plans[Plan] = Plans()
BACKWARD: Plans[Plan] = Plans()


def gaussian_forward(
    mean: Tensor, log_scale: Tensor, prior: Pair | None, noise: Tensor | None, request: Request
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """z, KL (B,) and log ratio (B,), float32, None where not asked for."""
    pair, given, samples = prior or (), present(noise), mean.shape[0]
    key = keys_of((mean, log_scale, *pair)), keys_of(given), request_key(request), mean.get_device()
    plan = FORWARD.get(key)
    z = output_like(mean) if plan is None or not plan.like_mean else torch.empty_like(mean)
    with_kl, with_ratio = request.temperature is None, request.log_ratio
    groups = (mean, log_scale), pair, given, (z,)
    if plan is None or not aligned(z):
        if not z.numel():
            kl, ratio = (mean.new_zeros(samples, dtype=torch.float32) if one else None for one in (with_kl, with_ratio))
            return z, kl, ratio
        plan = plan_launch(gaussian.forward, mean, request, *groups)
        if aligned(z):
            FORWARD.keep(key, plan)
    kl = new_parts(mean, samples, plan.blocks) if with_kl else None
    ratio = new_parts(mean, samples, plan.blocks) if with_ratio else None
    posterior_at, prior_at, noise_at, z_at = plan.arguments(*groups)
    numbers = request.group, request.first_sample, request.temperature
    with on_device(mean):
        plan.launch(
            (*present(kl), *present(ratio)),
            posterior_at,
            prior_at,
            noise_at,
            request.seed,
            z_at,
            kl,
            ratio,
            *plan.sizes,
            *numbers,
        )
        return z, None if kl is None else total(kl), None if ratio is None else total(ratio)


def gaussian_backward(
    mean: Tensor,
    log_scale: Tensor,
    prior: Pair | None,
    noise: Tensor | None,
    request: Request,
    gradients: Gradients,
    prior_needed: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of mean, log scale, prior mean and prior log scale; None for those of the prior if not needed."""
    pair, given, sums = prior or (), present(noise), (*present(gradients.kl), *present(gradients.log_ratio))
    keys = keys_of((mean, log_scale, *pair)), keys_of(given), keys_of((gradients.z, *sums))
    key = *keys, request_key(request), prior_needed, mean.get_device()
    plan = BACKWARD.get(key)
    d_mean = output_like(mean) if plan is None or not plan.like_mean else torch.empty_like(mean)
    d_posterior = d_mean, alike(d_mean, log_scale)
    d_prior = (alike(d_mean, pair[0]), alike(d_mean, pair[1])) if pair and prior_needed else None
    groups = (mean, log_scale), pair, given, (gradients.z,), d_posterior, d_prior or ()
    if plan is None or not aligned(*d_posterior, *(d_prior or ())):
        if not d_mean.numel():
            return (*d_posterior, None, None) if d_prior is None else (*d_posterior, *d_prior)
        plan = plan_launch(gaussian.backward, mean, request, *groups)
        if aligned(*d_posterior, *(d_prior or ())):
            BACKWARD.keep(key, plan)
    posterior_at, prior_at, noise_at, z_at, *outputs_at = plan.arguments(*groups)
    numbers = request.group, request.first_sample, request.temperature
    with on_device(mean):
        plan.launch(
            (),
            posterior_at,
            prior_at,
            noise_at,
            request.seed,
            z_at,
            gradients.kl,
            gradients.log_ratio,
            *outputs_at,
            *plan.sizes,
            *numbers,
        )
    return (*d_posterior, None, None) if d_prior is None else (*d_posterior, *d_prior)
