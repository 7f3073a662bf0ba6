"""The verb `profile`: how good the kernels are, on machines with and without a GPU.

The static part compiles every kernel ahead of time for a list of GPUs and needs none; the timed part runs on this
machine's GPU if there is one, and on its CPU.
"""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.base.errors import UserError, unknown
from benchmarks.base.files import write_text_atomically
from benchmarks.profiling.kernel_timing import Timing, time_operations, write_trace
from benchmarks.profiling.problems import problems
from benchmarks.profiling.proton import KernelTime, ProtonMissing, kernel_times
from benchmarks.report import layout
from kernels.backends import best_for
from kernels.interpreter import interpreting
from kernels.readback.disassembly import ToolsMissing
from kernels.readback.static_profile import (
    DTYPES,
    KERNELS,
    KNOWN_TARGETS,
    TARGETS,
    StaticProfile,
    coverage,
    gpus,
    static_profiles,
)

GROUP_SIZES = (64, 320, 1280, 5120)
"""Latents of a group and sample: a vector, and NVAE's groups."""
Columns = Sequence[tuple[str, str]]
"""Key and heading of every column."""
CASE = ("kernel", "dtype", "direction")
COLUMNS: dict[str, Columns] = {
    "static": (
        ("kernel", "kernel"),
        ("direction", "direction"),
        ("dtype", "dtype"),
        ("target", "target"),
        ("instructions_per_element", "instr/element"),
        ("instructions_per_component", "instr/component"),
        ("special_functions_per_element", "special/element"),
        ("registers", "registers"),
        ("spills", "spills"),
        ("local_memory_bytes", "local B"),
        ("shared_memory_bytes", "shared B"),
        ("barriers", "barriers"),
        ("load_bits", "load bits"),
        ("store_bits", "store bits"),
        ("bytes_per_element", "bytes"),
        ("bytes_floor", "floor"),
        ("bytes_eager", "eager"),
    ),
    "coverage": (
        ("latents", "latents a sample"),
        ("dtype", "dtype"),
        ("block", "block"),
        ("programs_per_sample", "programs a sample"),
        ("useful_lanes", "useful lanes"),
        ("launches_forward", "launches forward"),
        ("launches_backward", "launches backward"),
    ),
    "timed": (
        ("kernel", "kernel"),
        ("shape", "shape"),
        ("dtype", "dtype"),
        ("ops", "operations"),
        ("p20_us", "p20 us"),
        ("p50_us", "p50 us"),
        ("p80_us", "p80 us"),
        ("gb_per_s", "GB/s"),
        ("copy_share", "share of copy"),
        ("speedup_over_eager", "over eager"),
        ("speedup_over_compile", "over torch.compile"),
        ("launches", "launches"),
        ("note", "note"),
    ),
    "proton": (
        ("kernel", "kernel"),
        ("shape", "shape"),
        ("dtype", "dtype"),
        ("gpu_kernel", "GPU kernel"),
        ("launches", "launches"),
        ("proton_us", "Proton us"),
    ),
}
PEAKS = ("memory", "issue", "special")
ESTIMATES = ("kernel", "direction", "dtype", "GPU", "memory", "issue", "special functions", "bound")
WIDEST = 60
"""Characters of a cell; PyTorch's own kernels have names of hundreds."""


def profile(
    targets: Sequence[str] = TARGETS,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    json: Path | None = None,
    csv: Path | None = None,
    figure: Path | None = None,
    trace: Path | None = None,
    timed: bool = True,
) -> list[dict[str, Any]]:
    """Rows of the profile, printed as tables on the way; progress and what is missing go to stderr.

    Args:
        targets: GPUs of the static part, "sm_90" or "gfx942".
        dtypes: "fp32", "bf16", "fp16".
        json: file for the rows.
        csv: likewise, nested values as JSON.
        figure: PNG or SVG file for the roofline.
        trace: file for a Chrome trace of one step of every timed operation.
        timed: run the timed part as well.

    Raises:
        UserError: an unknown target or type.
    """
    check_names(targets, dtypes)
    if interpreting():
        raise UserError("TRITON_INTERPRET=1: expected kernels that are compiled, not interpreted; unset it to profile")
    static = static_part(targets, dtypes)
    print_table(COLUMNS["static"], [row.as_dict() for row in static])
    print_by_target(static)
    print_estimates(static)
    covered = [dataclasses.asdict(coverage(size, dtype)) for size in GROUP_SIZES for dtype in dtypes] if static else []
    print_table(COLUMNS["coverage"], covered)
    timings = timed_part(trace) if timed else []
    print_table(COLUMNS["timed"], [row.as_dict() for row in timings])
    launched = [dataclasses.asdict(row) for row in proton_part()] if timed else []
    print_table(COLUMNS["proton"], launched)
    rows = [{"part": "static", **row.as_dict()} for row in static]
    rows += [{"part": "coverage", **row} for row in covered]
    rows += [{"part": "timed", **row.as_dict()} for row in timings]
    rows += [{"part": "proton", **row} for row in launched]
    if json is not None:
        write_text_atomically(json, json_module.dumps(rows, indent=1) + "\n")
    if csv is not None:
        write_text_atomically(csv, layout.csv(layout.frame(rows)))
    if figure is not None and static:
        draw(static, figure)
    return rows


def check_names(targets: Sequence[str], dtypes: Sequence[str]) -> None:
    """Raise UserError for a target or type that does not exist."""
    for target in targets:
        if target not in KNOWN_TARGETS:
            raise unknown("target", target, KNOWN_TARGETS)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)


def static_part(targets: Sequence[str], dtypes: Sequence[str]) -> list[StaticProfile]:
    """Static profiles, as many as the installed tools allow."""
    rows: list[StaticProfile] = []
    total = 2 * len(targets) * len(dtypes) * len(KERNELS)
    try:
        for row in static_profiles(targets, dtypes):
            rows.append(row)
            print(f"\rcompiled {len(rows)} of {total}", end="", file=sys.stderr, flush=True)
    except ToolsMissing as missing:
        print(f"static profile: {missing}", file=sys.stderr)
    else:
        print(file=sys.stderr)
    return rows


def timed_part(trace: Path | None) -> list[Timing]:
    """Timings on this machine's GPU, if it has one, and on its CPU."""
    devices = [torch.device("cuda")] if torch.cuda.is_available() else []
    if not devices:
        print("no GPU here: its part is estimated above, not measured", file=sys.stderr)
    rows = []
    devices.append(torch.device("cpu"))
    for device in devices:
        ops = best_for(device)
        dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
        for row in time_operations(ops, device, dtypes):
            rows.append(row)
            print(f"timed {row.kernel} {row.shape} on {device.type}", file=sys.stderr)
    if trace is not None:
        device = devices[0]
        ops, traced = best_for(device), list(problems(device, (torch.float32,)))
        write_trace(lambda: [problem.step(ops) for problem in traced], trace)
    return rows


def proton_part() -> list[KernelTime]:
    """Times of single GPU kernels, where there are a GPU and Proton."""
    if not torch.cuda.is_available():
        return []
    try:
        return kernel_times()
    except ProtonMissing as missing:
        print(f"Proton gave no times of single kernels: {missing}", file=sys.stderr)
        return []


def cell(value: Any) -> str:
    """A value of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)[:WIDEST]


def print_table(columns: Columns, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a markdown table, after an empty line; nothing without rows."""
    if rows:
        cells = pd.DataFrame([[cell(row[key]) for key, _ in columns] for row in rows], columns=[h for _, h in columns])
        print(f"\n{layout.markdown(cells, cells.columns, 'closed')}")


def print_by_target(rows: Sequence[StaticProfile]) -> None:
    """Print instructions per element, and for a mixture per component, with the targets side by side."""
    cases: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        case = row.kernel, row.dtype, row.direction
        shown = cases.setdefault(case, dict(zip(CASE, case, strict=True)))
        shown[row.target] = row.instructions_per_component or row.instructions_per_element
    targets = dict.fromkeys(row.target for row in rows)
    print_table([(name, name) for name in (*CASE, *targets)], list(cases.values()))


def print_estimates(rows: Sequence[StaticProfile]) -> None:
    """Print the estimated times of a million elements for each GPU."""
    cells = [
        (row.kernel, row.direction, row.dtype, gpu, *(f"{us[peak]:.2f}" for peak in PEAKS), row.bound[gpu])
        for row in rows
        for gpu, us in row.estimate_us_per_million.items()
    ]
    if not cells:
        return
    guessed = [gpu.gpu for gpu in gpus() if any("unsourced" in source for source in gpu.sources)]
    note = f" A peak has no source: {', '.join(guessed)}." if guessed else ""
    print(
        "\nEstimates from datasheet peaks (kernels/readback/gpus.csv), microseconds per million elements; "
        "not measured." + note
    )
    table = pd.DataFrame(cells, columns=list(ESTIMATES))
    print(layout.markdown(table, ESTIMATES, "bare"))


def draw(rows: Sequence[StaticProfile], path: Path) -> None:
    """Write the roofline figure."""
    from benchmarks.profiling.roofline import roofline
    from benchmarks.report.pictures.figures import save

    save(roofline(rows, gpus()), path)
