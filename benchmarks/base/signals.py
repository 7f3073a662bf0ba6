"""Being asked to leave: the signals that do so, and a parent that has gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from benchmarks.base.errors import INTERRUPTED

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOPPING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
"""Ctrl-C, a scheduler's end, a terminal that closes, a scheduler's notices that the job is to go (USR1, USR2)."""
LEAVE_SECONDS = 6.0
"""From being asked to the end of a trial's process, whatever it is at."""
PARENT_SECONDS = 7.0
"""What a run waits for its trials' processes before it kills them."""


def on_stop(handler: Callable[[int, object], None]) -> None:
    """Call `handler` at every stopping signal; SIGHUP stays ignored where it is (nohup)."""
    for number in STOPPING:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def when_input_ends(call: Callable[[], None]) -> None:
    """Call it, in a thread, when standard input ends: a parent holds its other end for as long as it lives."""

    def wait() -> None:
        while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 1):
            pass
        call()

    threading.Thread(target=wait, daemon=True).start()


class StopSignal:
    """Turns true when this process is asked to leave, so that work stops at the next step and is saved.

    Some seconds later the process ends, whatever it is at: files are whole or absent.
    """

    def __init__(self, *, end: Callable[[int], None] = os._exit) -> None:
        self.raised, self.end = False, end
        on_stop(lambda number, frame: self.ask())

    def ask(self) -> None:
        """Ask the process to leave."""
        if not self.raised:
            self.raised = True
            timer = threading.Timer(LEAVE_SECONDS, self.end, (INTERRUPTED,))
            timer.daemon = True
            timer.start()

    def with_parent(self) -> None:
        """Be asked as well when standard input ends, and with it the parent."""
        when_input_ends(self.ask)

    def __call__(self) -> bool:
        """Whether the process was asked to leave."""
        return self.raised
