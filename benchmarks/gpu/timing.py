"""Step `timing`: the fused operations in microseconds, with cold caches, against eager and torch.compile."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from benchmarks.gpu.findings import Fields, Findings
from benchmarks.profiling.kernel_timing import EAGER, captured, copy_bandwidth, time_call, time_compiled, time_problem
from benchmarks.profiling.problems import Problem, norm_problem, problems
from benchmarks.profiling.proton import ProtonMissing, kernel_times
from kernels.backends import best_for
from kernels.ops import Ops

SECONDS, NEEDS = {"cuda": 0.1, "cpu": 0.01}, {"cuda": 4.0, "cpu": 0.5}
"""Of each side, and of a case with its compilers."""
TYPES = {"cuda": (torch.bfloat16, torch.float32), "cpu": (torch.float32,)}
COMPILE_SECONDS = 12.0
"""That torch.compile may need for one operation."""
PROTON_SECONDS = 25.0
MOST_SECONDS_OF_PROTON = 50.0


def run(findings: Findings) -> None:
    """First all operations against eager, then Proton, and torch.compile while there is time."""
    findings.show(
        (
            *(("ops", "operations"), ("p20_us", "p20 us"), ("p50_us", "p50 us"), ("p80_us", "p80 us")),
            *(("gb_per_s", "GB/s"), ("copy_share", "share of copy"), ("speedup_over_eager", "over eager")),
            ("speedup_over_plain_triton", "over plain Triton"),
            *(("compiled_us", "torch.compile us"), ("launches", "launches"), ("error", "error"), ("note", "note")),
        )
    )
    device = torch.device(findings.device)
    ops, bandwidth = best_for(device), copy_bandwidth(device)
    findings.facts["copy bandwidth (GB/s)"] = bandwidth
    todo = [_named(problem) for problem in _problems(device, findings.dry)]
    for name, problem in todo:
        findings.case(name, functools.partial(_timed, problem, ops, device, bandwidth), needs=NEEDS[device.type])
        if not findings.dry:
            call = functools.partial(_graphs, problem, ops, device, bandwidth)
            findings.case(f"{name}, graphs", call, needs=NEEDS[device.type])
    if findings.dry:
        findings.note("graphs, Proton and torch.compile: on a GPU only")
        return
    findings.case("Proton", lambda: _proton(findings), needs=PROTON_SECONDS)
    for name, problem in todo:
        findings.case(f"{name}, torch.compile", functools.partial(_compiled, problem, device), needs=COMPILE_SECONDS)


def _problems(device: torch.device, dry: bool) -> list[Problem]:
    """What is timed, the largest first."""
    if dry:
        return [norm_problem((2, 4, 8, 8), torch.float32, device)]
    return sorted(problems(device, TYPES[device.type]), key=lambda problem: -problem.floor)


def _named(problem: Problem) -> tuple[str, Problem]:
    size = "x".join(map(str, problem.shape))
    return f"{problem.kernel}, {size}, {str(problem.dtype).removeprefix('torch.')}", problem


def _timed(problem: Problem, ops: Ops, device: torch.device, bandwidth: float) -> Fields:
    """Quantiles of the fused operation, and its gain over eager."""
    options: dict[str, Any] = {"compiled": False, "wrong_too": True, "seconds": SECONDS[device.type]}
    found = time_problem(problem, ops, device, bandwidth, **options).as_dict()
    return {**found, "passed": not found["note"], **({"message": found["note"]} if found["note"] else {})}


def _graphs(problem: Problem, ops: Ops, device: torch.device, bandwidth: float) -> Fields:
    """All sides replayed as CUDA graphs: the kernels' own time, without Python and launches."""
    from benchmarks.profiling.plain_triton import PLAIN_TRITON  # Triton, which a dry run goes without

    sides = [ops, EAGER, *([PLAIN_TRITON] if problem.kernel.startswith("gaussian") else [])]
    mine, eager, *plain = (
        statistics.median(time_call(captured(functools.partial(problem.step, side)), device, SECONDS["cuda"]))
        for side in sides
    )
    rate = problem.floor / mine / 1e3
    fields = {"ops": "in CUDA graphs", "p50_us": mine, "gb_per_s": rate, "copy_share": rate / bandwidth}
    fields |= {"plain_triton_us": plain[0], "speedup_over_plain_triton": plain[0] / mine} if plain else {}
    return {**fields, "eager_us": eager, "speedup_over_eager": eager / mine}


def _compiled(problem: Problem, device: torch.device) -> Fields:
    """Plain PyTorch through torch.compile."""
    torch.compiler.reset()
    return {"compiled_us": time_compiled(problem, device, SECONDS["cuda"])}


def _proton(findings: Findings) -> Fields:
    """Single kernels by Triton's profiler, as facts; a row without judgement where it gives none."""
    try:
        rows = kernel_times(min(MOST_SECONDS_OF_PROTON, findings.left() / 2))
    except ProtonMissing as missing:
        return {"passed": None, "message": f"Proton: {missing}", "note": str(missing)}
    found = [
        f"{row.kernel}, {'x'.join(map(str, row.shape))}, {row.dtype}: {row.gpu_kernel} {row.proton_us:.2f} us x "
        f"{row.launches:g}"
        for row in rows
    ]
    return {"proton": found, "note": f"{len(rows)} kernels, in the file"}
