"""The verbs `report` and `compare`: from the records of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import compare as comparing
from benchmarks.report.page import build_report

PUBLISHED = Path(__file__).resolve().parent.parent.parent / "results" / "published.csv"


def write_report(out: Path, show: Callable[[str], None] = lambda text: None, pages: bool = True) -> None:
    """Write the report of the run in `out`, published values in a block of their own; `show` its tables at once."""
    build_report(out, PUBLISHED if PUBLISHED.exists() else None, show, pages)


def shown(text: str) -> None:
    """Print the tables; figures and pages follow."""
    print(text, flush=True)


def report(options: argparse.Namespace) -> int:
    """Rebuild the report of a run from its records."""
    write_report(Path(options.out), shown)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the difference of two rows of a run."""
    print(comparing.compare(Path(options.out), options.a, options.b))
    return 0
