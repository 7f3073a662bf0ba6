"""What happens in a run, and who is told."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.trials.schedule import PlannedTrial

START, TRAIN, THROUGHPUT = "start", "train", "throughput"
"""Phases of a trial: until its first report, its training, and its timing, after all trials have ended."""


@dataclass(frozen=True)
class Begun:
    """A trial's process was started."""

    planned: PlannedTrial


@dataclass(frozen=True)
class Reported:
    """A trial told that `done` of `total` steps of a phase are through (images, outside of training).

    `seen` is what it observed since the last report, by the names of the record's curves: means over the steps.
    """

    planned: PlannedTrial
    phase: str
    done: int
    total: int
    seen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A trial's process has ended; its record says how, unless the trial is to be started `again`."""

    planned: PlannedTrial
    again: bool = False


@dataclass(frozen=True)
class Said:
    """Something was said that people should read."""

    text: str


Event = Begun | Reported | Ended | Said


class Watcher(Protocol):
    """Is told what happens in a run."""

    def tell(self, event: Event) -> None:
        """Take note of it, at once: trials wait meanwhile."""
        ...

    def close(self, hurry: bool) -> None:
        """The run is over; it was asked to leave where there is a `hurry`."""
        ...


class Plain:
    """A watcher that prints what people should read on stderr, and nothing else."""

    def tell(self, event: Event) -> None:
        """See `Watcher`."""
        if isinstance(event, Said):
            print(event.text, file=sys.stderr, flush=True)

    def close(self, hurry: bool) -> None:
        """See `Watcher`."""


class Watchers:
    """Tells all watchers, one event at a time: trials are read in threads of their own."""

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self.watchers, self.lock = tuple(watchers), threading.Lock()

    def close(self, hurry: bool = False) -> None:
        """Tell all watchers that the run is over."""
        for watcher in self.watchers:
            with contextlib.suppress(OSError):
                watcher.close(hurry)

    def tell(self, event: Event) -> None:
        """Tell all watchers of an event."""
        with self.lock:
            for watcher in self.watchers:
                with contextlib.suppress(OSError):  # a terminal that has gone
                    watcher.tell(event)

    def say(self, text: str) -> None:
        """Tell all watchers what people should read."""
        self.tell(Said(text))
