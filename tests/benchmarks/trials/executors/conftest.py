"""A plan of quick trials, and stand-ins for submitit and Ray that run their jobs in threads."""

import dataclasses
import os
import sys
import threading
import types

import numpy as np
import pytest

from benchmarks.records.catalogue import measurement
from benchmarks.records.record import RunRecord, save_record
from benchmarks.storage.weights import record_head
from benchmarks.suites.config import build_suite
from benchmarks.trials.executors import remote
from benchmarks.trials.schedule import plan

STAND_IN = """#!/bin/sh
echo "$VAEBENCH_JOB" >> "$4/starts"
cp "{records}/$(basename "$4")/record.json" "$4"
"""
"""A trial's process: it notes which job started it, and leaves the record of a finished trial."""


class Watched:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.events = []

    def tell(self, event):
        self.events.append(event)

    def close(self, hurry):
        self.hurry = hurry

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture
def finish():
    """`finish(planned, **fields)` writes the record of a trial that is through, with other fields where given."""

    def write(one, **fields):
        counts = {"parameters": 1, "macs_per_image": 1, "latent_groups": [], "images_seen": 1, "steps": 1}
        timed = [measurement("train_throughput", 1.0, n=1)]
        common = {"data_hash": "", "status": "done", "training_seconds": 1.0, "measurements": timed}
        save_record(RunRecord(**record_head(one.trial, one.folder), **(counts | common | fields)), one.folder)

    return write


@pytest.fixture
def planned(tmp_path, monkeypatch, finish):
    """A plan of two trials, whose processes a stand-in plays."""
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", train=images, validation=images, test=images)
    table = {"data": f"npz:{tmp_path / 'data.npz'}", "likelihood": {"name": "bernoulli"}, "seeds": 2}
    found = plan(build_suite("mine", table | {"models": {"vae": {"channels": 2}}}), tmp_path / "out")
    for one in found.trials:
        finish(dataclasses.replace(one, folder=tmp_path / "records" / one.folder.name))
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(records=tmp_path / "records"))
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.02)
    return found


@pytest.fixture
def submitit(tmp_path, monkeypatch):
    """Stand-ins for submitit and squeue: arrays of jobs in threads. It holds what was `asked` for each array."""
    queue = tmp_path / "queue"
    queue.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/sh\ncat {queue}/*\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    module = types.ModuleType("submitit")
    module.asked, module.refused, module.queue = [], "", queue

    def run(name, call):
        (queue / name).write_text(f"{name}|RUNNING\n")
        call()
        (queue / name).write_text(f"{name}|COMPLETED\n")

    class SlurmExecutor:
        def __init__(self, folder, max_num_timeout):
            self.folder = folder

        def update_parameters(self, **parameters):
            module.asked.append(parameters)

        def submit_array(self, calls):
            if module.refused:
                raise RuntimeError(module.refused)
            names = [f"7_{index}" for index in range(len(calls))]
            for name, call in zip(names, calls, strict=True):
                (queue / name).write_text(f"{name}|PENDING\n")
                threading.Thread(target=run, args=(name, call), daemon=True).start()
            return [types.SimpleNamespace(job_id=name) for name in names]

    module.SlurmExecutor = SlurmExecutor
    monkeypatch.setitem(sys.modules, "submitit", module)
    return module


@pytest.fixture
def ray(monkeypatch):
    """A stand-in for Ray: tasks in threads, no cluster to connect to. It holds what was `asked` for each task."""
    module = types.ModuleType("ray")
    module.asked, module.begun, module.cancelled, module.down = [], [], [], False

    class Task:
        def __init__(self, call, job):
            self.thread = threading.Thread(target=call, args=(job,), daemon=True)
            self.thread.start()

    def init(address=None, **settings):
        module.begun.append((address, settings))
        if address == "auto":
            raise ConnectionError("no cluster")

    def remote_call(call):
        def options(**asked):
            module.asked.append(asked)
            return types.SimpleNamespace(remote=lambda job: Task(call, job))

        return types.SimpleNamespace(options=options)

    def wait(tasks, num_returns, timeout):
        ready = [task for task in tasks if not task.thread.is_alive()]
        return ready, [task for task in tasks if task not in ready]

    module.init, module.remote, module.wait, module.cancel = init, remote_call, wait, module.cancelled.append
    module.shutdown = lambda: setattr(module, "down", True)
    monkeypatch.setitem(sys.modules, "ray", module)
    return module
