"""Ray Core: a task a trial, with its cores and GPUs, started again where its worker or its node is lost."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from benchmarks.base.children import environment
from benchmarks.base.errors import UserError, first_line
from benchmarks.base.extras import needed
from benchmarks.base.limits import usable_cores
from benchmarks.trials.executors.interface import RETRIES, Requests, State, Task
from benchmarks.trials.executors.job import TrialJob

LEAVE_SECONDS = 30.0
"""What tasks are given to save their trials and to end."""
STORE_BYTES = 80 << 20
"""Of a local Ray's object store, the least that it takes: tasks return a number each."""


class Ray:
    """The Ray cluster at RAY_ADDRESS, or one of this machine's cores and GPUs that ends with this process.

    Args:
        at_once: tasks at a time; None for as many as Ray has room for.
        requests: options of Ray's tasks.

    Raises:
        UserError: no ray, or none at that address.
    """

    name = "ray"

    def __init__(self, at_once: int | None, requests: Requests) -> None:
        self.ray, self.most, self.requests = needed("ray", "--executor ray", "ray"), at_once, _typed(requests)
        self.tasks = dict[str, Any]()
        self._connect()
        self.remote = self.ray.remote(_work)

    def _connect(self) -> None:
        path = {"env_vars": {"PYTHONPATH": environment(None)["PYTHONPATH"]}}
        common: dict[str, Any] = {
            "runtime_env": path,
            "log_to_driver": False,
            "ignore_reinit_error": True,
            "logging_level": "error",
        }
        try:
            try:
                self.ray.init(address="auto", **common)
            except ConnectionError:
                local = {"num_cpus": usable_cores(), "object_store_memory": STORE_BYTES, "include_dashboard": False}
                self.ray.init(**common, **local)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--executor ray: expected a Ray cluster, got '{first_line(error)}'; see RAY_ADDRESS"
            ) from error

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        """See `Cluster`."""
        return [self._submit(task) for task in tasks]

    def _submit(self, task: Task) -> str:
        needs = {"num_cpus": task.cores, "num_gpus": task.gpus, "max_retries": RETRIES, **self.requests}
        job = secrets.token_hex(4)
        try:
            reference = self.remote.options(**needs).remote(TrialJob(task.command, f"{self.name} job {job}"))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--executor ray: expected options of a task of Ray, got '{first_line(error)}'; see --request"
            ) from error
        self.tasks[job] = reference
        return job

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        """See `Cluster`; whether a task is queued Ray does not say."""
        known = {job: self.tasks[job] for job in jobs if job in self.tasks}
        if not known:
            return {}
        ready, _ = self.ray.wait(list(known.values()), num_returns=len(known), timeout=0)
        return {job: "ended" if task in ready else "running" for job, task in known.items()}

    def leave(self, jobs: Collection[str]) -> str:
        """See `Cluster`: they save their trials and end."""
        references = [self.tasks[job] for job in jobs]
        for reference in references:
            self.ray.cancel(reference)
        with contextlib.suppress(KeyboardInterrupt):
            self.ray.wait(references, num_returns=len(references), timeout=LEAVE_SECONDS)
        self.ray.shutdown()
        return "the tasks were asked to save their trials; the same command continues them"


def _typed(requests: Requests) -> dict[str, str | float]:
    """The requests, numbers as numbers."""
    found: dict[str, str | float] = {}
    for name, text in requests.items():
        try:
            number = float(text)
            found[name] = int(number) if number.is_integer() else number
        except ValueError:
            found[name] = text
    return found


def _work(job: TrialJob) -> int:
    """What a worker of Ray does: it waits for a trial's process."""
    return job()
