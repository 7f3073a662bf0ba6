"""Images that lie in the cache: a file of their bytes, one that describes it, and whether both may be believed.

The description is written last, so that a killed writer leaves none. It holds the hash of the images, and what the file
system said of their file when it had that hash: while it says the same, the bytes are not read again to be sure.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.files import written_atomically
from benchmarks.data.cache.mapped import mapped
from kernels.cpu.build import is_private

BUFFER = 1 << 20
"""Bytes that are hashed at a time."""


@dataclass(frozen=True)
class Entry:
    """What describes a file of images.

    Args:
        counts: images of train, validation and test, which follow each other in the file.
        shape: (C, H, W).
        content_hash: that of the data set, as `benchmarks.data.content_hash` computes it.
        notes: what was changed in them, in words.
        seen: size, times and inode of the file when it had this hash.
    """

    counts: tuple[int, int, int]
    shape: tuple[int, int, int]
    content_hash: str
    notes: tuple[str, ...]
    seen: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of all images."""
        return int(np.prod((sum(self.counts), *self.shape), dtype=np.int64))


@dataclass(frozen=True)
class Place:
    """Where an entry lies: its folder, which is this user's alone, and the key of its content."""

    folder: Path
    key: str

    @property
    def images(self) -> Path:
        """The file of bytes."""
        return self.folder / f"{self.key}.images"

    @property
    def description(self) -> Path:
        """The file that describes it."""
        return self.folder / f"{self.key}.json"

    def describe(self, counts: tuple[int, int, int], shape: tuple[int, int, int], notes: tuple[str, ...]) -> Entry:
        """Hash the images that were written, and describe them."""
        before = seen(self.images)
        entry = Entry(counts, shape, file_hash(self.images, counts, shape), notes, before)
        self._write(entry)
        return entry

    def believed(self) -> Entry | None:
        """The entry, if there is one and its images have its hash; what is damaged is removed."""
        entry = self._read()
        if entry is None or not is_private(self.images, stat.S_ISREG):
            return None
        found = seen(self.images)
        if found == entry.seen:
            return entry
        if found[0] == entry.nbytes and file_hash(self.images, entry.counts, entry.shape) == entry.content_hash:
            entry = replace(entry, seen=found)
            self._write(entry)
            return entry
        self.description.unlink(missing_ok=True)
        self.images.unlink(missing_ok=True)
        return None

    def mapped(self, entry: Entry) -> UInt8[Tensor, "N C H W"]:
        """The images, mapped into memory."""
        return mapped(self.images, (sum(entry.counts), *entry.shape))

    def _write(self, entry: Entry) -> None:
        with private_file(self.description) as file:
            file.write(json.dumps(asdict(entry)).encode())

    def _read(self) -> Entry | None:
        found = read_private_json(self.description)
        try:
            counts, shape, notes, stats = (tuple(found[name]) for name in ("counts", "shape", "notes", "seen"))
            return Entry(counts, shape, str(found["content_hash"]), notes, stats)
        except (KeyError, TypeError):
            return None


def seen(path: Path) -> tuple[int, ...]:
    """Size, times and inode of a file: another content has others."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def file_hash(path: Path, counts: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """`content_hash` of splits that follow each other in a file, which is read and never held."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER))
    with path.open("rb", buffering=0) as file:
        for count in counts:
            split = (count, *shape)
            digest.update(str(split).encode())
            left = int(np.prod(split, dtype=np.int64))
            while left and (size := file.readinto(buffer[: min(left, BUFFER)])):
                digest.update(buffer[:size])
                left -= size
    return digest.hexdigest()


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """As `written_atomically`, for this user only."""
    with written_atomically(path) as file:
        os.chmod(file.name, 0o600)  # noqa: PTH101 - a name, as files have it
        yield file


def read_private_json(path: Path) -> Any:
    """What a file of this user's says, None where it is missing, damaged, or others can write it."""
    if is_private(path, stat.S_ISREG):
        with contextlib.suppress(OSError, ValueError):
            return read_json(path)
    return None
