"""Features of images: what an extractor is, and a cache that trusts content only."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmarks.base.batches import Batches, Layers, Task, in_batches
from benchmarks.base.errors import UserError
from benchmarks.base.tensor_files import write_tensors
from benchmarks.data import content_hash, keyed_generator
from benchmarks.data.cache.mapped import Copies
from benchmarks.metrics.frechet import FeatureStatistics, joined

Images = UInt8[Tensor, "_ C H W"]
CACHE_FORMAT = "1"
MOST_COMPARED = 50_000
"""Images whose features are held: what compares images in pairs takes so many of a larger set."""
BLOCK = 10_000
"""Of a larger set, images whose features are held on the way to its statistics."""


@dataclass(frozen=True)
class Features:
    """Features (N, D) and class logits (N, K), float64 on the CPU; no logits from an extractor without classes.

    Of more than `MOST_COMPARED` images these are as many, drawn by a fixed stream, and `whole` are statistics of all.
    """

    values: Float64[Tensor, "N D"]
    logits: Float64[Tensor, "N K"] | None
    whole: FeatureStatistics | None = None

    @property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of all images' features."""
        return self.whole or FeatureStatistics.of(self.values)

    @property
    def n(self) -> int:
        """Number of the images."""
        return self.whole.n if self.whole else len(self.values)

    def room(self, n: int) -> Features:
        """Room for the like of so many images, in one piece: small ones that are kept would scatter the memory."""
        logits = None if self.logits is None else self.logits.new_empty(n, self.logits.shape[1])
        return Features(self.values.new_empty(n, self.values.shape[1]), logits)

    def put(self, found: Features, chosen: Tensor, start: int) -> None:
        """Take in the chosen rows (N,), from row `start` on."""
        end = start + int(chosen.sum())
        self.values[start:end] = found.values[chosen]
        if self.logits is not None and found.logits is not None:
            self.logits[start:end] = found.logits[chosen]


class Network(nn.Module):
    """Base of the extractors' networks; one of torch-fidelity, which is slow to import, may stand in its place.

    `forward` takes 8-bit images (B, C, H, W) and returns a tuple in the order of `features_list`, which names
    "features" and maybe "logits".
    """

    def __init__(self, name: str, features_list: list[str]) -> None:
        super().__init__()
        self.name, self.features_list = name, features_list


@dataclass(frozen=True)
class Extractor:
    """A frozen network with everything that identifies its features.

    Args:
        name: its key in the registry.
        version: version of weights and preprocessing.
        weights_sha256: SHA-256 of the weights' file, checked when it was read.
        preprocessing: rule from 8-bit images to the network's input, in words.
        dims: number of features D, at least 2.
        channels: numbers of image channels it takes.
        size: the only height and width it takes, or None for any.
        network: a `Network`, in float64 and evaluation mode.
        batches: what runs its loop over images.
    """

    name: str
    version: str
    weights_sha256: str
    preprocessing: str
    dims: int
    channels: tuple[int, ...]
    size: int | None
    network: nn.Module
    batches: Batches = in_batches

    def features(self, images: Tensor, batch_size: int = 250) -> Features:
        """Features of 8-bit images (N, C, H, W); the batch size moves them by float64 rounding only.

        Raises:
            UserError: images of a shape that the extractor does not take.
        """
        self._check(images)
        few = len(images) <= MOST_COMPARED
        return self._of_all(images, batch_size) if few else self._of_many(images, batch_size)

    def _of_all(self, images: Tensor, batch_size: int) -> Features:
        """Features of all the images."""
        task = Task("extractor", self.network, _features, Copies(images))
        layers = self.batches(_key(images, self), len(images), batch_size, task)
        return Features(layers["features"], layers.get("logits"))

    def _of_many(self, images: Tensor, batch_size: int) -> Features:
        """Features of some of the images and statistics of all: a block of them is held at a time."""
        order = torch.randperm(len(images), generator=keyed_generator(0, "compared images"))
        held = torch.zeros(len(images), dtype=torch.bool).index_fill_(0, order[:MOST_COMPARED], True)
        kept, filled, whole = Features(torch.empty(0, 0, dtype=torch.float64), None), 0, None
        for block, chosen in zip(_blocks(images), _blocks(held), strict=True):
            found = self._of_all(block, batch_size)
            kept = kept if whole else found.room(MOST_COMPARED)
            kept.put(found, chosen, filled)
            filled += int(chosen.sum())
            whole = joined(whole, found.statistics) if whole else found.statistics
        return Features(kept.values, kept.logits, whole)

    def require_shape(self, channels: int, height: int, width: int) -> None:
        """Raise UserError unless the extractor takes images of that shape."""
        if channels not in self.channels or (self.size is not None and (height, width) != (self.size, self.size)):
            raise UserError(f"extractor '{self.name}': expected {self._takes}, got {channels} x {height} x {width}")

    @property
    def _takes(self) -> str:
        sides = "any size" if self.size is None else f"{self.size}x{self.size}"
        return f"uint8 images of {' or '.join(map(str, self.channels))} channel(s) and {sides}"

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or len(images) == 0:
            raise UserError(
                f"extractor '{self.name}': expected {self._takes}, got {images.dtype} {tuple(images.shape)}"
            )
        _, channels, height, width = images.shape
        self.require_shape(channels, height, width)


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of about `BLOCK` rows each, none of them of a single row."""
    return rows.tensor_split(-(-len(rows) // BLOCK))


@torch.no_grad()
def _features(network: nn.Module, images: Tensor, start: int, end: int) -> Layers:
    """The layers of a batch of images, by name."""
    found = zip(network.features_list, network(images), strict=True)  # type: ignore[call-overload]
    return {layer: values.double().cpu() for layer, values in found}


def cached_features(images: Images, extractor: Extractor, folder: Path | None) -> Features:
    """`extractor.features(images)`, read from `folder` if the same was computed before.

    The file's name is a hash over images, weights, preprocessing, number of images and torch version, and the file
    repeats its name and holds a hash of its values: a file that does not fit is computed again. None: no cache.
    """
    if folder is None:
        return extractor.features(images)
    path = folder / f"{_key(images, extractor)}.safetensors"
    found = _read(path)
    if found is None:
        found = extractor.features(images)
        _write(path, found)
    return found


def _key(images: Images, extractor: Extractor) -> str:
    parts = [
        CACHE_FORMAT,
        content_hash(images),
        extractor.name,
        extractor.version,
        extractor.weights_sha256,
        extractor.preprocessing,
        len(images),
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def _read(path: Path) -> Features | None:
    """The features in the file, or None if it is missing, unreadable or not what was written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    if "values" not in tensors or written != {"key": path.stem, "digest": _digest(tensors)}:
        return None
    whole = None
    if "n" in tensors:
        whole = FeatureStatistics(tensors["mean"], tensors["covariance"], int(tensors["n"]))
    return Features(tensors["values"], tensors.get("logits"), whole)


def _write(path: Path, features: Features) -> None:
    """Write the features with their hash; where that fails, the next run computes them again."""
    tensors = {"values": features.values}
    if features.logits is not None:
        tensors["logits"] = features.logits
    if features.whole is not None:
        whole = features.whole
        tensors |= {"mean": whole.mean, "covariance": whole.covariance, "n": torch.tensor(whole.n)}
    try:
        write_tensors(path, tensors, {"key": path.stem, "digest": _digest(tensors)})
    except OSError as error:
        logging.getLogger(__name__).warning("features are not cached: %s", error)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
