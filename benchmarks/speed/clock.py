"""Times calls in turns, and watches what else the machine does meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.environment import load_average
from benchmarks.process import frozen_garbage

Call = Callable[[], object]

WARMUP_CALLS, WARMUP_SECONDS, LEAST_WARMUP = 3, 1.0, 2
MIN_ROUNDS, MAX_ROUNDS = 8, 200
"""Rounds of a measurement; the least is even, so that every call comes first as often as the others."""
PROCESSOR_TIMES = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""Of the first line of /proc/stat: user, nice, system, irq, softirq, steal (guests are in user)."""


def synchronise(device: torch.device) -> Call:
    """What waits until all work on `device` is done."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def warm_up(call: Call, clock: Callable[[], float] = time.perf_counter) -> int:
    """How often it called until caches are warm: 2 times, and once more unless a second has passed."""
    started = clock()
    for done in range(1, WARMUP_CALLS + 1):
        call()
        if done >= LEAST_WARMUP and clock() - started > WARMUP_SECONDS:
            return done
    return WARMUP_CALLS


@dataclass
class Times:
    """Seconds of one call, round by round: on the wall's clock, and of all the process's threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleave(
    calls: Mapping[str, Call],
    seconds: float,
    drain: Call = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Times]:
    """Times of each call by name, round by round, every other round in reverse order: A B, B A, A B ...

    Rounds go on until the calls took `seconds` each on average. `drain` waits for the device inside the timed part.
    """
    for call in calls.values():
        warm_up(call, clock)
    drain()
    times = {name: Times() for name in calls}
    order, rounds, spent = list(calls), 0, 0.0
    with frozen_garbage():
        while rounds < MIN_ROUNDS or (spent < seconds * len(calls) and rounds < MAX_ROUNDS):
            for name in order:
                start, cpu_start = clock(), cpu_clock()
                calls[name]()
                drain()
                times[name].wall.append(clock() - start)
                times[name].cpu.append(cpu_clock() - cpu_start)
                spent += times[name].wall[-1]
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

    def __init__(self) -> None:
        self.load = load_average()
        self.started = (time.perf_counter(), busy_seconds(), own_seconds())

    def stop(self) -> Disturbance:
        """What happened since."""
        wall, busy, own = self.started
        now = busy_seconds()
        other = None
        if busy is not None and now is not None:
            elapsed = (time.perf_counter() - wall) * (os.cpu_count() or 1)
            other = min(1.0, max(0.0, (now - busy) - (own_seconds() - own)) / elapsed)
        return Disturbance(self.load, load_average(), other)


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def busy_seconds() -> float | None:
    """CPU seconds that all cores have worked since the start, or None where /proc/stat does not say."""
    try:
        name, *fields = PROCESSOR_TIMES.read_text().split("\n", 1)[0].split()
        ticks = sum(int(fields[index]) for index in BUSY_FIELDS)
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if name == "cpu" else None
