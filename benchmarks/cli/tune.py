"""The verb `tune`: learning rates tried for every row of a suite."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.trials import tune as tuning


def tune(options: argparse.Namespace) -> int:
    """Run the trials that the log lacks."""
    name, table = read_suite(options.suite)
    for assignment in options.set:
        set_path(table, assignment)
    suite = build_suite(name, table, options.models.split(",") if options.models else None)
    tuning.tune(suite, Path(options.log or f"results/tuning/{name}.csv"))
    return 0
