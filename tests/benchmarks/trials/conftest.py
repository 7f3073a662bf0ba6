"""Trials under test hear every signal."""

import signal

import pytest

from benchmarks.base.signals import STOPPING
from benchmarks.records.catalogue import measurement


@pytest.fixture(autouse=True)
def heard():
    """Children hear signals that this process was told to ignore, as `nohup` and a shell's background jobs are.

    Handlers that a trial in this process takes are given back.
    """
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def untimed(monkeypatch):
    """Finished trials of runs in this process are not timed, which takes a process each."""
    timed = [measurement("train_throughput", 1.0, n=1)]
    monkeypatch.setattr("benchmarks.trials.processes.throughput_of", lambda folder, flags: timed)
