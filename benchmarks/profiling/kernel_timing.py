"""Times fused operations against plain PyTorch on one device, after their results were found right there.

The same comparison serves a GPU (Triton kernels against eager and torch.compile) and a CPU (the CPU path).
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine.environment import cpu_name, load_average
from kernels.ops import PLAIN, RESIDUAL, GaussianDraw, GaussianForm, Ops
from kernels.reference.backend import REFERENCE

SHAPES = ((128, 64, 1, 1), (128, 20, 8, 8), (128, 20, 16, 16))
"""Latents (B, Z, h, w): a vector, and NVAE's groups of 1,280 and 5,120."""
IMAGES = ((64, 3, 32, 32),)
COMPONENTS, BITS = 10, 8
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""|error| / (1 + |reference|) of values and gradients that passes; the approximate instructions are within 2^-20."""
QUANTILES = (0.2, 0.5, 0.8)
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}

Step = Callable[[Ops], list[Tensor]]


def eager_sample_kl(mean: Tensor, log_scale: Tensor, *prior: Tensor | None, **request: Any) -> GaussianDraw:
    """The reference with noise from `torch.randn_like`, as one would write it without keyed noise."""
    return REFERENCE.gaussian_sample_kl(mean, log_scale, *prior, **request, noise=torch.randn_like(mean))


EAGER = dataclasses.replace(REFERENCE, name="eager", gaussian_sample_kl=eager_sample_kl)
"""What the fused operations are compared with: plain PyTorch and its own generator."""


@dataclass(frozen=True)
class Problem:
    """An operation's forward and backward pass on given inputs; `floor` is the bytes it must move."""

    kernel: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    floor: int
    step: Step
    exact: Callable[[], list[Tensor]]


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


def gaussian_problem(
    name: str, form: GaussianForm, learned: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Problem:
    """Draw with KL, and the gradients of all parameters; keyed noise."""
    generator = torch.Generator().manual_seed(0)
    whole = (shape[0], 2 * shape[1], *shape[2:])
    given = [torch.randn(whole, generator=generator).to(device, dtype) for _ in range(2 if learned else 1)]
    upstream = torch.randn(shape, generator=generator).to(device, dtype), torch.ones(shape[0], device=device)
    seed = torch.zeros((), dtype=torch.int64, device=device)

    def run(ops: Ops, kind: torch.dtype) -> list[Tensor]:
        leaves = [one.to(kind).requires_grad_() for one in given]
        prior = leaves[1].chunk(2, 1) if learned else (None, None)
        draw = ops.gaussian_sample_kl(*leaves[0].chunk(2, 1), *prior, seed=seed, group=0, form=form)
        weights = (upstream[0].to(kind), upstream[1].to(draw.kl.dtype))
        return [draw.z, draw.kl, *torch.autograd.grad((draw.z, draw.kl), leaves, weights)]

    floor = (32 if not learned else 56) * given[0].numel() // 2 * dtype.itemsize // 4
    return Problem(name, shape, dtype, floor, lambda ops: run(ops, dtype), lambda: run(REFERENCE, torch.float64))


def mixture_problem(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    """Log-likelihood of the logistic mixture and the gradient of its parameters."""
    generator = torch.Generator().manual_seed(0)
    batch, _, height, width = shape
    given = torch.randn(batch, 10 * COMPONENTS, height, width, generator=generator).to(device, dtype)
    levels = torch.randint(0, 2**BITS, shape, generator=generator).to(device)

    def run(ops: Ops, kind: torch.dtype) -> list[Tensor]:
        leaf, wide = given.to(kind).requires_grad_(), torch.promote_types(kind, torch.float32)
        log_prob = ops.logistic_mixture_log_prob(leaf, levels.to(wide) / (2**BITS - 1), bits=BITS)
        return [log_prob, *torch.autograd.grad(log_prob.sum(), leaf)]

    floor = batch * height * width * (30 * COMPONENTS * dtype.itemsize + 40)
    name = f"logistic mixture, {COMPONENTS} components, colour"
    return Problem(name, shape, dtype, floor, lambda ops: run(ops, dtype), lambda: run(REFERENCE, torch.float64))


def problems(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterable[Problem]:
    """Every operation at every shape."""
    forms = (
        ("gaussian, standard-normal prior", PLAIN, False),
        ("gaussian, learned prior", PLAIN, True),
        ("gaussian, residual and clamped", RESIDUAL, True),
    )
    for dtype in dtypes:
        for shape in SHAPES:
            for name, form, learned in forms:
                yield gaussian_problem(name, form, learned, shape, dtype, device)
        for shape in IMAGES:
            yield mixture_problem(shape, dtype, device)


@torch.no_grad()
def largest_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest |error| / (1 + |reference|) over all outputs."""
    pairs = zip(values, expected, strict=True)
    return max(float(((a.double() - b).abs() / (1 + b.abs())).max()) for a, b in pairs)


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


def time_problem(problem: Problem, ops: Ops, device: torch.device, bandwidth: float) -> Timing:
    """The row of one operation: first the check on this device, then the clock."""
    error = largest_error(problem.step(ops), problem.exact())
    gpu = device.type == "cuda"
    row = {
        "kernel": problem.kernel,
        "shape": problem.shape,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if gpu else cpu_name(),
        "ops": ops.name,
        "error": error,
        "threads": torch.get_num_threads(),
        "load": load_average(),
    }
    if not error < TOLERANCE[problem.dtype]:
        return Timing(**row, note=f"not timed: error {error:.1e} exceeds {TOLERANCE[problem.dtype]:.0e}")
    low, middle, high = np.quantile(time_call(lambda: problem.step(ops), device), QUANTILES).tolist()
    eager = statistics.median(time_call(lambda: problem.step(EAGER), device))
    compiled = None
    if gpu:
        step = torch.compile(problem.step, dynamic=False)
        compiled = statistics.median(time_call(lambda: step(EAGER), device)) / middle
    rate = problem.floor / middle / 1e3
    return Timing(
        **row,
        p20_us=low,
        p50_us=middle,
        p80_us=high,
        gb_per_s=rate,
        copy_share=rate / bandwidth,
        speedup_over_eager=eager / middle,
        speedup_over_compile=compiled,
        launches=launches_of(lambda: problem.step(ops)) if gpu else None,
    )


def time_operations(ops: Ops, device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterable[Timing]:
    """A row for every operation, shape and type, one at a time."""
    bandwidth = copy_bandwidth(device)
    for problem in problems(device, dtypes):
        yield time_problem(problem, ops, device, bandwidth)
