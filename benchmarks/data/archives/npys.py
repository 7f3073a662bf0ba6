"""Pictures in .npy files: arrays of bytes (N, H, W) or (N, H, W, C), read row by row, as VDVAE's data lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from benchmarks.base.errors import UserError
from benchmarks.base.files import mistaken_for
from benchmarks.data.archives.headers import Header, file_header, read_header
from benchmarks.data.archives.shards import shards
from benchmarks.data.cache.pictures import Pictures
from benchmarks.data.decoding import Decoded

SUFFIX = ".npy"
CHANNELS = (1, 3)
LOOKED_AT = 256
"""First images that tell levels of 0-255 from zeros and ones."""


@dataclass(frozen=True)
class ArrayPictures(Pictures):
    """Rows of arrays: the file and the row of each picture."""

    shards: Sequence[Path]
    rows: Int64[np.ndarray, "N 2"]

    @property
    def files(self) -> Sequence[Path]:
        """The .npy files."""
        return self.shards

    def decode(self, index: int, background: str) -> Decoded:
        """The pixels of a row, as they are."""
        shard, row = map(int, self.rows[index])
        path = self.shards[shard]
        return Decoded(_layout(path, path.stat().st_mtime_ns).pixels(path, row, row + 1)[0])


@dataclass(frozen=True)
class _Layout:
    """Where the rows of an array lie in its file: (N, H, W, C), from byte `start` on."""

    shape: tuple[int, int, int, int]
    start: int

    def pixels(self, path: Path, first: int, end: int) -> UInt8[np.ndarray, "N H W C"]:
        """Some of the rows."""
        size = math.prod(self.shape[1:])
        try:
            found = np.fromfile(path, np.uint8, (end - first) * size, offset=self.start + first * size)
            return found.reshape(-1, *self.shape[1:])
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: expected {self.shape[0]:,} images as its header says, got {error}") from error


@dataclass(frozen=True)
class Rows:
    """The rows of an .npy file, or of those below a folder, by the names of their pictures: in their order."""

    place: Path
    shards: Sequence[Path]
    rows: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, place: Path) -> Rows:
        """Read what the files say of themselves.

        Raises:
            UserError: no such file, or one that is no array of images of bytes.
        """
        files = shards(place, SUFFIX)
        if not files:
            raise UserError(f"{place}: expected {SUFFIX} files, found none")
        rows = dict[str, tuple[int, int]]()
        for index, path in enumerate(files):
            prefix = f"{path.relative_to(place).as_posix()}/" if place.is_dir() else ""
            count = _checked(path).shape[0]
            rows |= {f"{prefix}{row}": (index, row) for row in range(count)}
        return cls(place, files, rows)

    def pictures(self, names: Sequence[str]) -> ArrayPictures:
        """Those of these names, in this order."""
        rows = np.array([self.rows[name] for name in names], np.int64).reshape(-1, 2)
        return ArrayPictures(self.place, names, self.shards, rows)


def _checked(path: Path) -> Header:
    """The header of an array of images of bytes."""
    try:
        header = file_header(path)
    except (OSError, ValueError, EOFError) as error:
        reason = mistaken_for(path) or getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: expected an .npy file, got {reason}") from error
    shape = header.shape
    images = len(shape) == 3 or (len(shape) == 4 and shape[3] in CHANNELS)
    if header.dtype != np.uint8 or not images or header.fortran or not all(shape):
        expected = "expected an array of uint8 (N, H, W) or (N, H, W, C) with 1 or 3 channels last"
        raise UserError(f"{path}: {expected}, got {header.dtype} {shape}; npz:FILE reads other types")
    layout = _layout(path, path.stat().st_mtime_ns)
    if layout.pixels(path, 0, min(LOOKED_AT, shape[0])).max() <= 1:
        raise UserError(f"{path}: expected levels of 0-255, got zeros and ones; npz:FILE reads binary pixels")
    return header


@functools.lru_cache(maxsize=4)
def _layout(path: Path, changed: int) -> _Layout:
    with path.open("rb") as file:
        n, height, width, *channels = read_header(file).shape
        return _Layout((n, height, width, channels[0] if channels else 1), file.tell())
