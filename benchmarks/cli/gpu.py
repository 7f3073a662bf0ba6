"""The verb `gpu`: checks, measurements and a summary from a machine that has a GPU for a short while."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.base.errors import INTERRUPTED
from benchmarks.gpu import runner, schedule


def gpu(options: argparse.Namespace) -> int:
    """Run the steps and print the summary; the exit code is 1 if anything failed."""
    steps = schedule.choose(options.only)
    from benchmarks.machine.environment import choose_device  # torch, behind what needs none

    choose_device(options.device)
    out = Path(options.out) if options.out else runner.default_out(options.device)
    out.mkdir(parents=True, exist_ok=True)
    run = runner.run_steps(steps, out.resolve(), options.device, options.minutes)
    print((out / "summary.md").read_text(), end="")
    if run.interrupted:
        return INTERRUPTED
    return 0 if run.good else 1
