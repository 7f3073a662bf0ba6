"""Public data sets: read from a folder where they already lie, else through torchvision."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.limits import require_memory
from benchmarks.data.archives.headers import member_header, read_header
from benchmarks.data.dataset import Part, Request, Splits
from benchmarks.data.decoding import opened

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = {"train": "train-{kind}-ubyte.gz", "test": "t10k-{kind}-ubyte.gz"}
IDX_UINT8 = 0x08
PIECE = 1 << 20
MOST_IDX = 1 << 30
"""Bytes of an idx file; MNIST's images are 47 million."""
CELEBA_BOX = (15, 40, 163, 188)  # left, upper, right, lower of the aligned 178x218 image: Larsen et al. 2016
CELEBA_SIZE = 64
IMAGENET_TRAIN = tuple(f"train_data_batch_{i}.npz" for i in range(1, 11))
IMAGENET_TEST = "val_data.npz"
IMAGENET_HELD_OUT = 10_000
IMAGENET_ARCHIVES = {
    32: "Imagenet32_train_npz.zip and Imagenet32_val_npz.zip",
    64: "Imagenet64_train_part1_npz.zip, Imagenet64_train_part2_npz.zip and Imagenet64_val_npz.zip",
}
CHUNK = 4096
"""Images read at a time."""
SPLIT_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
SPLIT_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}


def read_mnist(request: Request) -> Splits:
    """MNIST: the official test images; the last 10,000 training images are for validation (50,000 / 10,000)."""
    where = "the four gzipped idx files, or their unpacked form, in {root}/MNIST/raw"
    return _with_held_out(_torchvision("MNIST", request, where), 10_000, "torchvision MNIST")


def read_fashion_mnist(request: Request) -> Splits:
    """Fashion-MNIST; the last 5,000 training images are for validation (55,000 / 5,000 / 10,000)."""
    if DEBIAN_FASHION_MNIST.is_dir():
        parts, origin = read_idx_folder(DEBIAN_FASHION_MNIST), "Debian's dataset-fashion-mnist"
    else:
        where = "the four unpacked idx files in {root}/FashionMNIST/raw (or, on Debian, install dataset-fashion-mnist)"
        parts, origin = _torchvision("FashionMNIST", request, where), "torchvision FashionMNIST"
    return _with_held_out(parts, 5_000, origin)


def read_cifar10(request: Request) -> Splits:
    """CIFAR-10; the last 5,000 training images are for validation (45,000 / 5,000 / 10,000)."""
    where = "the folder cifar-10-batches-py, or cifar-10-python.tar.gz, in {root}"
    return _with_held_out(_torchvision("CIFAR10", request, where), 5_000, "torchvision CIFAR10")


def read_svhn(request: Request) -> Splits:
    """SVHN, cropped digits; the last 5,000 training images are for validation (68,257 / 5,000 / 26,032)."""
    where = "train_32x32.mat and test_32x32.mat in {root}"
    return _with_held_out(_torchvision("SVHN", request, where, by_name=True), 5_000, "torchvision SVHN")


def read_celeba64(request: Request) -> Splits:
    """CelebA in its official splits: columns 15-163 and rows 40-188, then antialiased bilinear to 64x64."""
    where = "img_align_celeba/*.jpg, list_eval_partition.txt and the other annotation files in {root}/celeba"

    def part(split: str) -> Part:
        faces = _guarded("CelebA", request, where, split=split)
        paths = [Path(faces.root, faces.base_folder, "img_align_celeba", name) for name in faces.filename]
        return Part(torch.stack([_celeba_image(path) for path in paths]))

    note = f"torchvision CelebA, official splits, box {CELEBA_BOX}, antialiased bilinear to {CELEBA_SIZE}x{CELEBA_SIZE}"
    return Splits(part("train"), part("valid"), part("test"), note)


def read_imagenet32(request: Request) -> Splits:
    """ImageNet at 32x32 (Chrabaszcz et al. 2017): the official validation images are the test split."""
    return _downsampled_imagenet(request, 32)


def read_imagenet64(request: Request) -> Splits:
    """ImageNet at 64x64 (Chrabaszcz et al. 2017): the official validation images are the test split."""
    return _downsampled_imagenet(request, 64)


def read_idx_folder(folder: Path) -> dict[str, Part]:
    """Training and test part of a folder with the four gzipped idx files of the MNIST family."""
    parts = {}
    for split, name in IDX_FILES.items():
        images = read_idx(folder / name.format(kind="images-idx3"))
        labels = read_idx(folder / name.format(kind="labels-idx1"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise UserError(f"{folder}: expected (N, H, W) images and (N,) labels in '{split}', got {shapes}")
        parts[split] = Part(images.unsqueeze(1), labels.long())
    return parts


def read_idx(path: Path) -> Tensor:
    """The array of a gzipped idx file of unsigned bytes.

    Raises:
        UserError: missing or corrupt.
    """
    try:
        with gzip.open(path) as file:
            head = file.read(4)
            if head[:3] != bytes((0, 0, IDX_UINT8)):
                raise ValueError("no idx header of unsigned bytes")
            shape = np.frombuffer(file.read(4 * head[3]), ">u4", count=head[3]).tolist()
            size = min(math.prod(shape), MOST_IDX)
            parts = [file.read(min(PIECE, size + 1 - start)) for start in range(0, size + 1, PIECE)]
            array = np.frombuffer(b"".join(parts), np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{path}: expected a gzipped idx file, got {error}; fetch it again") from error
    return torch.from_numpy(array.copy())


def _downsampled_imagenet(request: Request, side: int) -> Splits:
    """The .npz batches; the last 10,000 training images, which are in random order there, are for validation."""
    folder = request.root / f"imagenet{side}"
    paths = [_imagenet_file(folder, name, side) for name in (*IMAGENET_TRAIN, IMAGENET_TEST)]
    parts = {"train": _imagenet_part(paths[:-1], side), "test": _imagenet_part(paths[-1:], side)}
    if len(parts["train"].images) <= IMAGENET_HELD_OUT:
        found = len(parts["train"].images)
        raise UserError(f"{folder}: expected more than {IMAGENET_HELD_OUT:,} training images, got {found:,}")
    origin = f"downsampled ImageNet, .npz release, {side}x{side}; the official validation images are the test split"
    return _with_held_out(parts, IMAGENET_HELD_OUT, origin)


def _imagenet_file(folder: Path, name: str, side: int) -> Path:
    """The file in the folder, or in one of its folders, as the archives unpack."""
    found = next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()), None)
    if found is None:
        archives = IMAGENET_ARCHIVES[side]
        raise UserError(
            f"{folder}: expected {name}, found none; get {archives} from https://image-net.org/download-images (free "
            "account) and unpack them there"
        )
    return found


def _imagenet_part(paths: Sequence[Path], side: int) -> Part:
    """Images and labels of the batches; no more memory than the images themselves and a chunk."""
    counts = []
    for path in paths:
        with _imagenet_batch(path, side) as (_, count):
            counts.append(count)
    require_memory(sum(counts) * 3 * side * side, f"{paths[0].parent}: its images", "use a machine with more")
    images, labels = np.empty((sum(counts), 3, side, side), np.uint8), np.empty(sum(counts), np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        with _imagenet_batch(path, side) as (rows, _):
            _fill(images[start : start + count], rows)
            labels[start : start + count] = _imagenet_labels(path, count)
        start += count
    return Part(torch.from_numpy(images), torch.from_numpy(labels))


@contextmanager
def _imagenet_batch(path: Path, side: int) -> Iterator[tuple[zipfile.ZipExtFile, int]]:
    """The bytes of the array `data` (N, 3 * side * side) of unsigned bytes, and N.

    Raises:
        UserError: another array, or a damaged file.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("data.npy") as rows:
            assert isinstance(rows, zipfile.ZipExtFile)
            member_header(archive, "data.npy")
            header = read_header(rows)
            if header.shape[1:] != (3 * side * side,) or header.dtype != np.uint8 or header.fortran:
                raise ValueError(f"{header.dtype} {header.shape}")
            yield rows, header.shape[0]
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        expected = f"an array 'data' (N, {3 * side * side}) of uint8 and 'labels' (N,)"
        raise UserError(f"{path}: expected {expected}, got {error}; fetch it again") from error


def _fill(images: np.ndarray, rows: zipfile.ZipExtFile) -> None:
    """Read all of `images` (N, C, H, W), a chunk at a time."""
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        raw = rows.read(part.nbytes)
        if len(raw) != part.nbytes:
            raise EOFError("fewer images than its header says")
        part[...] = np.frombuffer(raw, np.uint8).reshape(part.shape)


def _imagenet_labels(path: Path, count: int) -> np.ndarray:
    """Classes (N,) from 0; in the file they are 1 to 1000."""
    with zipfile.ZipFile(path) as archive:
        shape = member_header(archive, "labels.npy").shape
        if shape != (count,):
            raise ValueError(f"{count:,} images and labels {shape}")
        with archive.open("labels.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False).astype(np.int64) - 1


def _torchvision(name: str, request: Request, where: str, by_name: bool = False) -> dict[str, Part]:
    """Training and test part of a torchvision data set; `by_name`: its splits are named, not true or false."""
    parts = {}
    for split, choice in (SPLIT_BY_NAME if by_name else SPLIT_BY_FLAG).items():
        found = _guarded(name, request, where, **choice)
        labels = found.labels if by_name else found.targets
        parts[split] = Part(_channels_first(torch.as_tensor(found.data), by_name), torch.as_tensor(labels).long())
    return parts


def _guarded(name: str, request: Request, where: str, **choice: Any) -> Any:
    """The torchvision data set; whatever goes wrong becomes one line that says which files to put where."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision reports downloads on stdout
            maker = getattr(importlib.import_module("torchvision.datasets"), name)  # slow to import: only when used
            return maker(root=str(request.root), download=request.download, **choice)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        place = where.format(root=request.root)
        raise UserError(f"{name} could not be read ({reason}); expected {place}: put them there") from error


def _channels_first(images: Tensor, already: bool) -> Tensor:
    """(N, C, H, W) from (N, H, W), (N, H, W, C), or images that are `already` so."""
    if images.ndim == 3:
        return images.unsqueeze(1)
    return images if already else images.permute(0, 3, 1, 2)


def _with_held_out(parts: dict[str, Part], held_out: int, origin: str) -> Splits:
    """The official test part, and the training part whose last `held_out` images are for validation."""
    train = parts["train"]
    note = f"{origin}; the last {held_out} training images are the validation split"
    return Splits(train[:-held_out], train[-held_out:], parts["test"], note)


def _celeba_image(path: Path) -> Tensor:
    """One face as (3, 64, 64) uint8."""
    with opened(path, "unpack img_align_celeba again") as face:
        size = (CELEBA_SIZE, CELEBA_SIZE)
        small = face.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=CELEBA_BOX)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
