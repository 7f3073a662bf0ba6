"""Chooses a backend: the fused Triton operations where they run, the CPU path elsewhere.

Importing this module imports no Triton; that happens when fused operations are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

from kernels.cpu import library
from kernels.cpu.backend import CPU
from kernels.interpreter import interpreting
from kernels.ops import Ops
from kernels.reference.backend import REFERENCE


class FusedUnavailable(RuntimeError):  # noqa: N818
    """The fused operations cannot run here; the message says why and what to do."""


def why_unavailable(device: torch.device) -> str | None:
    """The reason why the fused operations cannot run on `device`, or None if they can."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return f"they need a CUDA or ROCm device, got '{device}'; use best_for('{device}')"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm device; check the driver and that torch is a GPU build"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton (Linux only)"
    return None


def fused(device: torch.device | str) -> Ops:
    """The fused operations for `device`.

    Raises:
        FusedUnavailable: they cannot run there.
    """
    reason = why_unavailable(torch.device(device))
    if reason is not None:
        raise FusedUnavailable(f"fused operations are not available: {reason}")
    return importlib.import_module("kernels.gpu.operators").FUSED


def best_for(device: torch.device | str) -> Ops:
    """The fastest operations that run on `device`: fused on a GPU with Triton, the CPU path on a CPU."""
    where = torch.device(device)
    if where.type == "cpu":
        return CPU
    return fused(where) if why_unavailable(where) is None else REFERENCE


def describe(device: torch.device | str) -> str:
    """What `best_for(device)` computes with, for the record: numbers agree bit for bit only where this is equal.

    A GPU that is not here is described as where it is, with the Triton of here.
    """
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("kernels.gpu.operators").FUSED.name
    ops = best_for(where)
    if ops is not CPU:
        return ops.name
    return f"{ops.name}, {'C' if library.library() is not None else 'plain PyTorch'} kernels"
