"""Who works on a trial: one process at a time, also where several runs share a folder, on one machine or on several.

A claim is a lock of the operating system, which ends with its process, and beside it a file that says whose it is. The
file counts where the lock does not reach: on a disk that machines share without sharing its locks. Its own time is the
owner's heartbeat, by the disk's clock, whatever the machines' clocks say.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.base.files import sweep, write_text_atomically
from benchmarks.records.record import listed, save_run

LOCK, OWNER, AT_WORK = ".claim.lock", ".owner.json", ".work.lock"
"""The claim of a run, whose it is, and the lock of the process that trains and evaluates."""
PRESENCE = ".run-*.lock"
HEARTBEAT_SECONDS = 30.0
SILENT_SECONDS = 600.0
"""After so long without a heartbeat the owner on another machine is taken for gone."""


@dataclass(frozen=True)
class Owner:
    """The process that works on a trial."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Claim:
    """A trial that this run works on, until `release`; its heart beats meanwhile."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder, self.lock, self.ended = folder, lock, threading.Event()
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        write_text_atomically(folder / OWNER, json.dumps(owner) + "\n")
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.folder / OWNER)

    def release(self) -> None:
        """Leave the trial to whoever wants it."""
        self.ended.set()
        (self.folder / OWNER).unlink(missing_ok=True)
        self.lock.release()


def claim(folder: Path, say: Callable[[str], None]) -> Claim | None:
    """The claim on a trial's folder, which is made where it is missing; None while somebody else has it.

    What an owner that has gone left half written is swept, and `say` tells of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    before = owner_of(folder)
    if before is not None:
        here = before.host == socket.gethostname()
        if not here and _silence(folder) < SILENT_SECONDS:
            lock.release()
            return None
        why = "which has ended" if here else f"of which nothing was heard for {SILENT_SECONDS / 60:.0f} minutes"
        say(f"takes over from {before}, {why}")
    sweep(folder)
    return Claim(folder, lock)


def owner_of(folder: Path) -> Owner | None:
    """Who says to work on the trial; None where nobody does, or what is said cannot be read."""
    try:
        return Owner(**json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _silence(folder: Path) -> float:
    """Seconds since the owner's last heartbeat, by the clock of the disk.

    A heartbeat to come, which a clock that was set back leaves, is taken for one of now: an owner that lives beats on.
    """
    os.utime(folder / LOCK)
    try:
        silence = (folder / LOCK).stat().st_mtime - (folder / OWNER).stat().st_mtime
        if silence < 0:
            os.utime(folder / OWNER)
        return max(0.0, silence)
    except OSError:  # gone this moment
        return 0.0


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Inside this block this process alone trains and evaluates the trial; it waits for one that is still leaving."""
    with FileLock(folder / AT_WORK, thread_local=False):
        yield


@contextlib.contextmanager
def listed_run(out: Path, names: list[str]) -> Iterator[None]:
    """Inside this block a run of the trials `names` is present in `out`, and `run.json` lists them.

    Where another run is present, the list holds the trials of both.
    """
    for folder in (out, out / "figures"):
        sweep(folder)
    present = FileLock(out / PRESENCE.replace("*", secrets.token_hex(4)), thread_local=False)
    with FileLock(out / ".list.lock", thread_local=False):  # a list is read and written by one run at a time
        others = [path for path in out.glob(PRESENCE) if _is_held(path)]
        present.acquire()
        known = list[str]()
        if others:
            with contextlib.suppress(ValueError):  # damaged: written anew
                known = listed(out)
        save_run(out, list(dict.fromkeys([*known, *names])))
    try:
        yield
    finally:
        present.release()
        Path(present.lock_file).unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    """Whether the run of this lock is there still; what a killed one left is removed."""
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    path.unlink(missing_ok=True)
    return False
