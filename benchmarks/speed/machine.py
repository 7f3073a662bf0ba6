"""The machine's own limits, measured beside the models: what a step could reach at best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from benchmarks.profiling.kernel_timing import copy_bandwidth
from benchmarks.speed.clock import Call, interleave, synchronise
from benchmarks.speed.spread import spread

MATRIX = 1536
"""Side of the square matrices that are multiplied."""
CONVOLUTION = (32, 64, 32, 32)
"""Input (B, C, H, W) of a 3x3 convolution that keeps its channels, channels-last."""


@dataclass(frozen=True)
class Limits:
    """Rates in float32 with `threads` threads; GFLOP count multiplications and additions."""

    threads: int
    gemm_gflops: float
    convolution_gflops: float
    copy_gb_per_s: float


def measure_limits(threads: int, device: torch.device, seconds: float) -> Limits:
    """The limits of `device`, each from medians over about `seconds`; torch's number of threads is given back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return Limits(
                threads, gemm_rate(device, seconds), convolution_rate(device, seconds), copy_bandwidth(device)
            )
    finally:
        torch.set_num_threads(before)


def gemm_rate(device: torch.device, seconds: float) -> float:
    """GFLOP/s of a product of large square matrices."""
    a, b = (torch.ones(MATRIX, MATRIX, device=device) for _ in range(2))
    return 2 * MATRIX**3 / _median(lambda: torch.mm(a, b), device, seconds) / 1e9


def convolution_rate(device: torch.device, seconds: float) -> float:
    """GFLOP/s of a dense 3x3 convolution, channels-last."""
    batch, channels, height, width = CONVOLUTION
    x = torch.ones(CONVOLUTION, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(channels, channels, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    flops = 2 * 9 * batch * height * width * channels**2
    return flops / _median(lambda: F.conv2d(x, weight, padding=1), device, seconds) / 1e9


def _median(call: Call, device: torch.device, seconds: float) -> float:
    """Median seconds of a call."""
    return spread(interleave({"call": call}, seconds, synchronise(device))["call"].wall).median
