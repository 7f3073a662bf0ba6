"""Pictures in LMDB environments, as LSUN is published and as users of NVAE keep their data. Needs the extra `lmdb`.

The library maps the file and believes it: a damaged one can end the process that reads it, which is therefore never
this one, but one of those that decode. Any value that is an image file counts, under its key, whatever the key is;
`?raw=N` takes values of N x N x 3 bytes, rows of pixels with their channels last, in place of image files.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from benchmarks.base.errors import UserError, first_line
from benchmarks.base.files import mistaken_for
from benchmarks.data.cache.apart import apart
from benchmarks.data.cache.pictures import Pictures
from benchmarks.data.decoding import Decoded, decode_bytes

SUFFIX = "lmdb"
"""How folders and files are called that are environments, or hold some; with a dot or without."""
FILE = "data.mdb"
INSTALL = "pip install -e '.[lmdb]'"
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P4", b"P5", b"P6")
"""Of files of the kinds that are read."""
OTHER = "other values"
LONGEST_KEY = 511
"""Bytes of a key in LMDB as it is built everywhere."""


@dataclass(frozen=True)
class LmdbPictures(Pictures):
    """Values of environments: the file and the key of each picture; `raw` is the side of one without a format."""

    fragile: ClassVar[bool] = True
    shards: Sequence[Path]
    shard: Int64[np.ndarray, " N"]
    keys: Sequence[bytes]
    raw: int | None

    @property
    def files(self) -> Sequence[Path]:
        """The files that are mapped."""
        return self.shards

    def decode(self, index: int, background: str) -> Decoded:
        """The image of a value; only in a process that may end."""
        path = self.shards[int(self.shard[index])]
        value = _value(path, self.keys[index])
        if self.raw is None:
            return decode_bytes(value, f"{path}: {self.names[index]}", background)
        return Decoded(np.frombuffer(value, np.uint8).reshape(self.raw, self.raw, 3))


@dataclass
class Contents:
    """The pictures of environments by their names, in the order of their keys; and what was skipped."""

    place: Path
    shards: Sequence[Path]
    raw: int | None
    keys: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, place: Path, raw: int | None) -> Contents:
        """Read all keys, in a process of its own.

        Raises:
            UserError: no environment, a damaged one, or the library is missing.
        """
        files = environments(place)
        if not files:
            raise UserError(f"{place}: expected an LMDB environment ({FILE}), found none")
        found = cls(place, files, raw)
        for index, path in enumerate(files):
            environment = path.parent if path.name == FILE else path
            prefix = f"{environment.relative_to(place).as_posix()}/" if environment != place and place.is_dir() else ""
            keys, others = apart(path, _listed, path, raw)
            found.keys |= {f"{prefix}{key.decode(errors='surrogateescape')}": (index, key) for key in _ordered(keys)}
            found.skipped[OTHER] += others
        found.skipped = +found.skipped
        return found

    def pictures(self, names: Sequence[str]) -> LmdbPictures:
        """Those of these names, in this order."""
        shard = np.array([self.keys[name][0] for name in names], np.int64)
        return LmdbPictures(self.place, names, self.shards, shard, [self.keys[name][1] for name in names], self.raw)


def environments(place: Path) -> Sequence[Path]:
    """The files of an environment, or of all below a folder, in their order."""
    if not place.is_dir():
        return [place]
    return sorted([*place.rglob(FILE), *(path for path in place.rglob(f"*.{SUFFIX}") if path.is_file())])


def _ordered(keys: list[bytes]) -> list[bytes]:
    """Numbers by their value, anything else as the environment has it: by its bytes."""
    return sorted(keys, key=int) if all(key.isdigit() for key in keys) else keys


def _listed(path: Path, raw: int | None) -> tuple[list[bytes], int]:
    """The keys of pictures, and the number of other values."""
    keys, others = list[bytes](), 0
    with _readable(path), _opened(path, os.getpid()).begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            taken = len(value) == 3 * raw**2 if raw else bytes(value[:4]).startswith(BEGINNINGS)
            if taken and len(key) <= LONGEST_KEY:
                keys.append(bytes(key))
            else:
                others += 1
    return keys, others


def _value(path: Path, key: bytes) -> bytes:
    """The value of a key."""
    with _readable(path), _opened(path, os.getpid()).begin() as transaction:
        value = transaction.get(key)
    if value is None:
        raise UserError(f"{path}: its keys changed while it was read")
    return value


@functools.lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> Any:
    """The environment, opened once in a process."""
    try:
        library = importlib.import_module("lmdb")
    except ImportError as error:
        raise UserError(f"{path}: reading LMDB needs its library: {INSTALL}") from error
    inside = path.name == FILE
    place = str(path.parent if inside else path)
    return library.open(place, subdir=inside, readonly=True, create=False, lock=False, readahead=False, max_readers=1)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the library raises into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged file raises anything
        reason = mistaken_for(path) or first_line(error)
        raise UserError(f"{path}: expected an LMDB environment, got {reason}") from error
