"""Tracking of experiments: what trials report and record, handed to a tracker in a thread of its own.

Nothing is computed for it. Curves come from the reports of a training, or from its record where it was not tracked;
metrics and pictures from the record. `tracking.json` in the trial's folder says under which name and up to which step
it was tracked, so that a trial that is continued goes on there and no step comes twice. Where a tracker fails, that is
said once and the run goes on without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import queue
import secrets
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.errors import first_line, printable
from benchmarks.base.files import write_text_atomically
from benchmarks.records.catalogue import of_the_machine
from benchmarks.records.record import Measurement, RunRecord
from benchmarks.report.pictures.grids import pictures_of
from benchmarks.report.pictures.saved import load_images
from benchmarks.suites.config import to_dict
from benchmarks.training.loop import VALIDATION
from benchmarks.trials.schedule import Plan, PlannedTrial
from benchmarks.trials.watching.events import THROUGHPUT, TRAIN, Ended, Event, Reported
from benchmarks.trials.watching.trackers import Pictures, Tracked, Tracker

MEMO = "tracking.json"
NO_PICTURES: Pictures = MappingProxyType({})
POINTS = 200
"""Of a training's curves; validations come on top."""
CLOSING_SECONDS, HURRY_SECONDS = 60.0, 2.0
"""What a run waits for its trackers when everything else is done, and where it was asked to leave."""
_LOCK = threading.Lock()
"""Of the file that trackers share."""


@dataclass
class Memo:
    """What a tracker has of a trial: its name there, the last step, and hashes of the metrics by kind."""

    name: str
    step: int = 0
    logged: dict[str, str] = field(default_factory=dict)


@dataclass
class Followed:
    """A trial that is tracked, opened where there is anything to log, and sums of its reports since the last point."""

    memo: Memo
    new: bool
    tracked: Tracked | None = None
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    done: int = 0


class Tracking:
    """A watcher that hands events to a tracker's thread."""

    def __init__(self, tracker: Tracker, plan: Plan) -> None:
        self.tracker, self.plan = tracker, plan
        self.followed = dict[Path, Followed]()
        self.events = queue.SimpleQueue[Event | None]()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        for planned in plan.trials:
            if planned.work in ("rename", "nothing"):
                self.tell(Ended(planned))

    def tell(self, event: Event) -> None:
        """Put it into the queue, while somebody takes it from there."""
        if isinstance(event, Ended | Reported) and self.thread.is_alive():
            self.events.put(event)

    def close(self, hurry: bool) -> None:
        """Wait for what is still to be tracked, for a while."""
        seconds = HURRY_SECONDS if hurry else CLOSING_SECONDS
        self.events.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            _warn(f"{self.tracker.key} has not taken everything in {seconds:g} s; it is left at that")

    def _work(self) -> None:
        """Take events until the run is over or the tracker fails."""
        try:
            while (event := self.events.get()) is not None:
                self._take(event)
            for followed in self.followed.values():
                if followed.tracked is not None:
                    followed.tracked.finish()
        except BaseException as error:  # whatever a package raises: the run goes on
            _warn(f"{self.tracker.key}: tracking ends here, the run goes on: {printable(first_line(error))}")

    def _take(self, event: Event) -> None:
        match event:
            case Reported(planned, phase, done, total, seen) if phase == TRAIN:
                self._add(planned, done, total, seen)
            case Reported(planned, phase, done, total) if phase == THROUGHPUT and done == total:
                self._conclude(planned)
            case Ended(planned):
                self._conclude(planned)

    def _follow(self, planned: PlannedTrial) -> Followed:
        """The trial with its memo, a new one where it was not tracked before."""
        if planned.folder not in self.followed:
            memo = _read_memo(planned.folder, self.tracker.key)
            name = f"{planned.folder.name}-{secrets.token_hex(2)}"
            self.followed[planned.folder] = Followed(memo or Memo(name), new=memo is None)
        return self.followed[planned.folder]

    def _opened(self, planned: PlannedTrial) -> Tracked:
        """The trial with the tracker."""
        followed = self._follow(planned)
        if followed.tracked is None:
            config = to_dict(planned.trial) | {"parameters": planned.parameters, "macs": planned.macs_per_image}
            suite = self.plan.suite.name
            followed.tracked = self.tracker.open(followed.memo.name, suite, config, new=followed.new)
        return followed.tracked

    def _add(self, planned: PlannedTrial, done: int, total: int, seen: dict[str, float]) -> None:
        """Take a report of the training, and log a point where one is due."""
        followed = self._follow(planned)
        if done <= followed.memo.step:  # a killed trial repeats what came after its last state
            followed.done, followed.sums = done, {}
            return
        steps, followed.done = max(1, done - followed.done), done
        for name, value in seen.items():
            total_so_far, count = followed.sums.get(name, (0.0, 0))
            followed.sums[name] = total_so_far + value * steps, count + steps
        if done - followed.memo.step >= total / POINTS or done == total or VALIDATION in seen:
            values = {name: summed / count for name, (summed, count) in followed.sums.items()}
            values["images"] = float(done * planned.trial.training.batch_size)
            self._log(planned, done, values)
            followed.sums = {}

    def _conclude(self, planned: PlannedTrial) -> None:
        """Log what the record holds and the tracker has not: curves, metrics and pictures."""
        record = planned.record
        if record is None or not (record.status in ("done", "failed") or record.error):
            return  # it goes on
        followed, batch = self._follow(planned), planned.trial.training.batch_size
        for step, values in sorted(_points(record, batch).items()):
            if step > followed.memo.step:
                self._log(planned, step, values)
        machine = [one for one in record.measurements if of_the_machine(one.metric)]
        quality = [one for one in record.measurements if not of_the_machine(one.metric)]
        images = load_images(planned.folder)
        self._log_metrics(planned, "test", quality, {} if images is None else pictures_of(images))
        if record.get("train_throughput") is not None:
            self._log_metrics(planned, "machine", machine, {})

    def _log_metrics(self, planned: PlannedTrial, kind: str, found: Sequence[Measurement], pictures: Pictures) -> None:
        """Log metrics, if they are not what was logged before; others come a step later."""
        memo = self._follow(planned).memo
        values = {f"{kind}/{one.metric}": one.value for one in found if one.value is not None}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        if values and memo.logged.get(kind) != digest:
            step = memo.step + (kind in memo.logged)
            memo.logged[kind] = digest
            self._log(planned, step, values, pictures)

    def _log(
        self, planned: PlannedTrial, step: int, values: dict[str, float], pictures: Pictures = NO_PICTURES
    ) -> None:
        """Log values at a step; a point is rather lost than logged twice."""
        memo = self._follow(planned).memo
        memo.step = step
        self._write_memo(planned, memo)
        named = {_place(name): value for name, value in values.items() if math.isfinite(value)}
        self._opened(planned).log(named, pictures, step)

    def _write_memo(self, planned: PlannedTrial, memo: Memo) -> None:
        with _LOCK:
            memos = _memos(planned.folder) | {self.tracker.key: dataclasses.asdict(memo)}
            write_text_atomically(planned.folder / MEMO, json.dumps(memos, indent=1) + "\n")


def _place(name: str) -> str:
    """The name of a value with its group in front: "training/loss"."""
    if "/" in name:
        return name
    return f"validation/{name.removeprefix('validation ')}" if name.startswith("validation") else f"training/{name}"


def _points(record: RunRecord, batch: int) -> dict[int, dict[str, float]]:
    """Values of the record's curves by training step."""
    points: dict[int, dict[str, float]] = {}
    for curve in record.curves:
        for images, value in zip(curve.images, curve.values, strict=True):
            if value is not None:
                points.setdefault(round(images / batch), {"images": images})[curve.name] = value
    return points


def _memos(folder: Path) -> dict[str, Any]:
    """What trackers have of the trial; nothing where the file is missing or damaged."""
    try:
        found = read_json(folder / MEMO)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_memo(folder: Path, key: str) -> Memo | None:
    try:
        return Memo(**_memos(folder)[key])
    except (KeyError, TypeError):
        return None


def _warn(text: str) -> None:
    """A line on stderr, above bars."""
    tqdm.write(f"warning: {text}", file=sys.stderr)
