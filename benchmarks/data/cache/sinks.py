"""Where decoded images go, in their order: an array in memory, or a file.

Both begin with the channels of the first images and turn to three where colour follows on grey.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from benchmarks.base.limits import require_memory
from benchmarks.data.cache.decoder import Changes, Decoder

AT_ONCE = 4 << 20
"""Bytes of grey pixels in a file that are given three channels at a time."""


class NoRoomError(Exception):
    """Why images cannot be kept in a file, in one line."""


class Sink(ABC):
    """Takes images (N, C, H, W) in their order; `channels` is 0 before the first."""

    def __init__(self, count: int, sides: tuple[int, int]) -> None:
        self.count, self.sides = count, sides
        self.channels, self.filled = 0, 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of all images: (N, C, H, W)."""
        return (self.count, self.channels, *self.sides)

    @property
    def nbytes(self) -> int:
        """Of all images."""
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, images: UInt8[np.ndarray, "N C H W"]) -> None:
        """The next images; raises UserError or NoRoomError where there is no room for all."""
        if images.shape[1] > self.channels:
            self.channels = images.shape[1]
            self._make_room()
        self._write(np.broadcast_to(images, (len(images), *self.shape[1:])))
        self.filled += len(images)

    @abstractmethod
    def _make_room(self) -> None:
        """Room for all images, with as many channels as are new; those before stay, in all of them."""

    @abstractmethod
    def _write(self, images: np.ndarray) -> None:
        """Put down the next images, of all channels."""


class MemorySink(Sink):
    """An array of them."""

    def __init__(self, count: int, sides: tuple[int, int], where: str) -> None:
        super().__init__(count, sides)
        self.where, self.array = where, np.empty((0, 1, *sides), np.uint8)

    def _make_room(self) -> None:
        height, width = self.sides
        what = f"{self.where}: {self.count} images of {width}x{height}"
        require_memory(self.nbytes, what, "use ?size=N behind the path")
        before, self.array = self.array, np.empty(self.shape, np.uint8)
        self.array[: self.filled] = before[: self.filled]

    def _write(self, images: np.ndarray) -> None:
        self.array[self.filled : self.filled + len(images)] = images


class FileSink(Sink):
    """An open file of their bytes, which holds no more of them in memory than it is given at once."""

    def __init__(self, count: int, sides: tuple[int, int], file: BinaryIO) -> None:
        super().__init__(count, sides)
        self.file, self.path = file, Path(file.name)

    def _make_room(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if self.nbytes > free:
            sizes = f"{self.nbytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
            raise NoRoomError(f"{self.path.parent}: the images need {sizes}")
        self._widen()

    def _widen(self) -> None:
        """The grey images there are, with three channels; from the last to the first, in place."""
        size = int(np.prod(self.sides))
        step = max(1, AT_ONCE // size)
        self.file.flush()
        with self.path.open("rb") as reader:
            for start in reversed(range(0, self.filled, step)):
                count = min(step, self.filled - start)
                reader.seek(start * size)
                grey = np.frombuffer(reader.read(count * size), np.uint8).reshape(count, 1, size)
                self.file.seek(start * size * self.channels)
                self.file.write(np.repeat(grey, self.channels, axis=1).data)
                self.file.flush()
        self.file.seek(self.filled * size * self.channels)

    def _write(self, images: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(images).data)


def pour(decoder: Decoder, sink: Sink) -> Changes:
    """All images of the decoder into the sink; what was changed in them."""
    changes = Changes()
    for chunk in decoder.chunks():
        sink.take(chunk.images)
        changes.join(chunk.changes)
    return changes
