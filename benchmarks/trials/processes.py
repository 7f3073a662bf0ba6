"""Trials in processes of their own: started, watched, interrupted, and what they leave when they fail."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.base import children
from benchmarks.base.errors import INTERRUPTED, UserError
from benchmarks.base.limits import memory_limit, usable_cores
from benchmarks.records.record import Measurement, RunRecord, save_record, save_run
from benchmarks.storage.weights import read_config, record_head, record_names, write_config
from benchmarks.suites.config import Suite
from benchmarks.trials.progress import Bars
from benchmarks.trials.schedule import Plan, PlannedTrial

TIMED = "train,encode,reconstruct,sample"
"""What the table shows of a trial's speed."""

LOG = "log.txt"
POLL_SECONDS = 0.1
TRIAL_BYTES = 1 << 30
"""What a small trial holds at its peak, imports and data included: 0.8 GiB in the quick suite, rounded up."""


@dataclass
class Outcome:
    """How a run ended."""

    failed: list[str] = field(default_factory=list)
    user_error: bool = False
    interrupted: bool = False


def prepare_folder(out: Path) -> None:
    """Create `out`, or say in one line why it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out}: expected a folder that can be written: {error.strerror}") from error


def default_jobs(suite: Suite) -> int:
    """Trials at a time: on a CPU as many as cores (at the suite's threads) and memory hold, on a GPU one."""
    if any(trial.device != "cpu" for trial in suite.trials):
        return 1
    cores, memory = usable_cores() // max(trial.threads for trial in suite.trials), memory_limit()
    return max(1, cores if memory is None else min(cores, memory // TRIAL_BYTES))


def execute(plan: Plan, jobs: int) -> Outcome:
    """Run all unfinished trials, `jobs` at a time, then measure throughput trial by trial on the quiet machine."""
    save_run(plan.out, [planned.folder.name for planned in plan.trials])
    todo = [planned for planned in plan.trials if planned.work in ("train", "evaluate")]
    todo.sort(key=lambda p: -p.macs_per_image * p.trial.training.images)
    for planned in plan.trials:
        if planned.work != "nothing":
            write_config(planned.trial, planned.folder)
        if planned.work == "rename" and (record := planned.record) is not None:
            save_record(dataclasses.replace(record, **record_names(planned.trial)), planned.folder)
    outcome = Outcome()
    with Bars() as bars:
        _run_jobs(todo, jobs, plan.plugin_flags, bars, outcome)
        if not outcome.interrupted:
            _measure_throughput(plan, bars, outcome)
    return outcome


def _run_jobs(todo: list[PlannedTrial], jobs: int, flags: list[str], bars: Bars, outcome: Outcome) -> None:
    """Keep up to `jobs` children going until all are done or the user interrupts."""
    waiting, running = list(todo), list[Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Child(waiting.pop(0), flags, bars))
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                _settle(child, outcome)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        outcome.interrupted = True
        print("stopping: each trial saves its state (give it a moment)", file=sys.stderr)
        for child in running:
            child.process.send_signal(signal.SIGINT)
        for child in running:
            child.process.wait()
            _settle(child, outcome)


def _settle(child: Child, outcome: Outcome) -> None:
    """Note how a child ended; a failed trial leaves a record that says so."""
    code = child.finish()
    record = child.planned.record
    if code == 0 and record is not None and record.error:
        outcome.failed.append(f"{child.planned.name}: {record.error} (log: {child.planned.folder / LOG})")
    if code in (0, INTERRUPTED):
        return
    reason = child.last_words(code)
    outcome.failed.append(f"{child.planned.name}: {reason} (log: {child.planned.folder / LOG})")
    outcome.user_error |= code == 2
    save_record(_failed_record(child.planned, reason), child.planned.folder)


def _failed_record(planned: PlannedTrial, reason: str) -> RunRecord:
    """The trial's record as far as it came, marked as failed."""
    trial, record = planned.trial, planned.record
    if record is not None:  # one that was trained stays so: its weights are there to be evaluated
        status = "trained" if record.status == "trained" else "failed"
        return dataclasses.replace(record, status=status, error=reason)
    return RunRecord(
        **record_head(trial, planned.folder),
        data_hash="",
        status="failed",
        parameters=planned.parameters,
        macs_per_image=planned.macs_per_image,
        latent_groups=list(planned.latents),
        images_seen=0,
        steps=0,
        training_seconds=0.0,
        error=reason,
    )


class Child:
    """A trial's process: its progress goes to a bar, its messages to the trial's log."""

    def __init__(self, planned: PlannedTrial, flags: list[str], bars: Bars) -> None:
        self.planned = planned
        command = [sys.executable, "-m", "benchmarks", "trial", str(planned.folder), *flags]
        self.log = (planned.folder / LOG).open("a")  # what an earlier start said stays
        self.log.write(f"# {datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')} {shlex.join(command)}\n")
        self.log.flush()
        self.start = self.log.tell()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            errors="replace",
            env=children.environment(planned.trial.threads),
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(bars,), daemon=True)
        self.reader.start()

    def _read(self, bars: Bars) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line of a killed child, or a plugin's
                self._show(json.loads(line), bars)

    def _show(self, event: dict[str, Any], bars: Bars) -> None:
        if "said" in event:
            bars.say(f"{self.planned.name}: {event['said']}")
        else:
            bars.update(self.planned.name, event["phase"], event["done"], event["total"])

    def finish(self) -> int:
        """Wait for the reader, close the log; returns the exit code."""
        self.reader.join(timeout=5)
        self.log.close()
        return self.process.wait()

    def last_words(self, code: int) -> str:
        """The last line that this start of the trial wrote to its log; its exit code where it wrote nothing."""
        said = (self.planned.folder / LOG).read_bytes()[self.start :].decode(errors="replace")
        return children.last_words(said, code)


def _measure_throughput(plan: Plan, bars: Bars, outcome: Outcome) -> None:
    """Add throughput to every finished record that lacks it, one process at a time."""
    done = [p for p in plan.trials if (r := p.record) is not None and r.status == "done"]
    for index, planned in enumerate(done):
        record = planned.record
        assert record is not None
        if record.get("train_throughput") is None:
            try:
                save_record(record.with_measurements(throughput_of(planned.folder, plan.plugin_flags)), planned.folder)
            except UserError as error:
                outcome.failed.append(f"{planned.name}: throughput: {error}")
            except KeyboardInterrupt:
                outcome.interrupted = True
                return
        bars.update("all", "throughput", index + 1, len(done))


def throughput_of(checkpoint: Path, flags: list[str]) -> list[Measurement]:
    """Throughput of a checkpoint, measured in a fresh process.

    Raises:
        UserError: the process failed; carries its last line.
    """
    trial = read_config(checkpoint) if checkpoint.is_dir() else None
    command = [sys.executable, "-m", "benchmarks", "throughput", str(checkpoint), "--json", "--what", TIMED, *flags]
    said = children.output_of(command, children.environment(trial.threads if trial else None))
    return [Measurement(**row) for row in json.loads(said)]
