"""Times fused operations against plain PyTorch on one device, after their results were found right there.

The same comparison serves a GPU (Triton kernels against eager and torch.compile) and a CPU (the CPU path).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine.environment import cpu_name, load_average
from benchmarks.profiling.problems import Evaluated, Problem, problems
from kernels.ops import GaussianDraw, Ops
from kernels.reference.backend import REFERENCE

NOISE = 1e-5
"""Of keyed noise on a GPU: approximate sines, cosines and logarithms are within 2^-20.5, times radii up to 6.8."""
LOGARITHM = 2 * math.log(2) * 2**-22
"""Of the square of a radius on a GPU, -2 ln u, whatever its size: `lg2.approx` is within 2^-22 where u is above a half
(PTX ISA). It decides the error of small radii: that of one draw in 5,000 exceeds `NOISE`."""
VALUE = {torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""|error| / (1 + |reference|) that passes, of draws beyond the noise's. Clamped gradients divide by small scales;
outputs of 16 bits are rounded to 8 or 11 of them."""
QUANTILES = (0.2, 0.5, 0.8)
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


def eager_sample_kl(mean: Tensor, log_scale: Tensor, *prior: Tensor | None, **request: Any) -> GaussianDraw:
    """The reference with noise from `torch.randn_like`, as one would write it without keyed noise."""
    return REFERENCE.gaussian_sample_kl(mean, log_scale, *prior, **request, noise=torch.randn_like(mean))


EAGER = dataclasses.replace(REFERENCE, name="eager", gaussian_sample_kl=eager_sample_kl)
"""What the fused operations are compared with: plain PyTorch and its own generator."""


@dataclass(frozen=True)
class Timing:
    """One operation (forward and backward) on one device; times in microseconds.

    `copy_share` is the floor's bytes over the time, as a share of the bandwidth of a copy measured beside it.
    Speed-ups are ratios of medians; None where there is nothing to compare with. `note` says why a row has no times.
    """

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    ops: str
    error: float
    threads: int
    load: float | None
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    gb_per_s: float | None = None
    copy_share: float | None = None
    speedup_over_eager: float | None = None
    speedup_over_compile: float | None = None
    launches: int | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON takes it."""
        return dataclasses.asdict(self)


@torch.no_grad()
def largest_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest |error| / (1 + |reference|) over all outputs."""
    return max((error_of(a, b) for a, b in zip(values, expected, strict=True)), default=0.0)


def errors_of(problem: Problem, found: Evaluated) -> tuple[float, float]:
    """Largest errors of values and gradients against float64; of a draw, what exceeds that of its noise, scaled."""
    slack = None
    if problem.noisy:
        noise, scale = problem.noise()
        slack = noise_error(noise) * scale
    return errors(found, problem.evaluate(REFERENCE, wide=True), slack)


def noise_error(noise: Tensor) -> Tensor:
    """How far keyed noise (B, ...) may be off: `NOISE`, and what `LOGARITHM` makes of each pair's radius."""
    flat = noise.flatten(1)
    pairs = F.pad(flat, (0, flat.shape[1] % 2)).unflatten(1, (-1, 2))
    radius = torch.linalg.vector_norm(pairs, dim=-1, keepdim=True).clamp_min(LOGARITHM**0.5 / 2)  # error <= its root
    return (NOISE + LOGARITHM / (2 * radius)).expand_as(pairs).flatten(1)[:, : flat.shape[1]].view_as(noise)


def errors(found: Evaluated, exact: Evaluated, slack: Tensor | None = None) -> tuple[float, float]:
    """Largest errors of values, of the first one beyond `slack`, and of gradients.

    Raises:
        ValueError: an output has another shape than the reference's.
    """
    for mine, other in zip([*found.values, *found.gradients], [*exact.values, *exact.gradients], strict=True):
        if mine.shape != other.shape:
            raise ValueError(f"expected the shape {tuple(other.shape)}, got {tuple(mine.shape)}")
    first = [error_of(a, b, slack) for a, b in zip(found.values[:1], exact.values[:1], strict=True)]
    rest = largest_error(found.values[1:], exact.values[1:])
    return max(rest, *first), largest_error(found.gradients, exact.gradients)


def error_of(value: Tensor, expected: Tensor, slack: Tensor | None = None) -> float:
    """Largest |error| / (1 + |reference|) beyond `slack`; infinite where a value is not finite and its reference is."""
    if not value.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    error = (value - expected).abs()
    if slack is not None:
        error = (error - slack.detach()).clamp_min(0)
    return float((error / (1 + expected.abs())).nan_to_num(nan=math.inf).max())


def time_call(call: Callable[[], object], device: torch.device, seconds: float = 0.3) -> list[float]:
    """Microseconds of each repeat after warm-up, for about `seconds`; on a GPU by its own clock."""
    for _ in range(3):
        call()
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times) < 7:
        times.append(_time_once(call, device))
    return times


@functools.cache
def cache_filler(device: torch.device) -> Tensor:
    """More bytes than any GPU's cache holds."""
    return torch.empty(1 << 28, dtype=torch.uint8, device=device)


def _time_once(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - started)
    cache_filler(device).zero_()  # inputs come from memory, not from the last repeat's cache
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    torch.cuda.synchronize(device)
    return 1e3 * first.elapsed_time(last)


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of copying a tensor larger than the caches, bytes read and written."""
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(time_call(lambda: target.copy_(source), device)) / 1e3


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The replay of a call's launches as a CUDA graph, captured after three calls that compile and make state."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return functools.partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, call: Callable[[], object]) -> None:
    """Replay what was captured of a call, which is held so that the memory that it reads stays its own."""
    graph.replay()


def launches_of(call: Callable[[], object]) -> int:
    """Kernels launched by one call on a CUDA device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profiled.key_averages() if event.device_type.name == "CUDA")


def write_trace(call: Callable[[], object], path: Path) -> None:
    """Chrome trace of one call."""
    from torch.profiler import profile

    with profile() as profiled:
        call()
    profiled.export_chrome_trace(str(path))


def time_compiled(problem: Problem, device: torch.device, seconds: float = 0.3) -> float:
    """Median microseconds of plain PyTorch through torch.compile."""
    return statistics.median(time_call(problem.compiled_step(EAGER), device, seconds))


def time_problem(
    problem: Problem,
    ops: Ops,
    device: torch.device,
    bandwidth: float,
    *,
    compiled: bool = True,
    wrong_too: bool = False,
    seconds: float = 0.3,
) -> Timing:
    """The row of one operation: first the check on this device, then the clock.

    Args:
        problem: the operation and its inputs.
        ops: whose operation.
        device: where the inputs are.
        bandwidth: GB/s of a copy there.
        compiled: on a GPU also compare with torch.compile, which takes seconds.
        wrong_too: time what fails its check as well; the note says that it fails.
        seconds: time for each side.
    """
    found = problem.evaluate(ops)
    value, gradient = errors_of(problem, found)
    gpu = device.type == "cuda"
    row = {
        "kernel": problem.kernel,
        "shape": problem.shape,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if gpu else cpu_name(),
        "ops": ops.name,
        "error": max(value, gradient),
        "threads": torch.get_num_threads(),
        "load": load_average(),
    }
    checks = (("values", value, VALUE[problem.dtype]), ("gradients", gradient, GRADIENT[problem.dtype]))
    wrong = (f"{what}: error {error:.1e} exceeds {most:.0e}" for what, error, most in checks if error > most)
    note = "; ".join(wrong)
    if note and not wrong_too:
        return Timing(**row, note=f"not timed: {note}")
    low, middle, high = np.quantile(time_call(lambda: problem.step(ops), device, seconds), QUANTILES).tolist()
    eager = statistics.median(time_call(lambda: problem.step(EAGER), device, seconds))
    rate = problem.floor / middle / 1e3
    return Timing(
        **row,
        p20_us=low,
        p50_us=middle,
        p80_us=high,
        gb_per_s=rate,
        copy_share=rate / bandwidth,
        speedup_over_eager=eager / middle,
        speedup_over_compile=time_compiled(problem, device, seconds) / middle if gpu and compiled else None,
        launches=launches_of(lambda: problem.step(ops)) if gpu else None,
        note=note,
    )


def time_operations(ops: Ops, device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterable[Timing]:
    """A row for every operation, shape and type, one at a time."""
    bandwidth = copy_bandwidth(device)
    for problem in problems(device, dtypes):
        yield time_problem(problem, ops, device, bandwidth)
