"""Predicted against measured times of the fused operations.

`python -m benchmarks.profiling.predictions TIMING [PROFILE]`: TIMING is a `timing.json` of the verb `gpu`, PROFILE the
rows of the verb `profile`. The prediction is what the compiled code needs at the datasheet's peaks, the slowest of
memory, issue and special functions, forward and backward; it knows no launches, and no kernel too small to fill a GPU.
Of an operation that is not in the profile it is the bytes that must be moved, at the datasheet's bandwidth.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.report.layout import markdown
from kernels.readback.static_profile import gpus

PROFILE = Path("results/kernels/profile.json")
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
BOTH = ("forward", "backward")
NORM = "batch norm and swish"
PARTS = {
    f"{NORM}, training": ((f"{NORM}, reduction", BOTH), (f"{NORM}, writing", BOTH)),
    f"{NORM}, evaluation, forward": ((f"{NORM}, writing", ("forward",)),),
}
"""Kernels of an operation whose name is not that of its one kernel."""


def predicted_us(rows: list[dict[str, Any]], kernel: str, size: float, dtype: str, target: str, gpu: str) -> float:
    """Microseconds for `size` elements (pixels, for the mixture), NaN where a kernel is not in the profile."""
    total = 0.0
    for part, directions in PARTS.get(kernel, ((kernel, BOTH),)):
        for direction in directions:
            wanted = (part, direction, TYPES[dtype], target)
            found = [r for r in rows if tuple(r.get(k) for k in ("kernel", "direction", "dtype", "target")) == wanted]
            if not found:
                return math.nan
            total += max(found[0]["estimate_us_per_million"][gpu].values()) * size / 1e6
    return total


def table(timing: dict[str, Any], profile: list[dict[str, Any]], target: str, gpu: str) -> pd.DataFrame:
    """A row an operation that was timed in a CUDA graph, kernels back to back without the host."""
    rows, bandwidth = [], next(one.memory_tb_per_s for one in gpus() if one.gpu == gpu) * 1e-3  # GB/us
    for row in timing["rows"]:
        if not row["case"].endswith(", graphs") or row.get("p50_us") is None:
            continue
        kernel, shape, dtype = row["case"].removesuffix(", graphs").rsplit(", ", 2)
        sizes = [int(side) for side in shape.split("x")]
        size = math.prod(sizes) / (sizes[1] if kernel.startswith("logistic") else 1)
        guess = predicted_us(profile, kernel, size, dtype, target, gpu)
        if math.isnan(guess):
            guess = row["gb_per_s"] * row["p50_us"] * 1e-6 / bandwidth
        cells = (kernel, shape, dtype, guess, row["p50_us"], row["p50_us"] / guess, row["speedup_over_eager"])
        rows.append(cells)
    headings = ["operation", "shape", "dtype", "predicted us", "measured us", "ratio", "over eager, both in graphs"]
    return pd.DataFrame(rows, columns=pd.Index(headings))


def main(arguments: list[str]) -> None:
    """Print the table for an H100."""
    timing = json.loads(Path(arguments[0]).read_text())
    profile = json.loads(Path(arguments[1] if len(arguments) > 1 else PROFILE).read_text())
    print(markdown(table(timing, profile, "sm_90", "H100 SXM").round(2)))


if __name__ == "__main__":
    main(sys.argv[1:])
