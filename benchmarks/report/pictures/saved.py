"""The images that trials have left for figures, checked; no matplotlib, so that they are read before it is imported."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.base.errors import UserError
from benchmarks.records.record import RunRecord
from benchmarks.report.rows import Row, trials_by_row

Images = np.ndarray[Any, np.dtype[np.uint8]]  # (N, H, W, C)
Arrays = dict[str, np.ndarray[Any, Any]]

T = TypeVar("T")
FILE = "images.npz"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError)
"""What numpy and zipfile raise of a file that is no archive of arrays, besides errors of their own."""


@dataclass(frozen=True)
class SavedImages:
    """The images of one trial; `samples` is None for a model without a prior, `seed` where it is not known.

    `samples_prior_statistics` are of the same latents, with batch-norm statistics of images from the prior.
    """

    originals: Images
    reconstructions: Images
    samples: Images | None = None
    samples_prior_statistics: Images | None = None
    seed: int | None = None


def read_arrays(path: Path) -> Arrays:
    """All arrays of an .npz file.

    Raises:
        UserError: it cannot be read, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error, MemoryError, OverflowError) as error:
        raise damaged(path, "an archive of arrays", str(error) or type(error).__name__) from error


def load_images(folder: Path) -> SavedImages | None:
    """The images in the trial's folder, None where none were saved.

    Raises:
        UserError: a file that holds no such images.
    """
    path = folder / FILE
    if not path.exists():
        return None
    arrays = read_arrays(path)
    for name in ("originals", "reconstructions"):
        if name not in arrays:
            raise damaged(path, f"an array '{name}'", f"{sorted(arrays)}")
    names = ("originals", "reconstructions", "samples", "samples_prior_statistics")
    images = {name: arrays[name] for name in names if name in arrays}
    shape = images["originals"].shape[1:]
    for name, found in images.items():
        fits = found.dtype == np.uint8 and found.ndim == 4 and found.size and found.shape[-1] in (1, 3)
        if not fits or found.shape[1:] != shape:
            kind = f"{found.dtype} {found.shape}"
            raise damaged(path, f"'{name}' as uint8 (N, H, W, 1 or 3), all of one size", kind)
    samples, refitted = images.get("samples"), images.get("samples_prior_statistics")
    return SavedImages(images["originals"], images["reconstructions"], samples, refitted)


def images_by_label(rows: Sequence[Row], trials: Mapping[Path, RunRecord]) -> dict[str, SavedImages]:
    """The saved images of each row's first seed that has any, by label.

    Raises:
        UserError: as `load_images`.
    """
    found = first_by_label(rows, trials, load_images)
    return {label: dataclasses.replace(images, seed=record.seed) for label, (images, record) in found.items()}


def first_by_label(
    rows: Sequence[Row], trials: Mapping[Path, RunRecord], load: Callable[[Path], T | None]
) -> dict[str, tuple[T, RunRecord]]:
    """What `load` finds in the folder of each row's first seed that has any, with the seed's record, by label."""
    found = {}
    for row, own in zip(rows, trials_by_row(rows, trials), strict=True):
        for folder, record in own.items():
            loaded = load(folder)
            if loaded is not None:
                found[row.label] = loaded, record
                break
    return found


def damaged(path: Path, expected: str, found: str) -> UserError:
    """That a file of a trial cannot be used."""
    return UserError(f"{path}: expected {expected}, got {found}; remove that file or run the trial again")
