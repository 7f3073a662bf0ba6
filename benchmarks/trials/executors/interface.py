"""What an executor is: it works through a plan. What a cluster is: it takes tasks and says what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.trials.processes import Outcome, trial_flags
from benchmarks.trials.schedule import Plan, PlannedTrial
from benchmarks.trials.watching.events import Watcher

Requests = Mapping[str, str]
"""What a trial's job asks of its cluster besides cores, GPUs and time, in the cluster's own words."""
State = Literal["queued", "running", "ended", "cancelled"]
"""Of a job."""
RETRIES = 3
"""How often a job that has gone without a record, as with its node, is started again."""


class Executor(Protocol):
    """Works through the trials of a plan."""

    def at_once(self, plan: Plan) -> int:
        """Trials at a time, as far as can be said."""
        ...

    def execute(self, plan: Plan, watching: Sequence[Watcher]) -> Outcome:
        """Run all that is unfinished; a trial that somebody else works on is left to them for as long as they do."""
        ...


@dataclass(frozen=True)
class Task:
    """A trial as a cluster starts it: the process that works on it to its end, and what that needs."""

    name: str
    folder: Path
    command: tuple[str, ...]
    cores: int
    gpus: int


class Cluster(Protocol):
    """Starts tasks on its machines, which see the folder of the run under the same path."""

    name: str
    most: int | None
    """Jobs that are handed over at a time; None where the cluster keeps count itself."""

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        """The names of their jobs, one a task.

        Raises:
            UserError: the cluster refuses.
        """
        ...

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        """States of those jobs that the cluster knows; of all of them "running" where it does not answer."""
        ...

    def leave(self, jobs: Collection[str]) -> str:
        """The run was asked to leave while these jobs are there; returns a line that says what becomes of them."""
        ...


def task_of(planned: PlannedTrial, plan: Plan, ranks: int) -> Task:
    """The task of a trial, which `ranks` processes train together."""
    command = [sys.executable, "-m", "benchmarks", "trial", str(planned.folder.resolve()), "--alone"]
    trial, flags = planned.trial, trial_flags(plan, ranks)
    gpus = ranks if trial.device.startswith("cuda") else 0
    return Task(planned.name, planned.folder, (*command, *flags), trial.threads * ranks, gpus)
