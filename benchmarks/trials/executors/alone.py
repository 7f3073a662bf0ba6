"""The process of one trial that nobody on this machine watches: from its claim to its throughput, as in a run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.base.errors import FAILED, INTERRUPTED
from benchmarks.base.signals import on_stop, when_input_ends
from benchmarks.storage.weights import read_config
from benchmarks.suites.config import Suite
from benchmarks.trials.claims import OWNER, claim
from benchmarks.trials.executors.note import forget_note
from benchmarks.trials.processes import Outcome, execute
from benchmarks.trials.schedule import Plan, planned_in
from benchmarks.trials.trial import data_of

POLL_SECONDS = 0.5


def work_alone(folder: Path, data_hash: str | None, ranks: int, plugins: Sequence[str], with_parent: bool) -> int:
    """Work on the trial of `folder` to its end; arguments as of `run_trial`. Returns the exit code.

    A trial that another process works on is left to it; one whose owner is no longer heard of is waited for.
    """
    Asked().listen(with_parent)
    if not _comes_free(folder):
        _say(f"{folder.name} is left to whoever works on it")
        return 0
    planned = plan_of(folder, data_hash, plugins)
    outcome = execute(planned, jobs=1, ranks=ranks)
    if planned.trials[0].work == "nothing":
        forget_note(folder)
    for line in outcome.failed:
        _say(f"error: {line}")
    return _exit_code(outcome)


def _exit_code(outcome: Outcome) -> int:
    if outcome.interrupted:
        return INTERRUPTED
    return (2 if outcome.user_error else FAILED) if outcome.failed else 0


def plan_of(folder: Path, data_hash: str | None, plugins: Sequence[str]) -> Plan:
    """The plan of a single trial, which a run has put into `folder`.

    Raises:
        UserError: no trial, or its images are gone or others by now.
    """
    trial = read_config(folder)
    data = data_of(trial, data_hash)
    suite = Suite(trial.suite, trial.suite, trial.data, (trial,))
    return Plan(suite, data, [planned_in(folder, trial, data)], folder.parent, tuple(plugins))


def _comes_free(folder: Path) -> bool:
    """Whether the trial is to be had, now or when its owner has gone; False as soon as that is heard of."""
    beat = _beat(folder)
    while (held := claim(folder, _say)) is None:
        if _beat(folder) not in (beat, None):
            return False
        time.sleep(POLL_SECONDS)
    held.release()
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _beat(folder: Path) -> int | None:
    """When the owner's heart last beat; None without an owner."""
    try:
        return (folder / OWNER).stat().st_mtime_ns
    except OSError:
        return None


class Asked:
    """Interrupts this process when it is asked to leave, once: schedulers ask again and again."""

    def __init__(self) -> None:
        self.already = False

    def listen(self, with_parent: bool) -> None:
        """Hear signals, and the end of standard input where the parent holds its other end."""
        on_stop(self._interrupt)
        if with_parent:
            when_input_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))

    def _interrupt(self, number: int, frame: object) -> None:
        if not self.already:
            self.already = True
            raise KeyboardInterrupt
