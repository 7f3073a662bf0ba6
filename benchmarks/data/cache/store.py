"""Decoded images: mapped from the cache, where they are put at first use, or in memory where there is no cache.

`VAEBENCH_CACHE=off` does without it; so does a machine where the folder cannot be written, which is said once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.files import sweep
from benchmarks.data.cache.decoder import Decoder
from benchmarks.data.cache.entry import Entry, Place, private_file, read_private_json
from benchmarks.data.cache.pictures import Pictures, Stamp, content_key, manner, stamp
from benchmarks.data.cache.sinks import FileSink, MemorySink, NoRoomError, pour
from benchmarks.data.dataset import cache_folder
from benchmarks.data.decoding import Rule
from kernels.cpu.build import BuildError, place

SWITCH = "VAEBENCH_CACHE"
PATIENCE = 3.0
"""Seconds that another process may decode the same images before one says so."""


@dataclass(frozen=True)
class Images:
    """All images of a source in the order of its splits, and what was changed in them.

    Args:
        pixels: (N, C, H, W); those of the cache cannot be written.
        content_hash: of the data set, where it is known without reading it.
    """

    pixels: UInt8[Tensor, "N C H W"]
    notes: tuple[str, ...]
    content_hash: str | None = None


def images_of(pictures: Pictures, counts: tuple[int, int, int], rule: Rule) -> Images:
    """The images of a source whose splits have so many.

    Raises:
        UserError: a picture that is none or has another size, or changes meanwhile; no memory for all of them.
    """
    if _switched_off():
        return _in_memory(pictures, rule)
    try:
        with _alone(pictures, rule) as folder:
            return _in_cache(folder, pictures, counts, rule)
    except (NoRoomError, BuildError, OSError, NotImplementedError) as error:
        _say(f"note: images are decoded in each process and held in memory: {error}")
        return _in_memory(pictures, rule)


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


def _in_memory(pictures: Pictures, rule: Rule) -> Images:
    """The images, decoded into memory."""
    decoder = Decoder.of(pictures, rule)
    sink = MemorySink(len(pictures.names), decoder.sides, str(pictures.place))
    notes = pour(decoder, sink).notes()
    return Images(torch.from_numpy(sink.array), tuple(notes))


@contextmanager
def _alone(pictures: Pictures, rule: Rule) -> Iterator[Path]:
    """The folder of the cache, for one process at a time that wants these pictures.

    Raises:
        BuildError: it cannot be written, or others can write it.
        OSError, NotImplementedError: it has no locks.
    """
    folder = place([cache_folder("images")], "").folder
    lock = FileLock(folder / f"{_identity(pictures, rule)}.lock", mode=0o600)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        _say(f"waiting for another process that decodes {pictures.place}")
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


def _identity(pictures: Pictures, rule: Rule) -> str:
    """A name for a source and a rule, whatever its content is."""
    text = f"{type(pictures).__name__}\0{pictures.place.resolve()}\0{rule}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _in_cache(folder: Path, pictures: Pictures, counts: tuple[int, int, int], rule: Rule) -> Images:
    """The images, mapped; decoded before that where the cache lacks them."""
    found, memory = stamp(pictures), folder / f"{_identity(pictures, rule)}.source.json"
    how = manner(counts, rule)
    key = _remembered(memory, found, how)
    at = Place(folder, key or content_key(pictures, how))
    entry = at.believed() or _filled(at, pictures, counts, rule)
    if key is None:
        if stamp(pictures).digest != found.digest:
            raise UserError(f"{pictures.place}: its files changed while they were read; run again when they are still")
        _remember(memory, found, how, at.key)
    return Images(at.mapped(entry), entry.notes, entry.content_hash)


def _filled(at: Place, pictures: Pictures, counts: tuple[int, int, int], rule: Rule) -> Entry:
    """The entry, decoded now."""
    sweep(at.folder)
    decoder = Decoder.of(pictures, rule)
    with private_file(at.images) as file:
        sink = FileSink(len(pictures.names), decoder.sides, file)
        changes = pour(decoder, sink)
    return at.describe(counts, sink.shape[1:], tuple(changes.notes()))


def _remembered(memory: Path, found: Stamp, how: str) -> str | None:
    """The key that files of this stamp had, decoded so; None where they were not seen before."""
    said = read_private_json(memory)
    known = isinstance(said, dict) and said.get("stamp") == found.digest and said.get("how") == how
    return str(said["key"]) if known and re.fullmatch("[0-9a-f]{64}", str(said.get("key"))) else None


def _remember(memory: Path, found: Stamp, how: str, key: str) -> None:
    """Keep the key for the next process, unless the files may still change within a tick of the clock."""
    if found.settled:
        with private_file(memory) as file:
            file.write(json.dumps({"stamp": found.digest, "how": how, "key": key}).encode())
