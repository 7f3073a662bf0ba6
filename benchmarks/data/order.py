"""The order of images: shuffled batches for training, and shuffles that fix a split for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.streams import generator_seed


def keyed_generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A random stream of its own for (seed, purpose, step), independent of every other stream."""
    return torch.Generator(device).manual_seed(generator_seed(seed, purpose, step))


def batches(n: int, batch_size: int, seed: int, start_step: int = 0) -> Iterator[Int64[Tensor, " batch_size"]]:
    """Indices of the batches at steps start_step, start_step + 1, ... without end.

    Each epoch is a permutation of range(n) keyed by (seed, epoch), cut into n // batch_size batches (the rest
    is dropped), so that starting at any step costs one permutation and repeats no earlier one.

    Raises:
        UserError: a batch larger than the data.
    """
    if not 1 <= batch_size <= n:
        raise UserError(f"expected a batch size from 1 to the {n} training images, got {batch_size}")
    return _batches(n, batch_size, seed, start_step)


def _batches(n: int, batch_size: int, seed: int, start_step: int) -> Iterator[Tensor]:
    epoch, first = divmod(start_step, n // batch_size)
    while True:
        order = torch.randperm(n, generator=keyed_generator(seed, "batches", epoch))
        yield from order.split(batch_size)[first : n // batch_size]
        epoch, first = epoch + 1, 0


def hash_order(keys: list[str]) -> list[int]:
    """Positions of `keys` sorted by the SHA-256 of each: a shuffle that no library version can change."""
    return sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
