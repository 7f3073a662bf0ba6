"""Drawn images on disk: one grid, a file an image, or an archive; batch by batch, so that any number fits."""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.base.errors import UserError, unknown
from benchmarks.base.files import write_bytes_atomically, write_text_atomically

MADE_OF = "samples.json"
"""In a folder of parts of images: what they are parts of."""
GAP = 2
"""White pixels around each image of a grid."""
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Suffix -> format; JPEG and WebP lose a little."""


class Sink(ABC):
    """Takes uint8 images (b, C, H, W), batch by batch; nothing is on disk before the first."""

    @abstractmethod
    def add(self, images: Tensor) -> None:
        """Take the next images."""

    @abstractmethod
    def close(self) -> str:
        """Finish; returns where the images are."""

    def discard(self) -> None:  # noqa: B027
        """Remove what is not finished."""


def format_of(path: Path) -> str:
    """The image format that a suffix stands for.

    Raises:
        UserError: another suffix, or none.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise unknown("suffix of an image file", suffix or path.name, FORMATS)
    return FORMATS[suffix]


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """An image file of uint8 pixels (H, W, C), grey for C = 1."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, kind)
    return buffer.getvalue()


def channels_last(images: Tensor) -> np.ndarray:
    """Images (b, C, H, W) as (b, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


class Grid(Sink):
    """All images in one file, row by row; near square where the number of columns is not given."""

    def __init__(self, path: Path, n: int, columns: int | None = None) -> None:
        self.path, self.kind, self.n = path, format_of(path), n
        self.columns = columns or math.ceil(math.sqrt(n))
        self.canvas, self.count = np.zeros((0, 0, 0), np.uint8), 0

    def add(self, images: Tensor) -> None:
        """Paste the next images."""
        _, channels, height, width = images.shape
        if not self.count:
            rows = math.ceil(self.n / self.columns)
            size = (rows * (height + GAP) + GAP, self.columns * (width + GAP) + GAP, channels)
            self.canvas = np.full(size, 255, np.uint8)
        for image in channels_last(images):
            row, column = divmod(self.count, self.columns)
            top, left = row * (height + GAP) + GAP, column * (width + GAP) + GAP
            self.canvas[top : top + height, left : left + width] = image
            self.count += 1

    def close(self) -> str:
        """Write the file."""
        write_bytes_atomically(self.path, encoded(self.canvas, self.kind))
        return str(self.path)


class Each(Sink):
    """A PNG an image: 00000.png, 00001.png, ..., numbers of one width for `n` images, from `first` on.

    The folder is empty or new. That of `shards` may hold other parts of the same images: what they are `made_of`, a
    line of JSON, is beside them.
    """

    def __init__(self, folder: Path, n: int, first: int = 0, made_of: str = "") -> None:
        self.folder, self.count, self.width, self.made_of = folder, first, max(5, len(str(n - 1))), made_of
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--each {folder}: expected a folder, found a file; choose another name")
        if folder.exists() and any(folder.iterdir()):
            self._require_the_same()

    def _require_the_same(self) -> None:
        """Raise UserError where the folder holds anything but parts of the same images."""
        if not self.made_of:
            raise UserError(f"--each {self.folder}: expected a new or an empty folder; move what is there away")
        there = read_made_of(self.folder)
        if there != self.made_of:
            found = f"those of {there}" if there else "other files"
            raise UserError(
                f"--each {self.folder}: expected a new folder, or one of parts of {self.made_of}, found {found}; "
                "choose another"
            )

    def add(self, images: Tensor) -> None:
        """Write the next images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.made_of and not (self.folder / MADE_OF).exists():
            write_text_atomically(self.folder / MADE_OF, self.made_of + "\n")
        for image in channels_last(images):
            (self.folder / f"{self.count:0{self.width}d}.png").write_bytes(encoded(image, "PNG"))
            self.count += 1

    def close(self) -> str:
        """Nothing is left to write."""
        return str(self.folder)


def read_made_of(folder: Path) -> str:
    """What the images of a folder are parts of; empty where nothing says so."""
    try:
        return (folder / MADE_OF).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Archive(Sink):
    """`images` (n, H, W, C) uint8 in an .npz file, which `--data npz:FILE` reads back."""

    def __init__(self, path: Path, n: int) -> None:
        if path.suffix != ".npz":
            raise UserError(f"--npz {path}: expected a name that ends in .npz")
        self.path, self.n = path, n
        self.partial = path.with_name(f".{path.name}.{os.getpid()}")
        self.archive: zipfile.ZipFile | None = None
        self.member: IO[bytes] | None = None

    def add(self, images: Tensor) -> None:
        """Append the next images."""
        pixels = channels_last(images)
        if self.member is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.archive = zipfile.ZipFile(self.partial, "w", zipfile.ZIP_DEFLATED)
            self.member = self.archive.open("images.npy", "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.n, *pixels.shape[1:])}
            np.lib.format.write_array_header_1_0(self.member, header)
        self.member.write(pixels.tobytes())

    def close(self) -> str:
        """Finish the archive under its name."""
        self._end()
        self.partial.replace(self.path)
        return str(self.path)

    def discard(self) -> None:
        """Remove the unfinished archive."""
        with contextlib.suppress(OSError, ValueError):  # the disk that is full, say
            self._end()
        self.partial.unlink(missing_ok=True)

    def _end(self) -> None:
        for part in (self.member, self.archive):
            if part is not None:
                part.close()


def written(images: Iterable[Tensor], sinks: Sequence[Sink]) -> list[str]:
    """Where the images (b, C, H, W) uint8 are, after they all have been put into every sink."""
    try:
        for batch in images:
            for sink in sinks:
                sink.add(batch)
        return [sink.close() for sink in sinks]
    except BaseException:
        for sink in sinks:
            sink.discard()
        raise


def asked_for(
    grid: str | None, each: str | None, archive: str | None, n: int, default: str, columns: int | None = None
) -> list[Sink]:
    """Where `n` images go: a grid, a folder, an archive, whatever is named; a grid `default` where nothing is."""
    grid = grid or (default if not (each or archive) else None)
    sinks: list[Sink] = [Grid(Path(grid), n, columns)] if grid else []
    sinks += [Each(Path(each), n)] if each else []
    return [*sinks, *([Archive(Path(archive), n)] if archive else [])]
