"""The keyed noise of every backend, in plain integer PyTorch: Philox 4x32-10 and Box-Muller.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A word is an unsigned 32-bit integer
held in int64. The key is the 64-bit seed; the counter of a latent is (element // 4, sample, group, 0), where
element is its index inside the sample in row-major order, so that neither batch, nor block size, nor memory layout
changes what an image draws. Each call gives four words, and they give the normals of elements 4i .. 4i + 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
UNIFORM_STEP = 2.0**-32
ANGLE_STEP = math.pi * 2.0**-31
CHUNK = 1 << 17
"""Counters worked on at a time; bounds the memory of the words."""


def round_keys(seed: Tensor) -> Tensor:
    """Keys of the rounds, (2, ROUNDS) words, from a 0-d int64 seed; stays on its device."""
    steps = torch.arange(ROUNDS, device=seed.device)
    low, high = seed + steps * KEY_STEPS[0], (seed >> 32) + steps * KEY_STEPS[1]
    return torch.stack((low, high)).bitwise_and_(WORD)


def philox(counter: Words, keys: Tensor) -> Words:
    """Four random words for each counter (c0, c1, c2, c3); the four broadcast against each other.

    A round multiplies c0 and c2 and leaves (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0). `multiplied` holds (c0, c2),
    `carried` (c1, c3) with any upper bits, which the mask drops.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    multiplied, carried = torch.stack((c0, c2)), torch.stack((c1, c3))
    product = torch.empty_like(multiplied)
    keys = keys.view(2, ROUNDS, *(1,) * c0.ndim)
    for step in range(ROUNDS):
        torch.mul(multiplied[1], MULTIPLIERS[1], out=product[0])  # low 64 bits, wrapped
        torch.mul(multiplied[0], MULTIPLIERS[0], out=product[1])
        torch.bitwise_right_shift(product, 32, out=multiplied)
        multiplied.bitwise_xor_(carried).bitwise_and_(WORD).bitwise_xor_(keys[:, step])
        carried, product = product, carried
    carried.bitwise_and_(WORD)
    return multiplied[0], carried[0], multiplied[1], carried[1]


def words(keys: Tensor, group: int, samples: range, quads: int) -> Words:
    """The words of `quads` counters for each of `samples` images: four int64 tensors (len(samples), quads)."""
    device = keys.device
    element = torch.arange(quads, device=device)[None, :]
    sample = torch.arange(samples.start, samples.stop, device=device)[:, None]
    fixed = torch.zeros((1, 1), dtype=torch.int64, device=device)
    return philox((element, sample, fixed + group, fixed), keys)


def box_muller(radius_word: Tensor, angle_word: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent standard normals of `dtype` from two words.

    u = 2^-32 word + 2^-33, rounded to float32, lies in [2^-33, 1]; the angle is the second word read as a signed
    integer, times pi 2^-31. (sqrt(-2 ln u) cos, sqrt(-2 ln u) sin); the largest magnitude is 6.76.
    """
    uniform = radius_word.to(torch.float32).mul_(UNIFORM_STEP).add_(0.5 * UNIFORM_STEP).to(dtype)
    angle = angle_word.to(torch.int32).to(torch.float32).to(dtype).mul_(ANGLE_STEP)
    radius = uniform.log_().mul_(-2.0).sqrt_()
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def normals(
    seed: Tensor,
    group: int,
    shape: Sequence[int],
    first_sample: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals of `shape` (B, ...) on the seed's device, contiguous; no device synchronisation.

    Args:
        seed: 0-d int64 tensor.
        group: index of the latent group.
        shape: batch first; the rest is the sample.
        first_sample: index of the first image in its stream.
        dtype: float32 or float64 (the same draw, its elementary functions in double precision).
    """
    samples, size = shape[0], math.prod(shape[1:])
    quads = -(-size // 4)
    keys = round_keys(seed)
    noise = torch.empty((samples, quads, 4), dtype=dtype, device=seed.device)
    rows = max(1, CHUNK // max(1, quads))
    for start in range(0, samples, rows):
        part = noise[start : start + rows]
        chunk = range(first_sample + start, first_sample + start + len(part))
        w0, w1, w2, w3 = words(keys, group, chunk, quads)
        part[..., 0], part[..., 1] = box_muller(w0, w1, dtype)
        part[..., 2], part[..., 3] = box_muller(w2, w3, dtype)
    return noise.view(samples, quads * 4)[:, :size].reshape(tuple(shape))
