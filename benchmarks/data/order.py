"""The order of images: shuffled batches for training, and shuffles that fix a split for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.streams import generator_seed

SPLIT_NAMES = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of validation, and of test, in data that comes without them."""


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
    return sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode(errors="surrogateescape")).digest())


def cut(keys: list[str], missing: Sequence[str], where: str) -> dict[str, list[int]]:
    """Positions of the `missing` splits and of train in images that have these keys, by the hash order of the keys.

    Test first, then validation take a tenth each, rounded down but at least one; train is the rest.

    Raises:
        UserError: fewer images than splits, with `where` they are.
    """
    wanted = [split for split in ("test", "validation") if split in missing]
    if len(keys) <= len(wanted):
        splits = " and ".join(["train", *reversed(wanted)])
        raise UserError(f"{where}: expected at least one image for each of {splits}, got {len(keys)}")
    held_out, order = max(1, int(HELD_OUT * len(keys))), hash_order(keys)
    found = {split: order[i * held_out : (i + 1) * held_out] for i, split in enumerate(wanted)}
    return found | {"train": order[len(wanted) * held_out :]}
