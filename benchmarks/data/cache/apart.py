"""What may end the process that does it, done in another."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from benchmarks.base.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


def apart(place: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives, in a process of its own.

    Raises:
        UserError: that process ended; `place` is what it read.
    """
    with processes(1) as pool:
        try:
            return pool.submit(work, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise ended(place) from error


def ended(place: Path) -> UserError:
    """The error for a process that ended while it read."""
    return UserError(
        f"{place}: a process that reads it was killed, as happens where memory runs out or a mapped file is damaged"
    )


def processes(count: int, begin: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Processes that end with this one, who alone hears of Ctrl-C; each calls `begin(*arguments)` first."""
    forks = sys.platform == "linux"  # starts at once and knows what is here; its children use no threads of torch's
    context = multiprocessing.get_context("fork" if forks else "spawn")
    return ProcessPoolExecutor(count, context, _begin, (os.getpid(), begin, arguments))


def _begin(parent: int, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Set up a process; who waits for it says in a line that it ended."""
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
