"""How long threads that wait for each other spin before they sleep; to be said before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping

SPIN_COUNT = "GOMP_SPINCOUNT"
BRIEFLY = "2000"
"""Rounds of GNU OpenMP's loop, about as long as it takes to wake a thread; its own 300,000 take up to 40 ms.

Beside another busy process, a thread that spins takes the core that the one it waits for needs.
"""
POLICIES = (SPIN_COUNT, "OMP_WAIT_POLICY")
"""What a user may have set."""


def spin_briefly() -> None:
    """Let waiting threads of this process, and of those it starts, sleep soon, unless the user has set a policy."""
    if not any(name in os.environ for name in POLICIES):
        os.environ[SPIN_COUNT] = BRIEFLY


def as_found(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment as it was before `spin_briefly`."""
    return {name: value for name, value in environment.items() if (name, value) != (SPIN_COUNT, BRIEFLY)}
