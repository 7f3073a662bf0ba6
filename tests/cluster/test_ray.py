"""Ray for real, of this one machine: a worker that is killed costs a checkpoint interval at most."""

import importlib.util
import os
import signal
import subprocess
import time

import pytest

from benchmarks.base.errors import INTERRUPTED
from benchmarks.storage import tensors
from benchmarks.trials.claims import owner_of, worker_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray (pip install -e '.[ray]')"),
]
STARTED_SECONDS = 1.0
"""From the last look at a state until the processes are gone."""


def family(pid):
    """The process, those that it started, and the worker of Ray that started it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    return [parents[pid], pid, *(child for child, parent in parents.items() if parent == pid)]


def training(folder, before):
    """The owner of a trial that trains, another than before; None until there is one."""
    owner = owner_of(folder)
    return owner if owner is not None and owner.pid != before.pid and owner.phase == "train" else None


def test_a_killed_worker_costs_a_checkpoint_interval_at_most(runs, whole):
    runs.write(runs.images)
    cut = runs.start("cut", "--executor", "ray")
    state = runs.saved("cut")
    written = state.stat().st_mtime_ns
    runs.wait_for(lambda: state.exists() and state.stat().st_mtime_ns != written)
    time.sleep(runs.checkpoint_seconds / 2)
    owner = owner_of(state.parent)
    for pid in family(owner.pid):
        os.kill(pid, signal.SIGKILL)
    killed = time.time()
    saved = tensors.describe(state if state.exists() else state.parent / tensors.STATE_BEFORE).metadata
    lost = killed - state.stat().st_mtime
    print(f"killed at a state of step {saved['step']}, {lost:.2f} s old")
    assert lost <= runs.checkpoint_seconds + saved["seconds"] / saved["step"] + STARTED_SECONDS
    again = runs.wait_for(lambda: training(state.parent, owner))
    assert again.done >= saved["step"]
    runs.ended(cut)
    ((found, starts),) = runs.trained("cut").values()
    assert starts == 2
    assert found == whole


def test_what_ray_was_asked_to_leave_another_executor_continues(runs, whole):
    runs.write(runs.images)
    cut = runs.start("cut", "--executor", "ray")
    state = runs.saved("cut")
    cut.terminate()
    assert cut.wait(60) == INTERRUPTED
    assert worker_of(state.parent) is None
    runs.ended(runs.start("cut"))
    ((found, starts),) = runs.trained("cut").values()
    assert starts == 2
    assert found == whole
