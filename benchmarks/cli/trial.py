"""The verb `cell`: one cell in a process of its own, started by `run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.base.errors import INTERRUPTED
from benchmarks.trials.trial import run_cell


def cell(options: argparse.Namespace) -> int:
    """Run one cell (started by `run`)."""
    record = run_cell(Path(options.folder))
    return INTERRUPTED if record.status == "interrupted" else 0
