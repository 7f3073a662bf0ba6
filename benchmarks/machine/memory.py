"""Memory that runs out: how torch says so, and what is given back then."""

from __future__ import annotations

import torch

SAID = (
    *("DefaultCPUAllocator", "not enough memory", "out of memory", "Cannot allocate memory"),
    *("could not create a primitive", "could not execute a primitive"),
)
"""In the message of an error of a CPU's allocator, or of a GPU's library; oneDNN's says no more than the last two."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a CPU or a GPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def release(device: torch.device) -> None:
    """Give a GPU's cached blocks back, so that smaller ones fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
