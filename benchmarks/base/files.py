"""Files written whole or not at all, and what a file is that is not what its name says."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from benchmarks.base.errors import UserError

BEGINNINGS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
"""How files begin that a download leaves in the place of others, in lower case."""
HEAD = 256
"""Bytes that are looked at for that."""
PART = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names of files being written: .NAME.HOST.PID.RANDOM; early versions left out host and pid."""
OLD_SECONDS = 24 * 3600.0
"""From this age on such a file is nobody's, whoever began it."""
SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What is no regular file, by the type in its mode: opened or read, it may wait or go on for ever."""
MOST_TEXT = 1 << 24
"""Bytes of a configuration; ours have some thousands."""


def special(path: Path) -> str | None:
    """What is at `path` if it is no regular file ("a named pipe"), found without opening it; None if one or missing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else SPECIAL.get(stat.S_IFMT(mode), "no regular file")


def mistaken_for(path: Path) -> str | None:
    """What the file is if it is something that often lies in the place of another, None if not or unreadable."""
    found = special(path)
    if found is not None:
        return found
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    return begins_as(head)


def begins_as(head: bytes) -> str | None:
    """What `mistaken_for` says of a file with these first bytes."""
    if not head:
        return "an empty file"
    start = head[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for begins, what in BEGINNINGS.items() if start.startswith(begins)), None)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of one."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """As `write_text_atomically`, for bytes."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which is `path` at the block's end and gone where the block raises.

    File and name are on disk then; it is readable by whom the umask lets. What a killed process leaves is swept by
    `sweep`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:  # unlike those of `tempfile`, which are 0600
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a folder's names on disk, where its file system has a way to do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_new(out: Path) -> None:
    """Raise UserError where `out` holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: expected a new or an empty folder; move what is there away")


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which is `out` at the block's end and gone where the block raises."""
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that have ended left half written in `folder`, and what is a day old."""
    ours = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):  # no folder, or one that others tidy as well
        for path in folder.iterdir():
            if PART.fullmatch(path.name) is None or not path.is_file():
                continue
            found = ours.fullmatch(path.name)
            ended = found is not None and not is_alive(int(found[1]))
            if ended or time.time() - path.stat().st_mtime > OLD_SECONDS:
                path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
