"""The galleries that trials have left for the page (`evaluation.gallery` makes them), checked; no matplotlib."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records.record import GALLERY, RunRecord
from benchmarks.report.pictures.saved import Arrays, Images, damaged, first_by_label, read_arrays
from benchmarks.report.rows import Row

Numbers = np.ndarray[Any, np.dtype[np.float64]]

PICTURES = {
    "at_temperature": 2,
    "interpolations": 2,
    "finer_redrawn": 3,
    "coarser_redrawn": 3,
    "samples": 1,
    "neighbours": 1,
}
"""Pictures by name, with the number of axes before (H, W, C)."""
NUMBERS = ("temperatures", "cuts", "sample_errors", "test_errors")
"""What pictures are of, and how near samples and test images are to training images: (N,)."""
BLOCKS = (
    ("temperatures", "at_temperature"),
    ("interpolations",),
    ("cuts", "finer_redrawn", "coarser_redrawn"),
    ("samples", "neighbours", "sample_errors", "test_errors"),
)
"""What a page shows together, all of it or nothing."""
ALIKE = (("temperatures", 0, "at_temperature", 0), ("cuts", 0, "finer_redrawn", 1), ("cuts", 0, "coarser_redrawn", 1))
"""Array, axis, array, axis: as many in both."""


@dataclass(frozen=True)
class Gallery:
    """The pictures (..., H, W, C) and numbers (N,) of one trial by name, some blocks or none; `seed` is the trial's."""

    pictures: Mapping[str, Images] = field(default_factory=dict)
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    seed: int | None = None


def load_gallery(folder: Path) -> Gallery | None:
    """The gallery in the trial's folder, None where none was made.

    Raises:
        UserError: a file that holds no such pictures.
    """
    path = folder / GALLERY
    if not path.exists():
        return None
    arrays = read_arrays(path)
    expected = _expected(arrays)
    if expected:
        raise damaged(path, expected, str({name: f"{one.dtype} {one.shape}" for name, one in arrays.items()}))
    numbers = {name: arrays[name].astype(np.float64) for name in NUMBERS if name in arrays}
    return Gallery({name: arrays[name] for name in PICTURES if name in arrays}, numbers)


def galleries_by_label(rows: Sequence[Row], trials: Mapping[Path, RunRecord]) -> dict[str, Gallery]:
    """The gallery of each row's first seed that has one, by label.

    Raises:
        UserError: as `load_gallery`.
    """
    found = first_by_label(rows, trials, load_gallery)
    return {label: dataclasses.replace(gallery, seed=record.seed) for label, (gallery, record) in found.items()}


def _expected(arrays: Arrays) -> str:
    """What was expected of the arrays and does not hold; "" where all does."""
    for block in BLOCKS:
        held = [name for name in block if name in arrays]
        if held and len(held) < len(block):
            return f"{', '.join(block)} together"
    for name, axes in PICTURES.items():
        if name in arrays and not _are_pictures(arrays[name], axes):
            return f"'{name}' as uint8 ({'N, ' * axes}H, W, 1 or 3)"
    for name in NUMBERS:
        if name in arrays and not _are_numbers(arrays[name]):
            return f"'{name}' as finite numbers (N,)"
    for first, axis, second, other in ALIKE:
        if first in arrays and arrays[first].shape[axis] != arrays[second].shape[other]:
            return f"as many {first} as in '{second}'"
    if "samples" in arrays and arrays["samples"].shape != arrays["neighbours"].shape:
        return "as many neighbours as samples"
    if "samples" in arrays and len(arrays["sample_errors"]) < len(arrays["samples"]):
        return "an error for every sample"
    return ""


def _are_pictures(found: np.ndarray[Any, Any], axes: int) -> bool:
    return bool(found.dtype == np.uint8 and found.ndim == axes + 3 and found.size and found.shape[-1] in (1, 3))


def _are_numbers(found: np.ndarray[Any, Any]) -> bool:
    return bool(found.dtype.kind in "iuf" and found.ndim == 1 and found.size and np.isfinite(found).all())
