"""The verb `tune`: learning rates tried for every row of a suite."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from benchmarks.trials import tune as tuning


def tune(options: argparse.Namespace) -> int:
    """Run the trials that the log lacks."""
    name, table = read_suite(options.suite)
    rows = list(options.models) if options.models else None
    apply_overrides(table, options.set, rows)
    suite = build_suite(name, table, rows)
    tuning.tune(suite, Path(options.log or f"results/tuning/{name}.csv"), options.jobs, options.plugin)
    return 0
