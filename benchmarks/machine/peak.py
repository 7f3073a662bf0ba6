"""The most memory that this process has held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What sets VmHWM back to the present size when written to clear_refs (man 5 proc)."""


def held(device: torch.device) -> int:
    """Bytes held now; the recorded peak is set back to it where the system allows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        RESET.write_text(RESET_PEAK)
        return status_bytes("VmRSS")
    except (OSError, KeyError):
        return highest(device)


def resident() -> int:
    """Bytes of memory that this process holds now; where the system does not tell, the most it has held."""
    try:
        return status_bytes("VmRSS")
    except (OSError, KeyError):
        return highest(torch.device("cpu"))


def highest(device: torch.device) -> int:
    """The most bytes held since `held`.

    On Linux VmHWM, for ru_maxrss of a process that another started begins at its parent's peak; elsewhere ru_maxrss.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return status_bytes("VmHWM")
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status_bytes(name: str) -> int:
    """A size in /proc/self/status.

    Raises:
        OSError: there is no such file.
        KeyError: it has no such line.
    """
    sizes = {}
    for line in STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        sizes[key] = value
    return int(sizes[name].split()[0]) * 2**10
