"""Slurm, through submitit: an array of jobs, each of which continues its trial after it was requeued."""

from __future__ import annotations

import contextlib
import math
import shlex
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base.children import environment
from benchmarks.base.errors import UserError, first_line
from benchmarks.base.extras import needed
from benchmarks.trials.executors.interface import Requests, State, Task
from benchmarks.trials.executors.job import SlurmJob

LOGS = ".slurm"
"""Folder of a run for what its jobs print and what they are started from."""
HOURS = 24.0
"""Wall-clock limit of a job, where none is given."""
MOST_REQUEUES = 1000
"""How often a job may run into its limit; each time the trial is further."""
LONGEST_ARRAY = 1000
"""Jobs of an array, as Slurm has it unless told otherwise (MaxArraySize)."""
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
LIST = ("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T")
OF_GPUS = ("gres", "gpus")
"""How options of sbatch begin that ask for GPUs."""


class Slurm:
    """The cluster that `sbatch` and `squeue` speak to.

    Args:
        out: folder of the run.
        at_once: jobs at a time; None for as many as Slurm has room for.
        hours: see `HOURS`.
        requests: options of sbatch.

    Raises:
        UserError: no submitit, or no Slurm.
    """

    name = "slurm"
    most: int | None = None

    def __init__(self, out: Path, at_once: int | None, hours: float | None, requests: Requests) -> None:
        submitit = needed("submitit", "--executor slurm", "slurm")
        try:
            self.submitit = submitit.SlurmExecutor(folder=(out / LOGS).resolve(), max_num_timeout=MOST_REQUEUES)
        except RuntimeError as error:
            raise UserError(
                f"--executor slurm: expected a machine of the cluster, from which jobs are submitted, got none: "
                f"{first_line(error)}; use --executor local"
            ) from error
        self.settings: dict[str, Any] = {
            "job_name": f"vaebench-{out.name}",
            "time": math.ceil(60 * (hours or HOURS)),
            "setup": [f"export PYTHONPATH={shlex.quote(environment(None)['PYTHONPATH'])}"],
            "array_parallelism": at_once or LONGEST_ARRAY,
        }
        self.requests = {"requeue": True, **{name.replace("_", "-"): value for name, value in requests.items()}}

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        """See `Cluster`."""
        found = list[str]()
        for start in range(0, len(tasks), LONGEST_ARRAY):
            found += self._submit(tasks[start : start + LONGEST_ARRAY])
        return found

    def _submit(self, tasks: Sequence[Task]) -> list[str]:
        """The names of the jobs of one array."""
        needs: dict[str, Any] = {"cpus_per_task": max(task.cores for task in tasks)}
        gpus = max(task.gpus for task in tasks)
        if gpus and not any(name.startswith(OF_GPUS) for name in self.requests):
            needs["gpus_per_node"] = gpus
        with _refusals():
            self.submitit.update_parameters(**self.settings, **needs, additional_parameters=self.requests)
            jobs = self.submitit.submit_array([SlurmJob(task.command, self.name) for task in tasks])
        return [str(job.job_id) for job in jobs]

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        """See `Cluster`."""
        if not jobs:
            return {}
        try:
            listed = subprocess.run(LIST, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):  # it is asked again
            return dict.fromkeys(jobs, "running")
        found = dict[str, State]()
        for line in listed.splitlines():
            job, _, word = line.strip().partition("|")
            if job in jobs and found.get(job) not in ("queued", "running"):
                found[job] = _state(word)
        return found

    def leave(self, jobs: Collection[str]) -> str:
        """See `Cluster`: they stay."""
        arrays = " ".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
        return f"the jobs stay with Slurm (scancel {arrays} ends them); the same command follows them again"


def _state(word: str) -> State:
    """A state in Slurm's word."""
    if word in QUEUED:
        return "queued"
    if word in RUNNING:
        return "running"
    return "cancelled" if word == "CANCELLED" else "ended"


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Inside this block, what submitit and sbatch refuse is a line for people."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = [line for line in str(error).splitlines() if "sbatch: error:" in line]
        reason = (said[0] if said else first_line(error)).removeprefix("sbatch: error: ")
        raise UserError(
            f"--executor slurm: expected jobs that Slurm takes, got '{reason}'; see --request and --hours"
        ) from error
