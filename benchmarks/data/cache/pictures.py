"""What is to be decoded: pictures in a fixed order, the files that hold them, and how one tells that they changed.

A source is known by its files, and listed only where the cache does not know these files: what they hold, the order of
the pictures and the splits follow from them and from what is asked.

A file's bytes are hashed once. After that, size, times and inode say whether it is still the same: the kernel moves the
time of change (ctime) with every write, and no program sets it back. What was changed less than `RECENT` ago may change
once more within one tick of the clock, and is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import PIL
from PIL import features

from benchmarks.base.limits import usable_cores
from benchmarks.data import decoding
from benchmarks.data.decoding import Decoded, Rule, decode

RECENT = 2_000_000_000
"""Nanoseconds; the coarsest clock of a common file system (FAT) ticks once in them."""
AT_ONCE = 1024
"""Files handed to the threads that hash them."""
CODECS = ("jpg", "libtiff")
RULES = Path(decoding.__file__).parent
"""Our files that say what is found in others, and in which order."""
UNREADABLE = b"unreadable"
"""In place of a hash; who decodes such a file says what is wrong with it."""


@dataclass(frozen=True)
class Pictures(ABC):
    """Pictures of one source in the order of the splits; travels to other processes.

    Args:
        place: the file or folder that they are in.
        names: one for each picture, in their order.
        fragile: reading one may end the process; only processes that decode do.
    """

    fragile: ClassVar[bool] = False
    place: Path
    names: Sequence[str]

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files whose content counts."""

    @abstractmethod
    def decode(self, index: int, background: str) -> Decoded:
        """The pixels of a picture; raises UserError where there are none."""


@dataclass(frozen=True)
class FolderPictures(Pictures):
    """One picture a file: paths below a folder."""

    @property
    def files(self) -> Sequence[Path]:
        """All of them."""
        return [self.place / name for name in self.names]

    def decode(self, index: int, background: str) -> Decoded:
        """The image of a file, as `decode` reads it."""
        return decode(self.place / self.names[index], background)


@dataclass(frozen=True)
class Words:
    """How pictures were `found`, and what else there is to say, behind what was changed in them."""

    found: str
    besides: str = ""

    def note(self, changes: Sequence[str]) -> str:
        """All of it."""
        return "; ".join([self.found, *changes, *([self.besides] if self.besides else [])])


@dataclass(frozen=True)
class Listing:
    """All pictures of a source in the order of the splits, which have so many."""

    pictures: Pictures
    counts: tuple[int, int, int]
    words: Words


@dataclass(frozen=True)
class Origin:
    """Where pictures come from.

    Args:
        place: the file or folder that is named.
        files: those whose content counts.
        rule: how pictures are decoded.
        asked: all else that decides what `listed` finds in these files, in words.
        listed: reads what the files say of themselves; raises UserError where they are not as they should be.
    """

    place: Path
    files: Sequence[Path]
    rule: Rule
    asked: str
    listed: Callable[[], Listing]

    @property
    def identity(self) -> str:
        """A name for the source as it is asked for, whatever its content is."""
        text = f"{self.place.resolve()}\0{self.rule}\0{self.asked}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class Stamp:
    """All that the file system says of the files, hashed; and whether it will say otherwise if one changes."""

    digest: str
    settled: bool


def stamp(files: Sequence[Path]) -> Stamp:
    """Names, sizes, times and inodes of the files; none is opened."""
    digest, newest = hashlib.sha256(), 0
    for path in files:
        try:
            found = path.stat()
        except OSError:
            digest.update(f"{path}\0{UNREADABLE}\n".encode(errors="surrogateescape"))
            continue
        facts = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        digest.update(f"{path}\0{facts}\n".encode(errors="surrogateescape"))
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
    return Stamp(digest.hexdigest(), time.time_ns() - newest > RECENT)


def reading(origin: Origin) -> str:
    """All but the files that decides on what is found in them and on its pixels: what is asked, our rules, versions."""
    rules = hashlib.sha256()
    for path in sorted(RULES.rglob("*.py")):
        rules.update(path.read_bytes())
    return json.dumps([origin.asked, asdict(origin.rule), rules.hexdigest(), _decoder()])


def manner(counts: Sequence[int], rule: Rule) -> str:
    """All but the files that decides on the array: sizes of the splits, rule, and the version of what decodes."""
    return json.dumps([asdict(rule), list(counts), _decoder()])


def content_key(pictures: Pictures, how: str) -> str:
    """SHA-256 (hex) over names and contents of the files, and the manner in which they are decoded."""
    digest = hashlib.sha256(how.encode())
    for name in pictures.names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    for content in _contents(pictures.files):
        digest.update(content)
    return digest.hexdigest()


def _decoder() -> list[str]:
    """The version of what makes pixels of files: our rules, Pillow and its codecs."""
    rules = hashlib.sha256(Path(decoding.__file__).read_bytes()).hexdigest()
    codecs = [str(features.version_codec(codec)) for codec in CODECS]
    return [rules, PIL.__version__, *codecs, str(features.version_module("webp"))]


def _contents(files: Sequence[Path]) -> Iterator[bytes]:
    """The hash of each file, in order; read by as many threads as there are cores."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(files), AT_ONCE):
            yield from pool.map(_content, files[start : start + AT_ONCE])


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return UNREADABLE
