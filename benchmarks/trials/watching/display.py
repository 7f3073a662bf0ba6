"""How far a run is, on stderr: bars on a terminal, elsewhere a line a minute, or JSON line by line."""

from __future__ import annotations

import datetime
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 60.0
JSON_SECONDS = 5.0
"""Between two lines, and between two JSON objects of one phase of a trial."""
LINE = "{desc} {percentage:3.0f}%|{bar}| "


@dataclass(frozen=True)
class State:
    """What is shown of a trial, or of the run: `step` of `steps` of its phase, trials where it is the run."""

    trial: str | None
    phase: str
    step: int
    steps: int
    loss: float | None = None
    unit: str | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None

    def text(self) -> str:
        """As people read it: "train 340/750, 98.31 nats/image, 812 images/s, 0:42 left"."""
        parts = [f"{self.phase} {self.step:,}/{self.steps:,}" if self.steps else self.phase]
        parts += [] if self.loss is None else [f"{self.loss:.4g} {self.unit}"]
        parts += [] if self.images_per_second is None else [f"{self.images_per_second:,.0f} images/s"]
        parts += [] if self.seconds_left is None else [f"{tqdm.format_interval(self.seconds_left)} left"]
        return ", ".join(parts)


class View:
    """Where states are shown."""

    def show(self, trial: State, run: State, share: Callable[[State], float]) -> None:
        """Show a trial that has moved, and the run; `share` says how much of either is done."""

    def end(self, trial: State) -> None:
        """A trial has ended: its phase says how."""

    def say(self, text: str) -> None:
        """Show a line for people."""

    def close(self) -> None:
        """Nothing more is shown."""


class Bars(View):
    """A bar for the run and one for each trial that is at work."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self.title, self.stream = title, stream
        self.bars = dict[str | None, tqdm]()

    def show(self, trial: State, run: State, share: Callable[[State], float]) -> None:
        """Draw both bars."""
        for state in (run, trial):
            bar = self.bars.get(state.trial)
            if bar is None:
                name = state.trial or self.title
                settings = {"dynamic_ncols": True, "leave": False, "bar_format": LINE, "file": self.stream}
                bar = self.bars[state.trial] = tqdm(desc=name, total=1.0, **settings)
            bar.n = min(1.0, share(state))
            bar.bar_format = LINE + state.text()  # behind tqdm's own postfix would be a comma
            bar.refresh()

    def end(self, trial: State) -> None:
        """Take the trial's bar away."""
        bar = self.bars.pop(trial.trial, None)
        if bar is not None:
            bar.close()

    def say(self, text: str) -> None:
        """Write above the bars."""
        tqdm.write(text, file=self.stream)

    def close(self) -> None:
        """Take all bars away."""
        for bar in self.bars.values():
            bar.close()


class Lines(View):
    """A line a minute on the run and the trials at work, where there is no terminal."""

    def __init__(self, title: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self.title, self.stream, self.clock = title, stream, clock
        self.trials = dict[str | None, State]()
        self.last = -math.inf

    def show(self, trial: State, run: State, share: Callable[[State], float]) -> None:
        """Print the line if a minute has passed."""
        self.trials[trial.trial] = trial
        if trial.steps and self.clock() - self.last >= LINE_SECONDS:
            self.last = self.clock()
            line = [f"{self.title}: {run.text()}", *(f"{one.trial}: {one.text()}" for one in self.trials.values())]
            print("; ".join(line), file=self.stream, flush=True)

    def end(self, trial: State) -> None:
        """Leave the trial out of the lines to come."""
        self.trials.pop(trial.trial, None)

    def say(self, text: str) -> None:
        """Print it."""
        print(text, file=self.stream, flush=True)


def json_line(event: str, **fields: Any) -> str:
    """An event as a JSON object on a line, with the time of day."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}
    return json.dumps({"event": event, "time": now, **rounded})


class JsonLines(View):
    """A JSON object a line: of the run, of trials, and of what is said."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self.stream, self.clock = stream, clock
        self.last = dict[str | None, tuple[str, float]]()

    def show(self, trial: State, run: State, share: Callable[[State], float]) -> None:
        """Print both, each at a new phase or after some seconds."""
        for state in (trial, run):
            phase, last = self.last.get(state.trial, ("", -math.inf))
            if phase != state.phase or self.clock() - last >= JSON_SECONDS or state.step == state.steps:
                self.last[state.trial] = state.phase, self.clock()
                self._print("progress", **asdict(state))

    def end(self, trial: State) -> None:
        """Print how a trial has ended."""
        self._print("ended", **asdict(trial))

    def say(self, text: str) -> None:
        """Print it as an object."""
        self._print("said", text=text)

    def _print(self, event: str, **fields: Any) -> None:
        print(json_line(event, **fields), file=self.stream, flush=True)


class SaidLines(io.TextIOBase):
    """A stream that passes lines on to another as JSON objects: what is printed for people beside the progress."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun = stream, ""

    def write(self, text: str) -> int:
        """Pass on the lines that are whole."""
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            print(json_line("said", text=line), file=self.stream, flush=True)
        return len(text)
