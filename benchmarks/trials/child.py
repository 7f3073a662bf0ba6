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
from benchmarks.trials.schedule import PlannedTrial
from benchmarks.trials.watching.events import Begun, Event, Reported, Said, Watchers

LOG = "log.txt"
WITH_PARENT = "--with-parent"
"""Flag of a trial that ends with its parent."""
GALLERY_ALONE = "--gallery"
"""Flag of a trial that is through but for the pictures for the page."""


class Child:
    """A trial's process: what it reports goes to watchers, its messages to its log; it ends with this process."""

    def __init__(self, planned: PlannedTrial, flags: list[str], watchers: Watchers, claim: Claim) -> None:
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
        watchers.tell(Begun(planned))
        self.reader = threading.Thread(target=self._read, args=(watchers,), daemon=True)
        self.reader.start()

    def _read(self, watchers: Watchers) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = self._event(json.loads(line))
            except (ValueError, KeyError, TypeError):  # half a line of a killed child, or a plugin's
                continue
            watchers.tell(event)

    def _event(self, told: dict[str, Any]) -> Event:
        if "said" in told:
            return Said(f"{self.planned.name}: {told['said']}")
        self.claim.reached(told["phase"], told["done"], told["total"])
        return Reported(self.planned, told["phase"], told["done"], told["total"], told.get("seen", {}))

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
