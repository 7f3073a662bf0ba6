"""Keyed randomness: every random stream derives from (seed, purpose, step), none from global state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stream(seed: int, purpose: str) -> int:
    """A 63-bit key for (seed, purpose), a multiple of 2^31 so that steps can be added to it."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little") << 31


def seed_tensor(seed: int, purpose: str, device: torch.device, step: int = 0) -> Tensor:
    """The stream's key at `step` as a () int64 tensor on `device`, as the kernels take it."""
    return torch.tensor(stream(seed, purpose) + step, dtype=torch.int64, device=device)


def generator_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 32-bit seed of torch's generators for (seed, purpose, step): all that the CPU's looks at."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Torch's CPU random state set to the stream inside the block (model initialisation), given back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed(seed, purpose))
        yield
