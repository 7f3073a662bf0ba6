"""What runs on a node of a cluster: it starts a trial's process and ends with it. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.base import children
from benchmarks.base.errors import INTERRUPTED
from benchmarks.base.extras import needed
from benchmarks.trials.claims import JOB

POLL_SECONDS = 0.1
REQUEUE_SECONDS = 600.0
"""How long a job whose trial was asked to leave waits for Slurm to end it and to put it back into the queue."""


class TrialJob:
    """A call that starts a trial's process, waits for it and returns its exit code.

    The process ends with this one, however that happens: it hears the end of its input. Its current folder is that in
    which this object was made.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.command, self.name, self.folder = tuple(command), name, Path.cwd()
        self.code: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Work on the trial."""
        env, command = children.environment(None) | {JOB: self.job}, [*self.command, "--with-parent"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, cwd=self.folder)
        threading.Thread(target=self._wait, daemon=True).start()
        try:
            return self.ended()
        finally:
            self.leave()

    @property
    def job(self) -> str:
        """What the owner of the trial's claim calls this job."""
        return self.name

    def ended(self) -> int:
        """The exit code, once there is one; nothing is locked here, so that handlers of signals may wait as well."""
        while self.code is None:
            time.sleep(POLL_SECONDS)
        return self.code

    def leave(self) -> None:
        """Let the trial save its state and end."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.ended()

    def _wait(self) -> None:
        assert self.process is not None
        self.code = self.process.wait()


class SlurmJob(TrialJob):
    """A job of Slurm that submitit puts back into the queue: before its time is over, and where it is pre-empted."""

    def __call__(self) -> int:
        """Work on the trial; where that was asked to leave, wait for Slurm to end and requeue this job."""
        code = super().__call__()
        if code == INTERRUPTED:
            time.sleep(REQUEUE_SECONDS)
        return code

    @property
    def job(self) -> str:
        """See `TrialJob`: as `squeue` has it."""
        array, index = (os.environ.get(name) for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
        return f"{self.name} job {f'{array}_{index}' if array else os.environ.get('SLURM_JOB_ID')}"

    def checkpoint(self) -> Any:
        """What submitit is to run next time, once the state of the trial is saved."""
        self.leave()
        again = needed("submitit.helpers", "a job of Slurm", "slurm").DelayedSubmission
        return again(SlurmJob(self.command, self.name))
