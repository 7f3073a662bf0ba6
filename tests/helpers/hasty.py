"""Lets timing be content with next to nothing, for tests that conclude nothing from the clock.

As a plugin (`--plugin hasty`) it does so in the process of `throughput`.
"""

import sys

from benchmarks.profiling import kernel_timing
from benchmarks.speed import beside, clock, machine, suite
from benchmarks.speed.operations import measured

SIDE = 64
SHORT = (
    (clock, "TURN_SECONDS", 1e-4),
    (beside, "TURN", 1e-4),
    (suite, "LIMIT_SECONDS", 1e-4),
    (measured, "LIMIT_SECONDS", 1e-4),
    (machine, "MATRIX", SIDE),
    (beside, "MATRIX", SIDE),
    (machine, "CONVOLUTION", (1, 8, 8, 8)),
    (kernel_timing, "COPY_BYTES", {"cpu": 1 << 16}),
)
"""Modules, their constants, and what stands in for them: seconds of turns, sizes of what the machine's limits are."""


def hurry(put=setattr):
    """Set all of them, as `setattr` does or a monkeypatch's."""
    for module, name, value in SHORT:
        assert hasattr(module, name)
        put(module, name, value)


if sys.argv[1:2] == ["throughput"]:
    hurry()
