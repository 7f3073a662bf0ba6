"""The verbs `report` and `compare`: from the records of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report import compare as comparing
from benchmarks.report.page import build_report

PUBLISHED = Path(__file__).resolve().parent.parent.parent / "results" / "published.csv"


def report_of(out: Path) -> str:
    """The tables of the run in `out`, after writing its report; published values stand in a block of their own."""
    return build_report(out, PUBLISHED if PUBLISHED.exists() else None)


def report(options: argparse.Namespace) -> int:
    """Rebuild the report of a run from its records."""
    print(report_of(Path(options.out)))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the difference of two rows of a run."""
    print(comparing.compare(Path(options.out), options.a, options.b))
    return 0
