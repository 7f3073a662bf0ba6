"""Pictures in tar files, such as the shards of webdataset: found by their headers, read in place, never extracted.

Only plain members of an uncompressed file count. Links and devices are skipped, sparse members refused; a header may be
of any length, and is read up to `MOST_HEADER`.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

import numpy as np
from jaxtyping import Int64

from benchmarks.base.errors import UserError, first_line
from benchmarks.base.files import mistaken_for
from benchmarks.data.archives.shards import shards
from benchmarks.data.cache.pictures import Pictures
from benchmarks.data.decoding import ARCHIVE_JUNK, HIDDEN, SUFFIXES, Decoded, decode_bytes

SUFFIX = ".tar"
NO_FILE = "links and devices"
MOST_HEADER = 1 << 20
"""Bytes of the long names and attributes of one member."""
MOST_PICTURE = 1 << 30
"""Bytes of one picture: 89 million pixels of 16 bits, four channels and no compression have 0.7 billion."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarPictures(Pictures):
    """Members of tar files: the file, the first byte and the number of bytes of each."""

    shards: Sequence[Path]
    spans: Int64[np.ndarray, "N 3"]

    @property
    def files(self) -> Sequence[Path]:
        """The tar files."""
        return self.shards

    def decode(self, index: int, background: str) -> Decoded:
        """The image of a member, as files are read."""
        shard, start, size = map(int, self.spans[index])
        with self.shards[shard].open("rb") as file:
            file.seek(start)
            return decode_bytes(file.read(size), f"{self.shards[shard]}: {self.names[index]}", background)


@dataclass
class Contents:
    """The pictures of a tar file, or of those below a folder, by their names; and what was skipped."""

    place: Path
    shards: list[Path] = field(default_factory=list)
    spans: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, place: Path) -> Contents:
        """Read all headers.

        Raises:
            UserError: no tar file, a damaged or compressed one, members that are not plain, or two of one name.
        """
        found = cls(place, list(shards(place, SUFFIX)))
        for index, path in enumerate(found.shards):
            prefix = f"{path.relative_to(place).as_posix()}/" if place.is_dir() else ""
            for member in _members(path):
                found._take(index, prefix, member)
        return found

    def pictures(self, names: Sequence[str]) -> TarPictures:
        """Those of these names, in this order."""
        spans = np.array([self.spans[name] for name in names], np.int64).reshape(-1, 3)
        return TarPictures(self.place, names, self.shards, spans)

    def _take(self, shard: int, prefix: str, member: tarfile.TarInfo) -> None:
        """Note a picture; count anything else."""
        path = PurePosixPath(member.name)
        if member.isdir():
            return
        if any(part.startswith(".") for part in path.parts):
            self.skipped[HIDDEN] += 1
        elif ARCHIVE_JUNK in path.parts:
            self.skipped[ARCHIVE_JUNK] += 1
        elif not member.isreg():
            self.skipped[NO_FILE] += 1
        elif path.suffix.lower() not in SUFFIXES:
            self.skipped[path.suffix.lower() or "without suffix"] += 1
        else:
            name = f"{prefix}{path}"
            _require_plain(member, self.shards[shard], name in self.spans)
            self.spans[name] = (shard, member.offset_data, member.size)


def _require_plain(member: tarfile.TarInfo, path: Path, known: bool) -> None:
    """Raise UserError for a picture that is not as it stands in the file, or not the only one of its name."""
    end = member.offset_data + member.size
    if member.issparse():
        problem = "a sparse member"
    elif known:
        problem = "a second member of that name"
    elif member.size > MOST_PICTURE:
        problem = f"a picture of {member.size:,} bytes"
    elif end > (whole := path.stat().st_size):
        problem = f"a file of {whole:,} bytes that should have {end:,}"
    else:
        return
    raise UserError(f"{path}: {member.name[:200]}: expected plain members of different names, got {problem}")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar file, one after another; those before are forgotten."""
    try:
        _require_tar(path)
        with path.open("rb") as file, tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
            last = -1
            while (member := archive.next()) is not None:
                if member.offset <= last or member.size < 0:
                    raise ValueError(f"a member of {member.size:,} bytes")
                yield member
                last = member.offset
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            file.seek(archive.offset)  # `tarfile` takes a damaged header for the end
            if any(file.read(tarfile.BLOCKSIZE)):
                raise ValueError(f"a damaged header at byte {archive.offset:,}")
    except UserError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}: expected an uncompressed tar file, got {reason}") from error


def _require_tar(path: Path) -> None:
    """Raise ValueError for what is known to be something else."""
    found = mistaken_for(path)
    if found is None:
        with path.open("rb") as file:
            head = file.read(8)
        kind = next((kind for begins, kind in COMPRESSED.items() if head.startswith(begins)), None)
        found = kind and f"one compressed by {kind}; unpack it"
    if found is not None:
        raise ValueError(found)


class _Headers:
    """A file of which `tarfile` reads headers, none of them of more than `MOST_HEADER` bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """The next bytes; raises ValueError for too many."""
        if not 0 <= size <= MOST_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return self.file.read(size)
