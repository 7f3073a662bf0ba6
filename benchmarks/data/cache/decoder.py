"""Pictures decoded by as many processes as there are cores, and given back in their order, some at a time."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from benchmarks.base.errors import UserError
from benchmarks.base.limits import usable_cores
from benchmarks.data.cache.apart import apart, ended, processes
from benchmarks.data.cache.pictures import Pictures
from benchmarks.data.decoding import DEEP_SCALED, Decoded, Rule, resized

MOST_IMAGES, MOST_BYTES = 256, 4 << 20
"""Images of a task, and bytes of their pixels."""
AHEAD = 2
"""Tasks a process that are begun before their pixels are asked for."""
QUIET = 2.0
"""Seconds before there is a line of progress."""
TERMINAL, LOG = 0.5, 30.0
"""Seconds between two states of that line, by what reads it."""


@dataclass
class Changes:
    """What was changed on the way from files to pixels, in how many images."""

    counts: Counter[str] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    brightest: float = 0.0

    def add(self, image: Decoded) -> None:
        """Count one more image."""
        self.join(Changes(Counter(image.changes), Counter([image.pixels.shape[2]]), image.brightest))

    def join(self, other: Changes) -> None:
        """Count what another has counted."""
        self.counts.update(other.counts)
        self.channels.update(other.channels)
        self.brightest = max(self.brightest, other.brightest)

    def notes(self) -> list[str]:
        """In words."""
        said = [f"{count} {change}" for change, count in sorted(self.counts.items())]
        if DEEP_SCALED in self.counts:
            said.append(f"the brightest of these is at {100 * self.brightest:.3g} % of the range")
        if len(self.channels) > 1:
            said.append(f"{self.channels[1]} grey images among colour repeated to three channels")
        return said


@dataclass(frozen=True)
class Chunk:
    """Some images in their order, with three channels if one of them has colour, and what was changed in them."""

    images: UInt8[np.ndarray, "N C H W"]
    changes: Changes


@dataclass(frozen=True)
class Decoder:
    """Decodes pictures that all have the size of the first of them."""

    pictures: Pictures
    rule: Rule
    sides: tuple[int, int]
    """Height and width."""

    @classmethod
    def of(cls, pictures: Pictures, rule: Rule) -> Decoder:
        """The decoder of these pictures; raises UserError where the first is none."""
        first = apart(pictures.place, _decoded, pictures, 0, rule) if pictures.fragile else _decoded(pictures, 0, rule)
        height, width, _ = first.pixels.shape
        return cls(pictures, rule, (height, width))

    def chunks(self) -> Iterator[Chunk]:
        """All images in their order, with a line of progress where it takes long.

        Raises:
            UserError: the first picture, in their order, that is none or has another size.
        """
        spans = self._spans()
        workers = min(usable_cores(), len(spans))
        here = workers == 1 and not self.pictures.fragile
        found = map(self.chunk, spans) if here else _by_processes(self, spans, workers)
        every = TERMINAL if sys.stderr.isatty() else LOG
        total, what = len(self.pictures.names), f"decoding {self.pictures.place}"
        with tqdm(desc=what, total=total, unit=" images", delay=QUIET, mininterval=every, file=sys.stderr) as line:
            for chunk in found:
                yield chunk
                line.update(len(chunk.images))

    def chunk(self, span: range) -> Chunk:
        """The images at these positions."""
        images, changes = [], Changes()
        for index in span:
            image = _decoded(self.pictures, index, self.rule)
            if image.pixels.shape[:2] != self.sides:
                raise self._sizes_differ(index, image.pixels.shape)
            images.append(image.pixels.transpose(2, 0, 1))
            changes.add(image)
        chunk = np.empty((len(images), max(changes.channels), *self.sides), np.uint8)
        for place, pixels in zip(chunk, images, strict=True):
            place[...] = pixels
        return Chunk(chunk, changes)

    def _spans(self) -> list[range]:
        """The positions, cut into tasks."""
        height, width = self.sides
        step = min(MOST_IMAGES, max(1, MOST_BYTES // (3 * height * width)))
        count = len(self.pictures.names)
        return [range(start, min(count, start + step)) for start in range(0, count, step)]

    def _sizes_differ(self, index: int, shape: tuple[int, ...]) -> UserError:
        """The error for a picture of another size than the first."""
        names = self.pictures.names
        pairs = (names[0], self.sides), (names[index], shape[:2])
        sizes = " and ".join(f"{name} is {width}x{height}" for name, (height, width) in pairs)
        return UserError(f"expected images of one size, but {sizes}; resize and crop them with ?size=N behind the path")


def _decoded(pictures: Pictures, index: int, rule: Rule) -> Decoded:
    """A picture, resized where the rule says so."""
    image = pictures.decode(index, rule.background)
    if rule.size is None:
        return image
    return Decoded(resized(image.pixels, rule.size), image.changes, image.brightest)


def _by_processes(decoder: Decoder, spans: Sequence[range], workers: int) -> Iterator[Chunk]:
    """The chunks of the spans, in order; only some are begun before they are asked for."""
    pool = processes(workers, _at_work.append, decoder)
    waiting = deque[Future[Chunk]]()
    try:
        for span in spans:
            waiting.append(pool.submit(_work, span))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ended(decoder.pictures.place) from error
    finally:
        pool.shutdown(cancel_futures=True)


_at_work: list[Decoder] = []
"""In a process that decodes: what it decodes."""


def _work(span: range) -> Chunk:
    return _at_work[-1].chunk(span)
