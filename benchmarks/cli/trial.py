"""The verb `trial`: one trial in a process of its own, started by `run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.base.errors import FAILED, INTERRUPTED, GivenUpError
from benchmarks.trials.trial import draw_gallery, run_trial


def trial(options: argparse.Namespace) -> int:
    """Run one trial (started by `run`)."""
    work = draw_gallery if options.gallery else run_trial
    try:
        record = work(Path(options.folder), with_parent=options.with_parent, data_hash=options.data_hash)
    except GivenUpError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return INTERRUPTED if record.status == "interrupted" else 0
