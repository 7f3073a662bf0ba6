"""Colour patches of photographs that packages ship, split by photograph; photographs.csv lists them with licences."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.data.dataset import Part, Request, Splits, content_hash, made_once
from benchmarks.data.decoding import opened
from benchmarks.data.embedded import package_file
from benchmarks.data.order import hash_order

TABLE = Path(__file__).with_name("photographs.csv")
BACKGROUNDS = Path("/usr/share/backgrounds")
PATCH = 32
LARGE, REDUCTION = 1000, 2  # photos with a side of more pixels are halved: means over 2x2
LEAST_SPAN = 16  # levels between the darkest and the brightest pixel of some channel: less is a flat patch, left out
WHEELS = {"scikit-learn": ("sklearn", "datasets/images"), "scikit-image": ("skimage", "data")}
INSTALL = "pip install -e '.[photos]'"
HASHES = {
    "photos-32": "bf6ba46728747613d0f7bc6571c255f70389a3c491d41e8c8234deabd35faf21",
    "photos-32-small": "4b2a68572aa920da19f6b16989c0dddc324512b85d8a94b2724eabdbdf2bc9a2",
}
RULE = (
    f"{PATCH}x{PATCH} tiles without overlap, large photos halved, flat tiles left out; each photo in one split; "
    f"photos, authors and licences: benchmarks/data/{TABLE.name}"
)


@dataclass(frozen=True)
class Photograph:
    """A row of the table: `path` below its package's folder; `sha256`, the `content_hash` of its patches."""

    path: str
    package: str
    split: str
    licence: str
    author: str
    sha256: str


@cache
def photographs(small: bool) -> tuple[Photograph, ...]:
    """Those of `photos-32`, or of its `small` part from Python packages alone; the index is the class label."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        table = tuple(Photograph(**row) for row in csv.DictReader(file))
    return tuple(row for row in table if row.package in WHEELS) if small else table


def read_photos(request: Request) -> Splits:
    """32x32 patches of 31 photographs in Python and Debian packages; class labels are the photographs."""
    return _read("photos-32", photographs(small=False), request)


def read_small_photos(request: Request) -> Splits:
    """32x32 patches of the six of these photographs that Python packages ship."""
    return _read("photos-32-small", photographs(small=True), request)


def patches_of(pixels: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "N 3 32 32"]:
    """The tiles of a grid from the upper left corner, row by row, without those that are flat."""
    tiles = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(0, 1)
    span = tiles.amax(dim=(2, 3)).int() - tiles.amin(dim=(2, 3)).int()  # (N, 3)
    return tiles[span.amax(dim=1) >= LEAST_SPAN]


def _read(name: str, table: tuple[Photograph, ...], request: Request) -> Splits:
    advice = f"{TABLE.name} does not fit this version: install again"
    parts = made_once(name, HASHES[name], lambda: _make(table, request.root / "backgrounds"), advice)
    counts = ", ".join(
        f"{len(part.labels.unique())} for {split}" for split, part in parts.items() if part.labels is not None
    )
    return Splits(parts["train"], parts["validation"], parts["test"], f"{len(table)} photographs ({counts}); {RULE}")


def _make(table: tuple[Photograph, ...], unpacked: Path) -> dict[str, Part]:
    """The patches of all photographs of each split, in the order of a hash."""
    paths = [_find(photo, unpacked) for photo in table]  # all before the first is read
    parts = {}
    for split in ("train", "validation", "test"):
        images, labels, keys = [], [], []
        for label, (photo, path) in enumerate(zip(table, paths, strict=True)):
            if photo.split == split:
                images.append(_checked_patches(photo, path))
                labels += [label] * len(images[-1])
                keys += [f"{photo.path}/{i}" for i in range(len(images[-1]))]
        order = torch.tensor(hash_order(keys))
        parts[split] = Part(torch.cat(images)[order], torch.tensor(labels)[order])
    return parts


def _find(photo: Photograph, unpacked: Path) -> Path:
    """Where the photograph lies: in a Python package, in the system's backgrounds, or in `unpacked`.

    Raises:
        UserError: nowhere; how to install it.
    """
    if photo.package in WHEELS:
        package, folder = WHEELS[photo.package]
        return package_file(package, f"{folder}/{photo.path}", INSTALL)
    found = next((folder / photo.path for folder in (BACKGROUNDS, unpacked) if (folder / photo.path).is_file()), None)
    if found is None:
        debian = sorted({row.package for row in photographs(small=False)} - WHEELS.keys())
        todo = f"apt-get install {' '.join(debian)}, or unpack their {BACKGROUNDS} there, or use photos-32-small"
        raise UserError(f"expected {photo.path} in {BACKGROUNDS} or {unpacked}, found none; {todo}")
    return found


def _checked_patches(photo: Photograph, path: Path) -> Tensor:
    """The photograph's patches (N, 3, 32, 32).

    Raises:
        UserError: no image, or another than the table's.
    """
    with opened(path, f"install {photo.package} again") as image:
        colour = image.convert("RGB")
    reduced = colour.reduce(REDUCTION) if max(colour.size) > LARGE else colour
    patches = patches_of(torch.from_numpy(np.asarray(reduced).copy()).permute(2, 0, 1))
    found = content_hash(patches)
    if found != photo.sha256:
        expected = f"the photograph whose patches have hash {photo.sha256[:16]}, got {found[:16]}"
        raise UserError(f"{path}: expected {expected}; install {photo.package} of another version")
    return patches
