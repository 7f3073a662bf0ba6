"""Trials in processes of their own: started, watched, interrupted, and what they leave when they fail."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.base import children
from benchmarks.base.errors import GOES_ON, INTERRUPTED, UserError
from benchmarks.base.limits import memory_limit, usable_cores
from benchmarks.base.signals import PARENT_SECONDS, STOPPING
from benchmarks.records.record import Measurement, RunRecord, save_record
from benchmarks.storage.weights import read_config, record_head, record_names, write_config
from benchmarks.suites.config import Suite
from benchmarks.trials.child import GALLERY_ALONE, LOG, Child
from benchmarks.trials.claims import claim, owner_of
from benchmarks.trials.schedule import Plan, PlannedTrial
from benchmarks.trials.trial import is_untidy, tidy
from benchmarks.trials.watching.events import THROUGHPUT, Ended, Plain, Reported, Watcher, Watchers

TIMED = "train,encode,reconstruct,sample"
"""What the table shows of a trial's speed."""

TO_RUN = ("train", "evaluate", "draw")
POLL_SECONDS = 0.1
STARTED_AGAIN = {"killed": 1, "starved": 64}
"""How often a trial is started again, at most; one that lacks memory ends before, at one image at a time."""
TRIAL_BYTES = 1 << 30
"""What a small trial holds at its peak, imports and data included: 0.8 GiB in the quick suite, rounded up."""


@dataclass
class Outcome:
    """How a run ended."""

    failed: list[str] = field(default_factory=list)
    user_error: bool = False
    interrupted: bool = False

    def note(self, planned: PlannedTrial, reason: str) -> None:
        """Add a trial that failed."""
        self.failed.append(f"{planned.name}: {reason} (log: {planned.folder / LOG})")


def prepare_folder(out: Path) -> None:
    """Create `out`, or say in one line why it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out}: expected a folder that can be written: {error.strerror}") from error


def default_jobs(suite: Suite, ranks: int = 1) -> int:
    """Trials at a time: on a CPU as many as cores (at the suite's threads) and memory hold, on a GPU one.

    Each has as many `ranks`, processes of their own.
    """
    if any(trial.device != "cpu" for trial in suite.trials):
        return 1
    cores, memory = usable_cores() // max(trial.threads for trial in suite.trials), memory_limit()
    return max(1, (cores if memory is None else min(cores, memory // TRIAL_BYTES)) // ranks)


def trial_flags(plan: Plan, ranks: int) -> list[str]:
    """Command-line flags of every trial's process of a run."""
    flags = [*plan.plugin_flags, "--data-hash", plan.data.content_hash]
    return flags + (["--ranks", str(ranks)] if ranks > 1 else [])


def execute(plan: Plan, jobs: int, watching: Sequence[Watcher] = (Plain(),), ranks: int = 1) -> Outcome:
    """Run all unfinished trials, `jobs` at a time, then measure throughput trial by trial on the quiet machine.

    Each is trained by so many `ranks`. A trial that another run works on is left to it for as long as it does. Who is
    `watching` is told what happens.
    """
    outcome, watchers = Outcome(), Watchers(watching)
    try:
        bring_up_to_date(plan, watchers)
        Jobs(plan, jobs, watchers, outcome, ranks).run()
        if not outcome.interrupted:
            _measure_throughput(plan, watchers, outcome)
    finally:
        watchers.close(hurry=outcome.interrupted)
    return outcome


def bring_up_to_date(plan: Plan, watchers: Watchers) -> None:
    """Finish what a killed run left of finished trials, and set their names in the records."""
    for planned in plan.trials:
        stale = planned.work == "rename" or (planned.work in ("draw", "nothing") and is_untidy(planned.folder))
        if stale and (held := claim(planned.folder, watchers.say)) is not None:
            tidy(planned.folder)
            if planned.work == "rename" and (record := planned.record) is not None:
                write_config(planned.trial, planned.folder)
                save_record(dataclasses.replace(record, **record_names(planned.trial)), planned.folder)
            held.release()


class Jobs:
    """The trials of a run that are waiting and running, `most` at a time."""

    def __init__(self, plan: Plan, most: int, watchers: Watchers, outcome: Outcome, ranks: int = 1) -> None:
        todo = [planned for planned in plan.trials if planned.work in TO_RUN]
        self.waiting = sorted(todo, key=lambda p: -p.macs_per_image * p.trial.training.images)
        self.running = list[Child]()
        self.flags = trial_flags(plan, ranks)
        self.most, self.watchers, self.outcome = most, watchers, outcome
        self.again, self.left = Counter[tuple[str, Path]](), set[Path]()

    def run(self) -> None:
        """Keep up to `most` children going until all are done or the user interrupts."""
        try:
            while self.waiting or self.running:
                for planned in list(self.waiting):
                    if len(self.running) < self.most:
                        self._start(planned)
                for child in [c for c in self.running if c.process.poll() is not None]:
                    self.running.remove(child)
                    self._settle(child)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            print("stopping: each trial saves its state (give it a moment)", file=sys.stderr)
            self._end_all()
            for child in self.running:
                self._settle(child)
        except BaseException:  # a full disk, say: nobody is left behind
            self._end_all()
            raise

    def _start(self, planned: PlannedTrial) -> None:
        """Start a waiting trial, unless another run works on it or has done it."""
        say = lambda text: self.watchers.say(f"{planned.name}: {text}")  # noqa: E731
        held = claim(planned.folder, say)
        if held is None:
            if planned.folder not in self.left:
                say(f"is left to another run ({owner_of(planned.folder) or 'unknown'}) while that works on it")
            self.left.add(planned.folder)
            return
        self.waiting.remove(planned)
        work = planned.work
        if work in TO_RUN:
            if work != "draw":
                write_config(planned.trial, planned.folder)
            flags = [*self.flags, *([GALLERY_ALONE] if work == "draw" else [])]
            self.running.append(Child(planned, flags, self.watchers, held))
        else:
            held.release()

    def _end_all(self) -> None:
        """Ask all children to leave, and end those that do not in time, or at once if asked again."""
        for child in self.running:
            child.ask_to_leave()
        with contextlib.suppress(KeyboardInterrupt):
            end = time.monotonic() + PARENT_SECONDS
            while time.monotonic() < end and any(child.process.poll() is None for child in self.running):
                time.sleep(POLL_SECONDS)
        for child in self.running:
            child.process.kill()
            child.process.wait()

    def _settle(self, child: Child) -> None:
        """Note how a child ended; a failed trial leaves a record that says so, a killed one is started once more."""
        code, planned, again = child.finish(), child.planned, False
        try:
            if code == INTERRUPTED or -code in STOPPING or (code < 0 and self.outcome.interrupted):
                self.outcome.interrupted = True
            elif code == 0:
                if (record := planned.record) is not None and record.error:
                    self.outcome.note(planned, record.error)
            elif not (again := self._starts_again(child, code)):
                reason = child.last_words(code)
                self.outcome.note(planned, reason)
                self.outcome.user_error |= code == 2
                if planned.work != "draw":  # a record that is whole stays as it is
                    save_record(failed_record(planned, reason), planned.folder)
        finally:
            child.claim.release()
            self.watchers.tell(Ended(planned, again))

    def _starts_again(self, child: Child, code: int) -> bool:
        """Let a killed child's trial start once more, and one that lacks memory as often as its state asks for it."""
        why = "starved" if code == GOES_ON else "killed" if code < 0 or code in children.KILLED else ""
        start = why, child.planned.folder
        if self.again[start] >= STARTED_AGAIN.get(why, 0):
            return False
        self.again[start] += 1
        self.waiting.append(child.planned)  # behind the others, which may leave more memory
        if why == "killed":
            self.watchers.say(f"{child.planned.name}: {child.last_words(code)}; it is started once more")
        return True


def failed_record(planned: PlannedTrial, reason: str) -> RunRecord:
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


def _measure_throughput(plan: Plan, watchers: Watchers, outcome: Outcome) -> None:
    """Add throughput to every finished record that lacks it, one process at a time."""
    done = [p for p in plan.trials if (r := p.record) is not None and r.status == "done"]
    for planned in done:
        try:
            _add_throughput(planned, plan.plugin_flags, watchers)
        except UserError as error:
            outcome.failed.append(f"{planned.name}: throughput: {error}")
        except KeyboardInterrupt:
            outcome.interrupted = True
            return


def _add_throughput(planned: PlannedTrial, flags: list[str], watchers: Watchers) -> None:
    """Measure what the trial's record lacks, when nobody else works on it."""
    while lacks_throughput(planned):
        held = claim(planned.folder, watchers.say)
        if held is None:
            time.sleep(POLL_SECONDS)
            continue
        try:
            if lacks_throughput(planned) and (record := planned.record) is not None:
                watchers.tell(Reported(planned, THROUGHPUT, 0, 1))
                save_record(record.with_measurements(throughput_of(planned.folder, flags)), planned.folder)
                watchers.tell(Reported(planned, THROUGHPUT, 1, 1))
        finally:
            held.release()


def lacks_throughput(planned: PlannedTrial) -> bool:
    """Whether the trial is done but for its throughput."""
    record = planned.record
    return record is not None and record.status == "done" and record.get("train_throughput") is None


def throughput_of(checkpoint: Path, flags: list[str]) -> list[Measurement]:
    """Throughput of a checkpoint, measured in a fresh process.

    Raises:
        UserError: the process failed; carries its last line.
    """
    trial = read_config(checkpoint) if checkpoint.is_dir() else None
    command = [sys.executable, "-m", "benchmarks", "throughput", str(checkpoint), "--json", "--what", TIMED, *flags]
    said = children.output_of(command, children.environment(trial.threads if trial else None))
    return [Measurement(**row) for row in json.loads(said)]
