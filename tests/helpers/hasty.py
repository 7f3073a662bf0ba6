"""Lets timing be content with next to nothing, for tests that conclude nothing from the clock.

As a plugin (`--plugin hasty`) it does so in the process of `throughput`.
"""

import sys

from benchmarks.speed import clock

TURN_SECONDS, LIMIT_SECONDS, SIDE = 1e-4, 1e-3, 64
SHORT = {
    "benchmarks.speed.clock.TURN_SECONDS": TURN_SECONDS,
    "benchmarks.speed.beside.TURN": TURN_SECONDS,
    "benchmarks.speed.suite.LIMIT_SECONDS": LIMIT_SECONDS,
    "benchmarks.speed.operations.measured.LIMIT_SECONDS": LIMIT_SECONDS,
    "benchmarks.speed.machine.MATRIX": SIDE,
    "benchmarks.speed.beside.MATRIX": SIDE,
    "benchmarks.speed.machine.CONVOLUTION": (1, 8, 8, 8),
    "benchmarks.profiling.kernel_timing.COPY_BYTES": {"cpu": 1 << 16},
}
"""Constants and what stands in for them: seconds of turns, seconds and sizes of the machine's limits."""


def hurry(monkeypatch):
    """Let all timing in this process be short."""
    for name, value in SHORT.items():
        monkeypatch.setattr(name, value)


if sys.argv[1:2] == ["throughput"]:
    clock.TURN_SECONDS = TURN_SECONDS
