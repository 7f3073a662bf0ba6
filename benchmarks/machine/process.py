"""Settings of a process that trains or times models; they cost nothing and save time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings (mallopt, malloc.h)."""
KEPT_BYTES = 2**31 - 1
LARGEST_ON_HEAP = 32 << 20
"""The most that glibc takes: larger blocks are always mapped afresh."""


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees, for the rest of the process.

    Otherwise it goes back to the system at the end of every step, and the next one pays for a page fault in each page
    of its activations. Elsewhere (musl, macOS) nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def flush_subnormals() -> None:
    """Take numbers below the smallest normal one for zero, in this thread and in those it starts.

    Processors compute with them in microcode: a training that diverges, whose gradients fade away towards the image,
    takes ten times as long a step. A healthy one hardly meets any. To be called before torch starts its threads.
    """
    torch.set_flush_denormal(True)


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Inside this block the garbage collector does not search what lives already (modules, the model)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Inside this block float32 products and convolutions on a GPU may round their inputs to TF32, or may not."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.allow_tf32 = old
