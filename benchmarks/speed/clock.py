"""Times calls in turns, and watches what else the machine does meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.machine.environment import load_average
from benchmarks.machine.process import frozen_garbage

Call = Callable[[], object]
Enough = Callable[[int, float, float], bool]
"""Whether so many rounds in so many seconds will do, where so many seconds were asked for."""

WARMUP_CALLS, WARMUP_SECONDS, LEAST_WARMUP = 3, 1.0, 2
MIN_ROUNDS, MAX_ROUNDS = 8, 200
"""Rounds of a measurement; the least is even, so that every call comes first as often as the others."""
LONG_SECONDS, LONG_ROUNDS = 40.0, 4
"""Where so much time has passed, so few rounds are enough, and one warm-up call that took a good part of it."""
TURN_SECONDS, MOST_REPEATS = 0.2, 100
"""A turn repeats a short call until about so much time has passed, after one more that is not timed: the other side's
turn left the caches cold and the threads asleep."""
PROCESSOR_TIMES = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""Of the first line of /proc/stat: user, nice, system, irq, softirq, steal (guests are in user)."""


def synchronise(device: torch.device) -> Call:
    """What waits until all work on `device` is done."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def warm_up(call: Call, clock: Callable[[], float] = time.perf_counter) -> int:
    """How often it called until caches are warm: 2 times, once more unless a second has passed, once if it is long."""
    started = clock()
    for done in range(1, WARMUP_CALLS + 1):
        call()
        passed = clock() - started
        if (done >= LEAST_WARMUP and passed > WARMUP_SECONDS) or passed > LONG_SECONDS / 10:
            return done
    return WARMUP_CALLS


@dataclass
class Times:
    """Seconds of one call, round by round: on the wall's clock, and of all the process's threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Elsewhere(Protocol):
    """A call that another process times, and has warmed up."""

    def seconds(self) -> tuple[float, float]:
        """Seconds of one call, averaged over a turn: on the wall's clock, and of all that process's threads."""
        ...


@dataclass
class Turns:
    """A call that takes turns with others, with the device drained inside the timed part."""

    call: Call
    drain: Call = lambda: None
    clock: Callable[[], float] = time.perf_counter
    cpu_clock: Callable[[], float] = time.process_time
    turn: float = TURN_SECONDS
    repeats: int = 1

    def __post_init__(self) -> None:
        """Warm the call up, and find out how often a turn of `turn` seconds repeats it."""
        started, calls = self.clock(), warm_up(self.call, self.clock)
        self.drain()
        wall = (self.clock() - started) / calls
        if wall < self.turn / 2:
            self.repeats = min(MOST_REPEATS, math.ceil(self.turn / max(wall, 1e-9)))

    def seconds(self) -> tuple[float, float]:
        """Seconds of one call, averaged over a turn: on the wall's clock, and of all the process's threads."""
        if self.repeats > 1:
            self.call()
            self.drain()
        start, cpu_start = self.clock(), self.cpu_clock()
        for _ in range(self.repeats):
            self.call()
        self.drain()
        return (self.clock() - start) / self.repeats, (self.cpu_clock() - cpu_start) / self.repeats


def usual_rounds(rounds: int, passed: float, wanted: float) -> bool:
    """Whether so many rounds in so many seconds will do, where `wanted` seconds were asked for."""
    if rounds < MIN_ROUNDS:
        return rounds >= LONG_ROUNDS and passed > max(LONG_SECONDS, wanted)
    return passed >= wanted or rounds >= MAX_ROUNDS


def interleave(
    calls: Mapping[str, Call | Elsewhere],
    seconds: float,
    drain: Call = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    enough: Enough = usual_rounds,
) -> dict[str, Times]:
    """Times of each call by name, round by round, every other round in reverse order: A B, B A, A B ...

    Rounds go on until all turns together took `seconds` for each call. `drain` waits for the device; `enough`
    says when there have been rounds enough.
    """
    turn = TURN_SECONDS if len(calls) > 1 else 0.0
    turns = {
        name: Turns(call, drain, clock, cpu_clock, turn) if callable(call) else call for name, call in calls.items()
    }
    times = {name: Times() for name in calls}
    order, rounds, started = list(calls), 0, clock()
    with frozen_garbage():
        while not enough(rounds, clock() - started, seconds * len(calls)):
            for name in order:
                wall, cpu = turns[name].seconds()
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
            order.reverse()
            rounds += 1
    return times


@dataclass(frozen=True)
class Disturbance:
    """What else ran during a measurement.

    Load averages of the last minute before and after, and the share of all the machine's cores that processes other
    than this one and its children used (with time stolen by a hypervisor); None where the system does not say.
    """

    load: float | None
    load_after: float | None
    other_cpu: float | None


class Watch:
    """Measures a `Disturbance` from its making to `stop`."""

    def __init__(self, workers: Sequence[int] = ()) -> None:
        """`workers`: ids of running processes that belong to the measurement."""
        self.load, self.workers = load_average(), workers
        self.started = (time.perf_counter(), busy_seconds(), own_seconds(workers))

    def stop(self) -> Disturbance:
        """What happened since."""
        wall, busy, own = self.started
        now = busy_seconds()
        other = None
        if busy is not None and now is not None:
            elapsed = (time.perf_counter() - wall) * (os.cpu_count() or 1)
            other = min(1.0, max(0.0, (now - busy) - (own_seconds(self.workers) - own)) / elapsed)
        return Disturbance(self.load, load_average(), other)


def own_seconds(workers: Sequence[int] = ()) -> float:
    """CPU seconds of this process, of its children that have ended, and of running `workers`."""
    return sum(os.times()[:4]) + sum(seconds_of(worker) for worker in workers)


def seconds_of(process: int) -> float:
    """CPU seconds of a running process; 0 where /proc does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float | None:
    """CPU seconds that all cores have worked since the start, or None where /proc/stat does not say."""
    try:
        name, *fields = PROCESSOR_TIMES.read_text().split("\n", 1)[0].split()
        ticks = sum(int(fields[index]) for index in BUSY_FIELDS)
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if name == "cpu" else None
