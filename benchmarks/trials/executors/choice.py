"""The executors by name, and what the command line may ask of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.base.errors import UserError
from benchmarks.trials.executors.interface import Executor, Requests
from benchmarks.trials.executors.ray_core import Ray
from benchmarks.trials.executors.remote import Remote
from benchmarks.trials.executors.slurm import Slurm
from benchmarks.trials.processes import Outcome, default_jobs, execute
from benchmarks.trials.schedule import Plan
from benchmarks.trials.watching.events import Plain, Watcher

LOCAL = "local"


@dataclass(frozen=True)
class Local:
    """Trials in processes of this machine, `jobs` at a time (None: as many as cores and memory hold)."""

    jobs: int | None = None
    ranks: int = 1

    def at_once(self, plan: Plan) -> int:
        """See `Executor`."""
        return self.jobs or default_jobs(plan.suite, self.ranks)

    def execute(self, plan: Plan, watching: Sequence[Watcher] = (Plain(),)) -> Outcome:
        """See `Executor`."""
        return execute(plan, self.at_once(plan), watching, self.ranks)


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for: an executor, trials at a time, ranks, and what a job asks of its cluster."""

    name: str = LOCAL
    jobs: int | None = None
    ranks: int = 1
    hours: float | None = None
    requests: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise UserError where the executor knows nothing of what is asked."""
        if self.name == LOCAL and self.requests:
            raise UserError("--request: expected with --executor slurm or ray, got none of them; leave it out")
        if self.name != "slurm" and self.hours is not None:
            raise UserError(f"--hours: expected with --executor slurm, got {self.name}; leave it out")
        self.words()

    def words(self) -> Requests:
        """The requests by name.

        Raises:
            UserError: one that is not KEY=VALUE.
        """
        return dict(_request(text) for text in self.requests)


def executor_of(wanted: Wanted, out: Path) -> Executor:
    """The executor that is wanted, for the run in `out`.

    Raises:
        UserError: a package or a cluster that is missing.
    """
    if wanted.name == "slurm":
        return Remote(Slurm(out, wanted.jobs, wanted.hours, wanted.words()), wanted.ranks)
    if wanted.name == "ray":
        return Remote(Ray(wanted.jobs, wanted.words()), wanted.ranks)
    return Local(wanted.jobs, wanted.ranks)


def _request(text: str) -> tuple[str, str]:
    """Name and value of a request."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise UserError(f"--request: expected KEY=VALUE in the cluster's words (partition=gpu), got '{text}'")
    return name, value
