"""Who works on a trial: one process at a time, also where several runs share a folder, on one machine or on several.

A claim is a lock of the operating system, which ends with its process, and beside it a file that says whose it is. The
file counts where the lock does not reach: on a disk that machines share without sharing its locks. Its own time is the
owner's heartbeat, by the disk's clock, whatever the machines' clocks say. It also says how far the trial is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.base.files import is_alive, sweep, write_text_atomically
from benchmarks.records.record import listed, save_run

LOCK, OWNER, AT_WORK = ".claim.lock", ".owner.json", ".work.lock"
"""The claim of a run, whose it is, and the lock of the process that trains and evaluates."""
PRESENCE = ".run-*.lock"
HEARTBEAT_SECONDS = 30.0
SILENT_SECONDS = 600.0
"""After so long without a heartbeat the owner on another machine is taken for gone."""
JOB = "VAEBENCH_JOB"
"""In the environment of a run that a cluster started: what the cluster calls it ("slurm job 12_3")."""


@dataclass(frozen=True)
class Owner:
    """The process that works on a trial, since when (seconds of the epoch), and how far that is.

    `job` is what a cluster calls it, `left` the seconds that its `phase` still takes at the speed so far.
    """

    pid: int
    host: str
    job: str = ""
    since: float | None = None
    phase: str = ""
    done: int = 0
    total: int = 0
    left: float | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" ({self.job})" if self.job else "")


class Claim:
    """A trial that this run works on, until `release`; its heart beats meanwhile."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder, self.lock, self.ended = folder, lock, threading.Event()
        self.owner = Owner(os.getpid(), socket.gethostname(), os.environ.get(JOB, ""), time.time())
        self.writing, self.begun, self.news = threading.Lock(), (0.0, 0), threading.Event()
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()

    def reached(self, phase: str, done: int, total: int) -> None:
        """Let the next heartbeat say how far the trial is; one comes at once where another phase begins."""
        now, before = time.monotonic(), self.owner.phase
        if phase != before or done < self.begun[1]:
            self.begun = now, done
        since, first = self.begun
        left = (now - since) * (total - done) / (done - first) if done > first else None
        self.owner = replace(self.owner, phase=phase, done=done, total=total, left=left)
        if phase != before:
            self.news.set()

    def _write(self) -> None:
        write_text_atomically(self.folder / OWNER, json.dumps(asdict(self.owner)) + "\n")

    def _beat(self) -> None:
        while not self.ended.is_set():
            self.news.wait(HEARTBEAT_SECONDS)
            self.news.clear()
            with self.writing, contextlib.suppress(OSError):
                said = owner_of(self.folder)
                ours = said is not None and (said.pid, said.host) == (self.owner.pid, self.owner.host)
                if ours and not self.ended.is_set():
                    self._write()

    def release(self) -> None:
        """Leave the trial to whoever wants it."""
        with self.writing:
            self.ended.set()
            self.news.set()
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
        return parse(Owner, read_json(folder / OWNER), OWNER)
    except (OSError, ValueError, UserError):
        return None


def worker_of(folder: Path) -> Owner | None:
    """Who works on the trial, as far as can be seen without a claim: an owner that has not gone; None without one."""
    owner = owner_of(folder)
    if owner is None:
        return None
    if owner.host == socket.gethostname():
        return owner if is_alive(owner.pid) else None
    with contextlib.suppress(OSError):  # a folder that this process may only read
        return owner if _silence(folder) < SILENT_SECONDS else None
    return owner


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
