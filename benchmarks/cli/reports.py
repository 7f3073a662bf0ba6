"""The verbs `report`, `compare`, `status` and `merge`: from the records of runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.base.errors import FAILED
from benchmarks.report.page import build_report
from benchmarks.report.verdict import comparison, joining
from benchmarks.trials.executors import status as of_folder

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


def status(options: argparse.Namespace) -> int:
    """Print how far the trials of a run are; exit code 1 where one has failed."""
    trials = of_folder.status_of(Path(options.out))
    if options.json:
        print(json.dumps([dataclasses.asdict(trial) for trial in trials], indent=1))
    else:
        print(of_folder.shown(trials))
    return FAILED if any(trial.kind == "failed" for trial in trials) else 0


def merge(options: argparse.Namespace) -> int:
    """Copy the trials of several runs into one folder, and print its table."""
    out = Path(options.out)
    for line in joining.join([Path(run) for run in options.runs], out, options.allow or ()):
        print(line, file=sys.stderr)
    write_report(out, shown)
    return 0
