"""The verb `tune`: learning rates tried for every row of a suite."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.base.errors import UserError
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from benchmarks.trials import tune as tuning


def tune(options: argparse.Namespace) -> int:
    """Run the trials that the log lacks."""
    if options.jobs < 1:
        raise UserError(f"--jobs: expected at least 1, got {options.jobs}")
    name, table = read_suite(options.suite)
    rows = options.models.split(",") if options.models else None
    apply_overrides(table, options.set, rows)
    suite = build_suite(name, table, rows)
    tuning.tune(suite, Path(options.log or f"results/tuning/{name}.csv"), options.jobs, options.plugin)
    return 0
