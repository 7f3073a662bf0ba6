"""Loops whose batches several processes compute: the results of one, whatever fails or is interrupted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import shared_tasks
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from benchmarks.base.batches import Task, in_batches
from benchmarks.evaluation.shared import shared_batches
from benchmarks.machine.memory import is_out_of_memory
from benchmarks.storage import parts
from benchmarks.storage.parts import Parts
from benchmarks.training.ranks import Ranks
from benchmarks.trials.ranks import HERE, join

ROOT = Path(__file__).resolve().parents[3]
COUNT, N, SIZE = 3, 23, 4


@pytest.fixture(scope="module")
def shared():
    """A network, and loops that three processes share, of which this is the first."""
    store = TCPStore(HERE, 0, COUNT, is_master=True, wait_for_workers=False)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    command = [sys.executable, "-m", "shared_tasks"]
    others = [
        subprocess.Popen([*command, str(index), str(COUNT), str(store.port)], env={**os.environ, "PYTHONPATH": path})
        for index in range(1, COUNT)
    ]
    try:
        join(Ranks(0, COUNT), store.port, torch.device("cpu"))
        net = shared_tasks.network()
        with shared_batches(net) as batches:
            yield net, batches
        assert [process.wait(30) for process in others] == [0, 0]
        dist.destroy_process_group()
    finally:
        for process in others:
            process.kill()


@pytest.mark.parametrize("images", [None, torch.linspace(-1, 1, 3 * N).view(N, 3)])
@pytest.mark.parametrize("size", [SIZE, N, 5])
def test_results_are_those_of_one_process_in_its_order(shared, images, size):
    net, batches = shared
    mine = []
    task = Task("model", net, shared_tasks.scaled, images, {"by": 3.0}, mine.append)
    expected, found = in_batches("", N, size, task), batches("", N, size, task)
    assert torch.equal(expected["rows"], torch.arange(N))
    for name, values in expected.items():
        assert torch.equal(found[name], values)
    starts = list(range(0, N, size))
    assert mine == starts + starts[::COUNT]


def test_other_weights_and_statistics_are_told(shared):
    net, batches = shared
    task = Task("model", net, shared_tasks.scaled, None, {"by": 1.0})
    before = batches("", N, SIZE, task)["values"]
    with torch.no_grad():
        net[1].running_mean.add_(1)
    assert torch.equal(batches("", N, SIZE, task)["values"], in_batches("", N, SIZE, task)["values"])
    assert not torch.equal(batches("", N, SIZE, task)["values"], before)


@pytest.mark.parametrize("at", [0, SIZE, 5 * SIZE])
def test_a_batch_that_fails_fails_the_loop_and_no_other(shared, at):
    """In the first process as well as in the others, which then serve on."""
    net, batches = shared
    with pytest.raises(RuntimeError, match="not enough memory") as raised:
        batches("", N, SIZE, Task("model", net, shared_tasks.breaks, None, {"at": at}))
    assert is_out_of_memory(raised.value)
    found = batches("", N, SIZE, Task("model", net, shared_tasks.breaks, None, {"at": -1}))
    assert torch.equal(found["rows"], torch.arange(N))


def test_what_several_have_finished_another_number_of_processes_continues(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "KEPT_SECONDS", -1.0)
    net, batches = shared

    def leaves(start):
        if start >= COUNT * SIZE:
            raise KeyboardInterrupt

    task = Task("model", net, shared_tasks.scaled, None, {"by": 1.0}, leaves)
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path, batches)("key", N, SIZE, task)
    seen = []
    task = Task("model", net, shared_tasks.scaled, None, {"by": 1.0}, seen.append)
    found = Parts(tmp_path)("key", N, SIZE, task)
    assert seen[0] == COUNT * SIZE
    for name, values in in_batches("", N, SIZE, task).items():
        assert torch.equal(found[name], values)


def test_loops_that_cannot_be_sent_are_the_first_process_s_own(shared):
    found = shared[1]("", N, SIZE, lambda start, end: {"rows": torch.arange(start, end)})
    assert torch.equal(found["rows"], torch.arange(N))
