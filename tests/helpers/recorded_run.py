"""Runs a suite and writes what its trials told, and when: the recorded clock of tests of the time left.

PYTHONPATH=.:tests/helpers python -m recorded_run SUITE RECORD.json [--jobs 2] [--set A.B=C ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from benchmarks.trials.processes import execute
from benchmarks.trials.schedule import plan
from benchmarks.trials.watching.events import Begun, Ended, Event, Reported, Said
from benchmarks.trials.watching.workload import step_seconds, workloads

KINDS = {Begun: "begun", Reported: "reported", Ended: "ended"}


class Recorder:
    """A watcher that writes down events: [seconds since the start, kind, trial, phase, done, total]."""

    def __init__(self) -> None:
        self.start, self.events = time.monotonic(), list[list[Any]]()

    def tell(self, event: Event) -> None:
        """Write it down."""
        if isinstance(event, Said):
            return
        rest = [event.phase, event.done, event.total] if isinstance(event, Reported) else []
        self.events.append([round(time.monotonic() - self.start, 2), KINDS[type(event)], event.planned.name, *rest])

    def close(self, hurry: bool) -> None:
        """Nothing is left to do."""


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("record", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    name, table = read_suite(options.suite)
    apply_overrides(table, options.set, None)
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(build_suite(name, table), Path(folder))
        found = {one: dataclasses.asdict(work) for one, work in workloads(planned).items()}
        steps = step_seconds(planned, options.jobs)
        recorder = Recorder()
        outcome = execute(planned, options.jobs, [recorder])
        assert not outcome.failed, outcome.failed
        end = round(time.monotonic() - recorder.start, 2)
    said = {"jobs": options.jobs, "seconds": end, "step_seconds": steps, "workloads": found}
    lines = ",\n".join(json.dumps(event) for event in recorder.events)
    options.record.write_text(f'{json.dumps(said)[:-1]},\n"events": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
