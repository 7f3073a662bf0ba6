"""The verb `trial`: one trial in a process of its own, started by `run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.base.errors import INTERRUPTED
from benchmarks.trials.trial import run_trial


def trial(options: argparse.Namespace) -> int:
    """Run one trial (started by `run`)."""
    record = run_trial(Path(options.folder))
    return INTERRUPTED if record.status == "interrupted" else 0
