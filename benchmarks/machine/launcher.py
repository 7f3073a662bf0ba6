"""Whether this process is one of several that torchrun started, and which."""

from __future__ import annotations

import os
from dataclasses import dataclass

from benchmarks.base.errors import UserError


@dataclass(frozen=True)
class Launch:
    """This process among the `count` that torchrun started on this machine."""

    index: int = 0
    count: int = 1


def launch() -> Launch:
    """What torchrun says in the environment; one process where this was not started by it.

    Raises:
        UserError: it started processes on other machines as well.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    index, count, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if here != count:
        raise UserError(
            f"torchrun: expected the ranks of a model on one machine, got {count}, of which {here} are here; start it "
            "on every machine by itself (--standalone) with the same --out, and they share the trials"
        )
    return Launch(index, count)
