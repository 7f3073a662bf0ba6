"""What a data set is: fixed, disjoint splits of 8-bit images, and the hash of their content."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.tensor_files import write_tensors
from benchmarks.data.cache.mapped import picked
from models.output import ImageShape

Images = UInt8[Tensor, "_ C H W"]
HASHED_TOGETHER = 1 << 26
"""Bytes of images that are copied to be hashed, where they lie in a file."""


@dataclass(frozen=True)
class DataSet:
    """Fixed, disjoint splits of 8-bit images.

    Args:
        name: as given to `load`.
        image: shape of one image.
        train, validation, test: (N, C, H, W) uint8; nothing is ever chosen on the test split.
        content_hash: SHA-256 over shape and bytes of the three splits.
        extractor: registry name of the default feature extractor, or None if there is none for this data.
        note: where the images came from and how they were cut.
    """

    name: str
    image: ImageShape
    train: Images
    validation: Images
    test: Images
    content_hash: str
    extractor: str | None
    note: str


@dataclass(frozen=True)
class Part:
    """One split as it was read: images (N, C, H, W) uint8, and class labels (N,) where there are any."""

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"] | None = None

    def __getitem__(self, index: slice | Tensor) -> Part:
        return Part(self.images[index], None if self.labels is None else self.labels[index])


@dataclass(frozen=True)
class Splits:
    """The three splits as a reader gives them, with their `content_hash` where the reader knows it already."""

    train: Part
    validation: Part
    test: Part
    note: str
    content_hash: str | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class Request:
    """What a reader is asked for: the text behind the colon of `folder:` and `npz:`, and where to look."""

    argument: str
    root: Path
    download: bool


@dataclass(frozen=True)
class Source:
    """One entry of the registry: a line of description, the reader and the default feature extractor."""

    description: str
    read: Callable[[Request], Splits]
    extractor: str | None = None


def cache_folder(*parts: str) -> Path:
    """The folder for what can be fetched or computed again: $XDG_CACHE_HOME or ~/.cache, then vaebench/...

    Without a home it is below the folder for temporary files.
    """
    home = user_path("~")
    base = os.environ.get("XDG_CACHE_HOME") or (home / ".cache" if home != Path("~") else tempfile.gettempdir())
    return Path(base, "vaebench", *parts)


def user_path(argument: str) -> Path:
    """The path with ~ put in; as it is where there is no such home."""
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        return Path(argument)


def content_hash(*splits: UInt8[Tensor, "..."]) -> str:
    """SHA-256 (hex) over the shape and the bytes of every split, in order."""
    digest = hashlib.sha256()
    for images in splits:
        digest.update(str(tuple(images.shape)).encode())
        together = max(1, HASHED_TOGETHER // max(1, images[:1].numel()))
        for start in range(0, len(images), together):
            digest.update(picked(images, slice(start, start + together)).contiguous().numpy().data)
    return digest.hexdigest()


def parts_hash(parts: dict[str, Part]) -> str:
    """SHA-256 (hex) over images and class labels of every split, in order."""
    labels = [part.labels.to(torch.uint8) for part in parts.values() if part.labels is not None]
    return content_hash(*(part.images for part in parts.values()), *labels)


def made_once(name: str, expected: str, make: Callable[[], dict[str, Part]], advice: str) -> dict[str, Part]:
    """The splits of `make`, which every machine must make alike: those whose `parts_hash` is `expected`.

    Kept in the cache folder, and read from there where they are the expected ones.

    Raises:
        UserError: other images were made; `advice` says what to do.
    """
    path = cache_folder("made", f"{name}-{expected[:16]}.safetensors")
    parts = _read_parts(path)
    if parts is not None and parts_hash(parts) == expected:
        return parts
    parts = make()
    found = parts_hash(parts)
    if found != expected:
        raise UserError(f"data set '{name}': expected images of hash {expected[:16]}, made {found[:16]}; {advice}")
    _write_parts(path, parts)
    return parts


def _read_parts(path: Path) -> dict[str, Part] | None:
    """The splits in the file, or None if it is missing or unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [key.removesuffix(".images") for key in file.keys() if key.endswith(".images")]  # noqa: SIM118
            found = {name: (file.get_tensor(f"{name}.images"), file.get_tensor(f"{name}.labels")) for name in names}
        return {name: Part(*found[name]) for name in ("train", "validation", "test")}
    except (SafetensorError, OSError, KeyError):
        return None


def _write_parts(path: Path, parts: dict[str, Part]) -> None:
    """Write the splits; where that fails, the next call makes them again."""
    images = {f"{name}.images": part.images for name, part in parts.items()}
    labels = {f"{name}.labels": part.labels for name, part in parts.items() if part.labels is not None}
    try:
        write_tensors(path, images | labels, {})
    except OSError as error:
        logging.getLogger(__name__).warning("images are not cached: %s", error)


def build(name: str, splits: Splits, extractor: str | None) -> DataSet:
    """The checked data set of `splits`.

    Raises:
        UserError: an empty split, splits of different shapes, or neither 1 nor 3 channels.
    """
    shapes = {split: tuple(part.images.shape[1:]) for split, part in splits.parts.items()}
    for split, part in splits.parts.items():
        if part.images.dtype != torch.uint8 or part.images.ndim != 4 or part.images.numel() == 0:
            found = f"{part.images.dtype} {tuple(part.images.shape)}"
            raise UserError(f"data set '{name}': expected images (N, C, H, W) of uint8 in '{split}', got {found}")
    if len(set(shapes.values())) > 1 or shapes["train"][0] not in (1, 3):
        raise UserError(f"data set '{name}': expected one image shape with 1 or 3 channels, got (C, H, W) = {shapes}")
    train, validation, test = (part.images.contiguous() for part in splits.parts.values())
    digest = splits.content_hash or content_hash(train, validation, test)
    return DataSet(name, ImageShape(*shapes["train"]), train, validation, test, digest, extractor, splits.note)
