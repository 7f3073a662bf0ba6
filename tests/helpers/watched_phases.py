"""The phases of a trial, watched from outside its process, which ends at a chosen moment within one of them."""

from __future__ import annotations

import functools
import importlib
import mmap
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ELSEWHERE = "between"
"""What no function of `PHASES` does: reading data, building the model, averaging weights, what lies between phases."""
PHASES = {
    "step": ("benchmarks.training.loop.train_step",),
    "checkpoint": ("benchmarks.training.loop.save_state", "benchmarks.training.loop.save_good"),
    "validation": ("benchmarks.training.loop.validate",),
    "weights": ("benchmarks.trials.trial.save_weights",),
    "likelihood": ("benchmarks.evaluation.evaluate.test_bounds",),
    "reconstruction": ("benchmarks.evaluation.evaluate.reconstruct",),
    "samples": ("benchmarks.evaluation.evaluate.draw_samples",),
    "metrics": ("benchmarks.evaluation.evaluate.quality_metrics",),
    "finished part": ("benchmarks.storage.parts.Parts._keep",),
    "record": ("benchmarks.trials.trial.save_record", "benchmarks.trials.processes.save_record"),
    "images": ("benchmarks.trials.trial._save_arrays",),
    "tidying": ("benchmarks.trials.trial.tidy",),
    "throughput": ("benchmarks.trials.processes.throughput_of",),
    "report": ("benchmarks.report.page.build_report",),
}
"""The functions that are at work in each, under the names by which they are called; of nested ones the inner counts."""
NAMES = (ELSEWHERE, *PHASES)


@dataclass(frozen=True)
class Moment:
    """So many seconds after the `entry`-th time, counted from 1, that a process has come into a phase."""

    phase: str
    entry: int
    seconds: float


class Watch:
    """What the phases of a fork are and were, in memory that it shares with this process."""

    def __init__(self) -> None:
        self.numbers = memoryview(mmap.mmap(-1, 8 * (1 + 2 * len(NAMES)))).cast("d")
        self.moment: Moment | None = None

    def reset(self, moment: Moment | None) -> None:
        """Forget the last fork; the next one ends at `moment`."""
        self.moment = moment
        for index in range(len(self.numbers)):
            self.numbers[index] = 0

    @property
    def current(self) -> str:
        """The phase that the fork is in, or was in when it ended."""
        return NAMES[int(self.numbers[0])]

    def entries(self, phase: str) -> int:
        """How often the fork has come into a phase."""
        return int(self.numbers[1 + 2 * NAMES.index(phase)])

    def seconds(self, phase: str) -> float:
        """How long it was in the phase, on average of its entries."""
        return self.numbers[2 + 2 * NAMES.index(phase)] / max(1, self.entries(phase))

    def begin(self) -> None:
        """Watch this process, a fork, from here on."""
        for phase, names in PHASES.items():
            for name in names:
                where, attribute = _place(name)
                setattr(where, attribute, self._within(phase, getattr(where, attribute)))
        self._enter(ELSEWHERE)

    def _within(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*arguments: Any, **options: Any) -> Any:
            outer, start = self.numbers[0], time.perf_counter()
            self._enter(phase)
            try:
                return call(*arguments, **options)
            finally:
                self.numbers[0] = outer
                self.numbers[2 + 2 * NAMES.index(phase)] += time.perf_counter() - start

        return watched

    def _enter(self, phase: str) -> None:
        """Note that a phase begins; where it is the chosen one, a timer is set whose signal ends the process."""
        index = NAMES.index(phase)
        self.numbers[0] = index
        self.numbers[1 + 2 * index] += 1
        one = self.moment
        if one is not None and (one.phase, one.entry) == (phase, self.entries(phase)):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, one.seconds))


def _place(name: str) -> tuple[Any, str]:
    """The module or class that holds a name, and what it is called there."""
    path, attribute = name.rsplit(".", 1)
    module, _, owner = path.rpartition(".")
    if owner[0].isupper():
        return getattr(importlib.import_module(module), owner), attribute
    return importlib.import_module(path), attribute
