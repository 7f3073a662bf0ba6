"""The process of one trial, seen from the run that started it."""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
import subprocess
import sys
import threading
from typing import Any

from benchmarks.base import children
from benchmarks.trials.claims import Claim
from benchmarks.trials.progress import Bars
from benchmarks.trials.schedule import PlannedTrial

LOG = "log.txt"
WITH_PARENT = "--with-parent"
"""Flag of a trial that ends with its parent."""
GALLERY_ALONE = "--gallery"
"""Flag of a trial that is through but for the pictures for the page."""


class Child:
    """A trial's process: its progress goes to a bar, its messages to the trial's log; it ends with this process."""

    def __init__(self, planned: PlannedTrial, flags: list[str], bars: Bars, claim: Claim) -> None:
        self.planned, self.claim = planned, claim
        command = [sys.executable, "-m", "benchmarks", "trial", str(planned.folder), *flags]
        self.log = (planned.folder / LOG).open("a")  # what an earlier start said stays
        self.log.write(f"# {datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')} {shlex.join(command)}\n")
        self.log.flush()
        self.start = self.log.tell()
        self.process = subprocess.Popen(
            [*command, WITH_PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            errors="replace",
            env=children.environment(planned.trial.threads),
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(bars,), daemon=True)
        self.reader.start()

    def _read(self, bars: Bars) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line of a killed child, or a plugin's
                self._show(json.loads(line), bars)

    def _show(self, event: dict[str, Any], bars: Bars) -> None:
        if "said" in event:
            bars.say(f"{self.planned.name}: {event['said']}")
        else:
            bars.update(self.planned.name, event["phase"], event["done"], event["total"])

    def ask_to_leave(self) -> None:
        """Ask the process to save its state and to end, also where it has not got as far as to hear signals."""
        self.process.terminate()
        self._close_input()

    def _close_input(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def finish(self) -> int:
        """Wait for the reader, close log and pipes; returns the exit code."""
        self.reader.join(timeout=5)
        self.log.close()
        self._close_input()
        return self.process.wait()

    def last_words(self, code: int) -> str:
        """The last line that this start of the trial wrote to its log; its exit code where it wrote nothing."""
        said = (self.planned.folder / LOG).read_bytes()[self.start :].decode(errors="replace")
        return children.last_words(said, code)
