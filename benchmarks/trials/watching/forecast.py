"""How long trials and their run will take from now on: evaluation and throughput counted, waiting trials included.

A trial's phases are expected to take their passes (`workload`) at its own speed and the seconds below, and that times
what the phase took of other trials in proportion: those of its row, else of its model, else all (the median, the
lower of two, so that one that was held up is let pass). The speed of a trial is that of the later half of its training
so far; before that, its row's in other trials, else what was measured of its steps before the run times what others
take in proportion, else by multiply-accumulates. The run is its trials on its workers, in the order in which they
start, and then a measurement of throughput after the other, each with a start of its own.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.trials.watching.events import START, THROUGHPUT, TRAIN
from benchmarks.trials.watching.workload import FEATURES, PICTURES, REFITTED, Workload

SECONDS = {START: 6.0, FEATURES: 6.0, REFITTED: 4.0, PICTURES: 2.0, THROUGHPUT: 8.0}
"""What phases take besides their passes: imports and data, features, pictures, four verbs timed; on a server's core."""
MARKS = 200
"""Of a phase, at most, from which its speed is read."""
HALT = 3.0
"""A stretch of a training that is so many times as slow as the median says nothing of its speed."""
SURE_SECONDS, SURE_SHARE = 3.0, 0.1
"""From so long, or from such a share of a phase on, its own speed is believed."""


def _pace(stretches: Sequence[tuple[float, float]]) -> float | None:
    """Seconds of a pass from stretches of (seconds, passes); None without any.

    One that was more than `HALT` times as slow as the median is taken for so slow: the machine stood still.
    """
    if not stretches:
        return None
    most = HALT * statistics.median(seconds / passes for seconds, passes in stretches)
    total = sum(min(seconds, most * passes) for seconds, passes in stretches)
    return total / sum(passes for _, passes in stretches)


@dataclass
class Course:
    """A trial that runs: its phase, when that began, how far it is, and what earlier ones took in seconds.

    `marks` are times and steps of the phase's reports, thinned; what was done before the first took nothing here.
    """

    phase: str
    since: float
    done: int = 0
    total: int = 0
    marks: list[tuple[float, int]] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)
    pass_seconds: float | None = None

    def enter(self, phase: str, now: float) -> None:
        """Go on to another phase."""
        self.took[self.phase] = self.took.get(self.phase, 0.0) + now - self.since
        self.phase, self.since, self.done, self.total, self.marks = phase, now, 0, 0, []

    def report(self, done: int, total: int, now: float) -> None:
        """Be so far in the phase."""
        if done < self.done:  # back at a good state
            self.marks = []
        if not self.marks or done - self.marks[-1][1] >= total / MARKS:
            self.marks.append((now, done))
        self.done, self.total = done, total

    def recent(self, now: float) -> list[tuple[float, int]]:
        """The marks of the later half of the phase's steps so far, for neighbours come and go; the last is of now."""
        half = (self.marks[0][1] + self.done) / 2
        first = max(mark for mark in self.marks if mark[1] <= half)
        later = [mark for mark in self.marks if mark > first and mark[1] < self.done]
        return [first, *later, (now, self.done)]


class Forecast:
    """Seconds that are left of trials and of their run, from events and a clock."""

    def __init__(
        self,
        work: Mapping[str, Workload],
        jobs: int,
        clock: Callable[[], float],
        step_seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.work, self.jobs, self.clock = dict(work), jobs, clock
        self.step_seconds = dict(step_seconds or {})
        self.waiting = {name: None for name, one in work.items() if one.runs}  # in the order of their start
        self.running = dict[str, Course]()
        self.finished = dict[str, Course]()
        self.untimed = {name for name, one in work.items() if one.timed}
        self.timing: tuple[str, float] | None = None
        self.timed = list[float]()

    def begun(self, name: str) -> None:
        """A trial's process was started."""
        self.waiting.pop(name, None)
        self.finished.pop(name, None)  # one that was killed
        self.running[name] = Course(START, self.clock())

    def reported(self, name: str, phase: str, done: int, total: int) -> None:
        """A trial is so far in a phase."""
        now = self.clock()
        if phase == THROUGHPUT:
            self._timed(name, done >= total, now)
            return
        course = self.running.get(name)
        if course is None:
            return
        if phase != course.phase:
            course.enter(phase, now)
        course.report(done, total, now)
        if phase == TRAIN:
            course.pass_seconds = self._pass_seconds(self.work[name], course, now) or course.pass_seconds

    def ended(self, name: str, again: bool = False) -> None:
        """A trial's process has ended; it waits where it is to be started `again`."""
        course = self.running.pop(name, None)
        if again:
            self.waiting[name] = None
        elif course is not None:
            course.enter("", self.clock())
            self.finished[name] = course

    def trial_left(self, name: str) -> float | None:
        """Seconds until a trial ends, once it runs; None where nothing is known of its speed."""
        course, work = self.running.get(name), self.work[name]
        each = self._speed(name)
        if each is None and (work.steps or work.evaluation):
            return None
        left = 0.0
        for phase in self._phases(work):
            if course is not None and phase in course.took:
                continue
            expected = self._expected(work, phase, each or 0.0)
            current = course is not None and phase == course.phase
            left += self._left(course, expected, work) if course is not None and current else expected
        return left

    def run_left(self) -> float | None:
        """Seconds until the run's last trial is timed; None where nothing is known yet."""
        running = [self.trial_left(name) for name in self.running]
        waiting = [self.trial_left(name) for name in self.waiting]
        if None in running or None in waiting:
            return None
        workers = sorted(one for one in running if one is not None)
        workers = [0.0] * (self.jobs - len(workers)) + workers
        for seconds in waiting:
            heapq.heappush(workers, heapq.heappop(workers) + (seconds or 0.0))
        return max(workers) + self._timing_left()

    def _timed(self, name: str, over: bool, now: float) -> None:
        if not over:
            self.timing = name, now
        elif self.timing is not None:
            self.timed.append(now - self.timing[1])
            self.timing = None
            self.untimed.discard(name)

    def _timing_left(self) -> float:
        start = self._proportion(START, self._courses())
        each = statistics.median(self.timed) if self.timed else start * SECONDS[START] + SECONDS[THROUGHPUT]
        spent = 0.0 if self.timing is None else min(each, self.clock() - self.timing[1])
        return len(self.untimed) * each - spent

    @staticmethod
    def _phases(work: Workload) -> Iterable[str]:
        return (START, *((TRAIN,) if work.steps != 0 else ()), *work.evaluation)

    def _pass_seconds(self, work: Workload, course: Course, now: float) -> float | None:
        """Seconds of a pass in the training so far, where that is long enough."""
        begun, first = course.marks[0]
        if now - begun < SURE_SECONDS and course.done - first < SURE_SHARE * course.total:
            return None
        marks = course.recent(now)
        passes = [work.training(step, step / course.total) for _, step in marks]
        seconds = [after[0] - before[0] for before, after in pairwise(marks)]
        counts = [after - before for before, after in pairwise(passes)]
        return _pace([one for one in zip(seconds, counts, strict=True) if one[1] > 0])

    def _speed(self, name: str) -> float | None:
        """Seconds of a pass of a trial."""
        course = self.running.get(name)
        if course is not None and course.pass_seconds is not None:
            return course.pass_seconds
        work, known = self.work[name], self._known()
        same = [seconds for other, seconds in known.items() if self.work[other].row == work.row]
        if same:
            return statistics.fmean(same)
        if work.row in self.step_seconds:
            ratios = [seconds / one for other, seconds in known.items() if (one := self._measured(other)) is not None]
            return (self._measured(name) or 0.0) * (statistics.median(ratios) if ratios else 1.0)
        each = [seconds / self.work[other].macs for other, seconds in known.items()]
        return work.macs * statistics.fmean(each) if each else None

    def _courses(self) -> dict[str, Course]:
        return {**self.finished, **self.running}

    def _known(self) -> dict[str, float]:
        """Seconds of a pass by trial, where it has trained for long enough."""
        return {name: one.pass_seconds for name, one in self._courses().items() if one.pass_seconds is not None}

    def _measured(self, name: str) -> float | None:
        """Seconds of a pass as they were measured before the run."""
        work = self.work[name]
        seconds = self.step_seconds.get(work.row)
        return None if seconds is None else seconds / work.step

    def _rule(self, work: Workload, phase: str, each: float) -> float:
        """Seconds of a phase, of passes of so many seconds each."""
        if phase == TRAIN:
            return work.budget or work.training(work.steps or 0, 1.0) * each
        return work.evaluation.get(phase, 0.0) * each + SECONDS.get(phase, 0.0)

    def _expected(self, work: Workload, phase: str, each: float) -> float:
        """Seconds of a whole phase."""
        rule = self._rule(work, phase, each)
        return rule if phase == TRAIN else rule * self._proportion(phase, self._alike(work, phase))

    def _proportion(self, phase: str, names: Iterable[str]) -> float:
        """What a phase took of trials that are through with it, by what the rule says; 1 where none is."""
        found = []
        for name in names:
            course = self._courses()[name]
            rule = self._rule(self.work[name], phase, course.pass_seconds or 0.0)
            if phase in course.took and rule:
                found.append(course.took[phase] / rule)
        return statistics.median_low(found) if found else 1.0

    def _alike(self, work: Workload, phase: str) -> list[str]:
        """Trials that are through with a phase: of the row, else of the model, else all."""
        through = [name for name, one in self._courses().items() if phase in one.took]
        for same in (lambda one: one.row == work.row, lambda one: one.model == work.model):
            if found := [name for name in through if same(self.work[name])]:
                return found
        return through

    def _left(self, course: Course, expected: float, work: Workload) -> float:
        """Seconds left of the phase a trial is in."""
        now = self.clock()
        share = course.done / course.total if course.total else 0.0
        if course.phase == TRAIN:
            if work.budget:
                return work.budget * (1 - share)
            total = work.training(course.total, 1.0)
            return expected * (1 - work.training(course.done, share) / total) if course.total else expected
        if share > SURE_SHARE:
            return (now - course.since) * (1 - share) / share
        return max(0.0, expected - (now - course.since))
