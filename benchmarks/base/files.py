"""Files written whole or not at all, and what a file is that is not what its name says."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

BEGINNINGS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
"""How files begin that a download leaves in the place of others, in lower case."""
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
            head = file.read(256)
    except OSError:
        return None
    if not head:
        return "an empty file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
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

    Flushed to disk before the rename, readable by whom the umask lets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:  # unlike those of `tempfile`, which are 0600
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
