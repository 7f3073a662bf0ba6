"""The verb `profile`: what the compiler made of the kernels, and how fast they are here."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from benchmarks.profiling import profile as profiling

STDOUT = "-"


def profile(options: argparse.Namespace) -> int:
    """Print the profile's tables; `--json` without a file prints the rows in their place."""
    targets, dtypes = list(options.targets), list(options.dtypes)
    profiling.check_names(targets, dtypes)
    as_json = options.json == STDOUT
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        rows = profiling.profile(
            targets=targets,
            dtypes=dtypes,
            json=None if as_json else _path(options.json),
            csv=_path(options.csv),
            figure=_path(options.figure),
            trace=_path(options.trace),
            timed=not options.static,
        )
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0


def _path(name: str | None) -> Path | None:
    """The file of that name, its folder made."""
    if name is None:
        return None
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
