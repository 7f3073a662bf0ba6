"""Trials under test hear every signal."""

import signal

import pytest


@pytest.fixture(autouse=True)
def heard():
    """Children hear signals that this process was told to ignore, as `nohup` and a shell's background jobs are."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
