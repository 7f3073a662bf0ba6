"""Time of every GPU kernel of the fused operations, by Triton's own profiler Proton.

Proton reads the driver's records of single kernels, without the gaps between them. It runs in a process of its own:
where it is missing or fails, that costs one line, and it does not share the driver's profiling interface, which takes
one user at a time, with `torch.profiler`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.base.children import last_words
from benchmarks.profiling.kernel_timing import cache_filler
from benchmarks.profiling.problems import Problem, problems
from kernels.backends import best_for

DTYPES = (torch.float32, torch.bfloat16)
REPEATS = 50
FLUSH = "flush"
"""Scope of what is launched between repeats to empty the caches."""
INTERNAL = "__proton"
"""Beginning of the names of Proton's own frames."""
ROWS = "rows.json"
SECONDS = 600


class ProtonMissing(RuntimeError):  # noqa: N818
    """Proton gave no times; the message says why in one line."""


@dataclass(frozen=True)
class KernelTime:
    """One GPU kernel of an operation's forward and backward pass: mean time of a launch, and launches a pass."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    gpu_kernel: str
    launches: float
    proton_us: float


def read_tree(frame: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Launches and nanoseconds of each kernel below a frame of Proton's JSON ("hatchet"), where kernels are leaves."""
    if frame["frame"]["name"] == FLUSH or frame["frame"]["name"].startswith(INTERNAL):
        return {}
    metrics = frame["metrics"]
    if not frame["children"] and metrics.get("count"):
        return {frame["frame"]["name"]: (int(metrics["count"]), float(metrics["time (ns)"]))}
    found: dict[str, tuple[int, float]] = {}
    for child in frame["children"]:
        for name, (count, time) in read_tree(child).items():
            before = found.get(name, (0, 0.0))
            found[name] = before[0] + count, before[1] + time
    return found


def rows_of(problem: Problem, tree: dict[str, Any], repeats: int) -> list[KernelTime]:
    """A row for each kernel in the profile of `repeats` passes, the one that takes longest first."""
    kernels = sorted(read_tree(tree).items(), key=lambda item: -item[1][1])
    dtype = str(problem.dtype).removeprefix("torch.")
    return [
        KernelTime(problem.kernel, problem.shape, dtype, name, count / repeats, time / count / 1e3)
        for name, (count, time) in kernels
    ]


def record(call: Callable[[], object], flush: Callable[[], object], path: Path) -> dict[str, Any]:
    """The root frame of Proton's profile of `REPEATS` calls with cold caches, after one that compiles."""
    from triton import profiler

    call()
    torch.cuda.synchronize()
    profiler.start(str(path))
    for _ in range(REPEATS):
        with profiler.scope(FLUSH):
            flush()
        call()
    torch.cuda.synchronize()
    profiler.finalize()
    return json.loads(path.with_suffix(".hatchet").read_text())[0]


def record_problems(folder: Path) -> None:
    """Write the rows of every operation on the current GPU to a file in `folder`."""
    device, rows = torch.device("cuda"), []
    ops = best_for(device)
    for index, problem in enumerate(problems(device, DTYPES)):
        step = functools.partial(problem.step, ops)
        tree = record(step, cache_filler(device).zero_, folder / str(index))
        rows += rows_of(problem, tree, REPEATS)
    (folder / ROWS).write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


def kernel_times(seconds: float = SECONDS) -> list[KernelTime]:
    """The rows of every operation on the current GPU, recorded in another process within `seconds`.

    Raises:
        ProtonMissing: there is no Proton or no GPU, or it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.profiling.proton", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise ProtonMissing(f"nothing after {seconds:.0f} s") from error
        if done.returncode:
            raise ProtonMissing(last_words(done.stderr, done.returncode))
        rows = json.loads((Path(folder) / ROWS).read_text())
    return [KernelTime(**row | {"shape": tuple(row["shape"])}) for row in rows]


if __name__ == "__main__":
    record_problems(Path(sys.argv[1]))
