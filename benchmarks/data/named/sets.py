"""Faces and scenes of 128x128 and 256x256, whose files are had by hand: which splits were published, where they lie.

Their validation split is the test split here; ours is cut from their training images, a tenth by the hash of the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.base.errors import UserError
from benchmarks.data.cache.pictures import Origin
from benchmarks.data.dataset import Request, Splits
from benchmarks.data.decoding import Rule
from benchmarks.data.files import KINDS, Search, archive_origin, by_name, folder_origin, read_origin
from benchmarks.data.order import cut

FORMS = "images, or .npy, .tar, .parquet or LMDB files of them, named or in folders named train and validation"
LSUN, LSUN_SIDES = ("bedroom", "church", "tower"), (128, 256)
LSUN_HELD_OUT = 300
"""Validation images of each kind of scene (Yu et al. 2015)."""
CELEBAHQ, FFHQ = (27_000, 3_000), (63_000, 7_000)
"""Images of the published splits, train and validation."""
FFHQ_SEED = 5
"""Of the permutation (numpy's `RandomState`) of all 70,000 images whose last 7,000 VDVAE validates and tests on."""


@dataclass(frozen=True)
class NamedSet:
    """A published set.

    Args:
        folder: below the folder of downloads.
        side: pixels of its images, to which those of other sizes are cropped and resized.
        counts: images of the published splits, train (None: any number) and validation.
        how: how it is had.
        seed: of the permutation that splits files which come in one piece; None where there is no such rule.
    """

    folder: str
    side: int
    counts: tuple[int | None, int]
    how: str
    seed: int | None = None

    def read(self, request: Request) -> Splits:
        """The images in their published splits.

        Raises:
            UserError: other images, or none.
        """
        return read_origin(self._origin(request.root / self.folder))

    def splits(self, search: Search) -> tuple[dict[str, list[str]], str]:
        """The names of each split, and by which rule."""
        found = by_name(search)
        if set(found) == {None}:
            found = self._permuted(search)
        train, held_out = found.get("train", []), found.get("test", found.get("validation", []))
        wanted = self.counts[0] or len(train), self.counts[1]
        if not train or (len(train), len(held_out)) != wanted or None in found:
            raise self._others(search.folder, found)
        splits = _chosen(train, cut(train, ["validation"], str(search.folder))) | {"test": held_out}
        return splits, "published splits, their validation images for testing, ours cut from train by hash of file name"

    def _permuted(self, search: Search) -> dict[str | None, list[str]]:
        """Files in one piece, cut as published."""
        names, (first, held_out) = search.found, self.counts
        if self.seed is None or first is None or len(names) != first + held_out:
            return {None: list(names)}
        order = np.random.RandomState(self.seed).permutation(len(names))
        return {"train": [names[i] for i in order[:first]], "validation": [names[i] for i in order[first:]]}

    def _origin(self, place: Path) -> Origin:
        """The files in the folder, of the first kind of which there are any."""
        if not place.is_dir():
            raise UserError(f"{place}: expected {FORMS}, found no such folder; {self.how}")
        rule = Rule(self.side)
        kind = next((kind for kind, files in KINDS.items() if files.files(place)), None)
        if kind is None:
            return folder_origin(place, rule, self.splits)
        return archive_origin(kind, place, rule, {}, self.splits)

    def _others(self, place: Path, found: dict[str | None, list[str]]) -> UserError:
        """The error for other splits than the published ones."""
        train, held_out = f"{self.counts[0]:,}" if self.counts[0] else "any number of", self.counts[1]
        counts = ", ".join(f"{len(names):,} {split or 'of no split'}" for split, names in found.items())
        return UserError(f"{place}: expected {train} train and {held_out:,} validation, found {counts}; {self.how}")


def _chosen(names: Sequence[str], index: dict[str, list[int]]) -> dict[str, list[str]]:
    return {split: [names[i] for i in positions] for split, positions in index.items()}


CELEBAHQ256 = NamedSet("celebahq256", 256, CELEBAHQ, "get CelebA-HQ in NVAE's split, 27,000 train and 3,000 validation")
FFHQ256 = NamedSet(
    "ffhq256",
    256,
    FFHQ,
    "get FFHQ from https://github.com/NVlabs/ffhq-dataset: 70,000 images in their order, of any size (a folder, or "
    "VDVAE's .npy), or NVAE's split of them",
    FFHQ_SEED,
)
SCENES = {
    f"lsun-{scene}{side}": NamedSet(
        f"lsun-{scene}",
        side,
        (None, LSUN_HELD_OUT),
        "get the train and val LMDB of the scene by https://github.com/fyu/lsun and unpack both there (extra 'lmdb')",
    )
    for scene in LSUN
    for side in LSUN_SIDES
}
