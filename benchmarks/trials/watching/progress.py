"""The progress of a run: what its trials tell becomes states, with speed and time left, that a view shows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from benchmarks.base.errors import UserError
from benchmarks.training.loop import LOSS
from benchmarks.trials.schedule import Plan, PlannedTrial
from benchmarks.trials.watching.display import Bars, JsonLines, Lines, State, View
from benchmarks.trials.watching.events import START, THROUGHPUT, TRAIN, Begun, Ended, Event, Reported, Said
from benchmarks.trials.watching.forecast import Forecast
from benchmarks.trials.watching.workload import step_seconds, workloads

RECENT = 20
"""Reports over which images/s is taken; a trial makes two a second."""
RUN = "trials"
"""Phase of the run as a whole, which counts trials."""
AGAIN = "starts again"
"""How a process has ended whose trial goes on in another one."""


def progress(plan: Plan, jobs: int, log: str, stream: TextIO) -> Progress:
    """The progress of a plan on `stream`; `log` is "text" or "json"."""
    forecast = Forecast(workloads(plan), jobs, time.monotonic, step_seconds(plan, jobs))
    if log == "json":
        view: View = JsonLines(stream, time.monotonic)
    elif stream.isatty():
        view = Bars(plan.suite.name, stream)
    else:
        view = Lines(plan.suite.name, stream, time.monotonic)
    return Progress(forecast, view, plan.data.image.dims, time.monotonic)


class Progress:
    """A watcher that shows how far the trials and their run are.

    Args:
        forecast: of the run's trials.
        view: where states are shown.
        dims: pixel values of an image, for bits/dim.
        clock: seconds.
    """

    def __init__(self, forecast: Forecast, view: View, dims: int, clock: Callable[[], float]) -> None:
        self.forecast, self.view, self.dims, self.clock = forecast, view, dims, clock
        self.begun = dict[str | None, float]({None: clock()})
        self.reports = dict[str, deque[tuple[float, Reported]]]()
        self.loss = dict[str, float]()
        self.ended, self.trials = set[str](), len(forecast.waiting)

    def tell(self, event: Event) -> None:
        """Show what has changed."""
        match event:
            case Said(text):
                self.view.say(text)
            case Begun(planned):
                self.begun[planned.name] = self.clock()
                self.ended.discard(planned.name)
                self.forecast.begun(planned.name)
                self._show(planned, START, 0, 0)
            case Reported(planned, phase, done, total, seen):
                self.forecast.reported(planned.name, phase, done, total)
                self._note(event)
                self.loss.update({planned.name: seen[LOSS]} if LOSS in seen else {})
                self._show(planned, phase, done, total)
                if phase == THROUGHPUT and done == total:
                    self.view.end(State(planned.name, THROUGHPUT, done, total))
            case Ended(planned, again):
                self.forecast.ended(planned.name, again)
                if not again:
                    self.ended.add(planned.name)
                self.view.end(State(planned.name, AGAIN if again else _status(planned), 0, 0))

    def close(self, hurry: bool) -> None:
        """Nothing more is shown."""
        self.view.close()

    def _note(self, report: Reported) -> None:
        """Keep the report among the recent ones of its phase."""
        recent = self.reports.setdefault(report.planned.name, deque(maxlen=RECENT))
        if recent and (recent[-1][1].phase != report.phase or recent[-1][1].done > report.done):
            recent.clear()
        recent.append((self.clock(), report))

    def _show(self, planned: PlannedTrial, phase: str, done: int, total: int) -> None:
        left = self.forecast.trial_left(planned.name) if phase != THROUGHPUT else None
        loss, unit = self._loss(planned) if phase == TRAIN else (None, None)
        trial = State(planned.name, phase, done, total, loss, unit, self._images_per_second(planned), left)
        run = State(None, RUN, len(self.ended), self.trials, seconds_left=self.forecast.run_left())
        self.view.show(trial, run, self._share)

    def _share(self, state: State) -> float:
        """How much of the time of a trial, or of the run, is over."""
        if state.seconds_left is None:
            return 0.0
        spent = self.clock() - self.begun.get(state.trial, self.clock())
        return spent / max(spent + state.seconds_left, 1e-9)

    def _loss(self, planned: PlannedTrial) -> tuple[float | None, str | None]:
        """The latest loss and its unit: bits/dim where the likelihood is over integer levels."""
        nats = self.loss.get(planned.name)
        if nats is None:
            return None, None
        if planned.trial.likelihood_spec.over_levels:
            return nats / (self.dims * math.log(2)), "bits/dim"
        return nats, "nats/image"

    def _images_per_second(self, planned: PlannedTrial) -> float | None:
        recent = self.reports.get(planned.name, ())
        if len(recent) < 2 or recent[-1][1].phase == THROUGHPUT:
            return None
        (start, first), (end, last) = recent[0], recent[-1]
        images = (last.done - first.done) * (planned.trial.training.batch_size if last.phase == TRAIN else 1)
        return images / (end - start) if images and end > start else None


def _status(planned: PlannedTrial) -> str:
    """How a trial has ended, as its record says; one that failed has left a record."""
    try:
        record = planned.record
    except UserError:  # one that cannot be read
        return "failed"
    return "interrupted" if record is None else record.status
