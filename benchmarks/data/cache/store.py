"""Decoded images: mapped from the cache, where they are put at first use, or in memory where there is no cache.

`VAEBENCH_CACHE=off` does without it; so does a machine where the folder cannot be written, which is said once.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.files import sweep
from benchmarks.data.cache.decoder import Decoder
from benchmarks.data.cache.entry import Entry, Place, private_file, read_private_json
from benchmarks.data.cache.pictures import Listing, Origin, Stamp, Words, content_key, manner, reading, stamp
from benchmarks.data.cache.sinks import FileSink, MemorySink, NoRoomError, pour
from benchmarks.data.dataset import cache_folder
from benchmarks.data.decoding import Rule
from kernels.cpu.build import BuildError, place

SWITCH = "VAEBENCH_CACHE"
PATIENCE = 3.0
"""Seconds that another process may decode the same images before one says so."""


@dataclass(frozen=True)
class Images:
    """All images of a source in the order of its splits, which have so many, and what is said of them.

    Args:
        pixels: (N, C, H, W); those of the cache cannot be written.
        content_hash: of the data set, where it is known without reading it.
    """

    pixels: UInt8[Tensor, "N C H W"]
    counts: tuple[int, int, int]
    note: str
    content_hash: str | None = None


@dataclass(frozen=True)
class Known:
    """What was found in files before: the key of their images, and the words of their listing."""

    key: str
    words: Words


def images_of(origin: Origin) -> Images:
    """The images of a source.

    Raises:
        UserError: a picture that is none or has another size, or changes meanwhile; no memory for all of them.
    """
    if _switched_off():
        return _in_memory(origin)
    try:
        with _alone(origin) as folder:
            return _in_cache(folder, origin)
    except (NoRoomError, BuildError, OSError, NotImplementedError) as error:
        _say(f"note: images are decoded in each process and held in memory: {error}")
        return _in_memory(origin)


def _switched_off() -> bool:
    """Whether the user wants no cache; raises UserError where that is not clear."""
    said = os.environ.get(SWITCH, "")
    if said not in ("", "on", "off"):
        raise UserError(f"{SWITCH}: expected 'on' or 'off', got '{said}'")
    return said == "off"


@functools.cache
def _say(text: str) -> None:
    """Say something on stderr, once."""
    print(text, file=sys.stderr, flush=True)


def _in_memory(origin: Origin) -> Images:
    """The images, decoded into memory."""
    listing = origin.listed()
    decoder = Decoder.of(listing.pictures, origin.rule)
    sink = MemorySink(sum(listing.counts), decoder.sides, str(origin.place))
    note = listing.words.note(pour(decoder, sink).notes())
    return Images(torch.from_numpy(sink.array), listing.counts, note)


@contextmanager
def _alone(origin: Origin) -> Iterator[Path]:
    """The folder of the cache, for one process at a time that wants these pictures.

    Raises:
        BuildError: it cannot be written, or others can write it.
        OSError, NotImplementedError: it has no locks.
    """
    folder = place([cache_folder("images")], "").folder
    lock = FileLock(folder / f"{origin.identity}.lock", mode=0o600)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        _say(f"waiting for another process that decodes {origin.place}")
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


def _in_cache(folder: Path, origin: Origin) -> Images:
    """The images, mapped; listed and decoded before that where the cache lacks them."""
    found, memory, how = stamp(origin.files), folder / f"{origin.identity}.source.json", reading(origin)
    known = _remembered(memory, found, how)
    entry = known and Place(folder, known.key).believed()
    if known and entry:
        return _images(Place(folder, known.key), entry, known)
    listing = origin.listed()
    at = Place(folder, content_key(listing.pictures, manner(listing.counts, origin.rule)))
    entry = at.believed() or _filled(at, listing, origin.rule)
    if stamp(origin.files).digest != found.digest:
        raise UserError(f"{origin.place}: its files changed while they were read; run again when they are still")
    known = Known(at.key, listing.words)
    _remember(memory, found, how, known)
    return _images(at, entry, known)


def _images(at: Place, entry: Entry, known: Known) -> Images:
    """The mapped images of an entry."""
    return Images(at.mapped(entry), entry.counts, known.words.note(entry.notes), entry.content_hash)


def _filled(at: Place, listing: Listing, rule: Rule) -> Entry:
    """The entry, decoded now."""
    sweep(at.folder)
    decoder = Decoder.of(listing.pictures, rule)
    with private_file(at.images) as file:
        sink = FileSink(sum(listing.counts), decoder.sides, file)
        changes = pour(decoder, sink)
    return at.describe(listing.counts, sink.shape[1:], tuple(changes.notes()))


def _remembered(memory: Path, found: Stamp, how: str) -> Known | None:
    """What files of this stamp held, read so; None where they were not seen before."""
    said = read_private_json(memory)
    if not isinstance(said, dict) or said.get("stamp") != found.digest or said.get("how") != how:
        return None
    known = Known(str(said.get("key")), Words(str(said.get("found")), str(said.get("besides"))))
    return known if re.fullmatch("[0-9a-f]{64}", known.key) else None


def _remember(memory: Path, found: Stamp, how: str, known: Known) -> None:
    """Keep it for the next process, unless the files may still change within a tick of the clock."""
    if found.settled:
        with private_file(memory) as file:
            file.write(json.dumps({"stamp": found.digest, "how": how, "key": known.key} | asdict(known.words)).encode())
