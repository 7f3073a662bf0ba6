"""The verbs `report` and `compare`: from the records of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.base.errors import FAILED
from benchmarks.report.page import build_report
from benchmarks.report.verdict import comparison

RESULTS = Path(__file__).resolve().parent.parent.parent / "results"
PUBLISHED, KERNELS = RESULTS / "published.csv", RESULTS / "kernels" / "profile.json"


def write_report(out: Path, show: Callable[[str], None] = lambda text: None, pages: bool = True) -> None:
    """Write the report of the run in `out`, published values in a block of their own; `show` its tables at once."""
    others, kernels = (path if path.exists() else None for path in (PUBLISHED, KERNELS))
    build_report(out, others, show, pages, kernels)


def shown(text: str) -> None:
    """Print the tables; figures and pages follow."""
    print(text, flush=True)


def report(options: argparse.Namespace) -> int:
    """Rebuild the report of a run from its records."""
    write_report(Path(options.out), shown)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the differences of rows, runs or records; exit code 1 where a condition of --fail-if holds."""
    found = comparison.compare(options.rows, Path(options.out))
    held = comparison.conditions(options.fail_if, found)
    if options.json:
        print(comparison.as_json(found, held))
    else:
        print({"markdown": comparison.markdown, "latex": comparison.latex}.get(options.form, comparison.text)(found))
    failed = [condition for condition, holds in held.items() if holds]
    for condition in failed:
        print(f"--fail-if holds: {condition}", file=sys.stderr)
    return FAILED if failed else 0
