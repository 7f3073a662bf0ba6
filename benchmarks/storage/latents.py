"""Latents of images on disk: one safetensors file, written and read some images at a time.

`group00.z`, `group00.mean` and `group00.scale` (n, Z, h, w) float32, `group01.z` and so on, coarse -> fine. Where
channels were dropped, `group00.channels` (K,) int64 names those that are held, and the others are (n, K, h, w).
docs/latents.md tells it to users.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.files import written_atomically
from benchmarks.base.tensor_files import beginning, raw
from benchmarks.storage.tensors import KEY, opened
from models.latents import GroupLatents
from models.output import ImageShape, LatentShape

SUFFIX = ".safetensors"
PARTS = ("z", "mean", "scale")
CHANNELS = "channels"
FILE = "file of latents"
Add = Callable[[Sequence[GroupLatents]], None]
"""Takes the latents of the next images, coarse -> fine."""


@dataclass(frozen=True)
class LatentsHead:
    """What a file of latents says of itself.

    Args:
        checkpoint: `weights_hash` of the model.
        model: label of its row.
        data: the data set's name; `split` is "" for the images of a file.
        n: number of images, the first ones of the split.
        image: shape of one image.
        groups: shapes of the model's latent groups, coarse -> fine, all channels included.
        at_mean: every z is its posterior's mean, else a draw keyed by `seed`.
        version: of the suite that wrote it.
    """

    checkpoint: str
    model: str
    data: str
    split: str
    n: int
    image: ImageShape
    groups: tuple[LatentShape, ...]
    at_mean: bool
    seed: int
    version: str

    @classmethod
    def of(cls, stored: dict[str, Any]) -> LatentsHead:
        """The head whose fields are `stored`; KeyError or TypeError where they are others."""
        groups = tuple(LatentShape(**shape) for shape in stored["groups"])
        return cls(**stored | {"groups": groups, "image": ImageShape(**stored["image"])})

    @property
    def count(self) -> int:
        """Latents of one image in all groups."""
        return sum(shape.count for shape in self.groups)


def group_name(index: int) -> str:
    """How the tensors of a group begin: "group00" for the coarsest."""
    return f"group{index:02d}"


@contextmanager
def written(path: Path, head: LatentsHead, channels: Sequence[Tensor | None] = ()) -> Iterator[Add]:
    """Write the latents of `head.n` images, handed over in order, to `path`, which is there whole or not at all.

    `channels` are, for each group, the indices of the channels that are held, None for all.
    """
    channels = channels or [None] * len(head.groups)
    indices: dict[str, Tensor] = {}
    rows: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for index, (shape, held) in enumerate(zip(head.groups, channels, strict=True)):
        count = shape.channels if held is None else len(held)
        kind = torch.float32, (head.n, count, shape.height, shape.width)
        rows |= {f"{group_name(index)}.{part}": kind for part in PARTS}
        indices |= {} if held is None else {f"{group_name(index)}.{CHANNELS}": held.to(torch.int64)}
    whole = {name: (tensor.dtype, tensor.shape) for name, tensor in indices.items()}
    start, places = beginning({**whole, **rows}, {KEY: json.dumps({"latents": dataclasses.asdict(head)})})
    done = 0
    with written_atomically(path) as file:
        file.write(start)
        for tensor in indices.values():
            file.write(raw(tensor))

        def add(groups: Sequence[GroupLatents]) -> None:
            nonlocal done
            for index, group in enumerate(groups):
                for part in PARTS:
                    values = getattr(group, part).float()
                    file.seek(places[f"{group_name(index)}.{part}"] + done * values[0].numel() * values.element_size())
                    file.write(raw(values))
            done += len(groups[0].z)

        yield add
        if done != head.n:
            raise ValueError(f"expected the latents of {head.n} images, got those of {done}")


class LatentsFile:
    """A file of latents; only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        """Open it and read its head.

        Raises:
            UserError: missing, corrupt or foreign file.
        """
        self.path = path
        self._file, metadata = opened(path, FILE)
        try:
            self.head = LatentsHead.of(metadata["latents"])
            self._names = set(self._file.keys())
            self.held = [self._held(index) for index in range(len(self.head.groups))]
            self._require_shapes()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{FILE} {path}: expected what `encode` of this version wrote: {error}") from error

    def read(self, start: int, stop: int, groups: int) -> tuple[GroupLatents, ...]:
        """Latents of the images from `start` up to `stop`, of the first `groups` groups."""
        found: list[GroupLatents] = []
        for index in range(groups):
            z, mean, scale = (self._file.get_slice(f"{group_name(index)}.{part}")[start:stop] for part in PARTS)
            found.append(GroupLatents(z, mean, scale, self.held[index]))
        return tuple(found)

    def latents(self, groups: int) -> int:
        """How many latents of one image the first `groups` groups hold."""
        shapes = self.head.groups[:groups]
        held = (shape.channels if at is None else len(at) for shape, at in zip(shapes, self.held, strict=False))
        return sum(count * shape.height * shape.width for count, shape in zip(held, shapes, strict=True))

    def _held(self, index: int) -> Tensor | None:
        """Indices of the channels that a group holds, None for all."""
        name = f"{group_name(index)}.{CHANNELS}"
        if name not in self._names:
            return None
        held = self._file.get_tensor(name)
        if held.tolist() != sorted(set(held.tolist()) & set(range(self.head.groups[index].channels))):
            raise ValueError(f"{name} holds {held.tolist()}")
        return held

    def _require_shapes(self) -> None:
        """Raise ValueError or KeyError where tensors are missing or of another shape than the head says."""
        for index, (shape, held) in enumerate(zip(self.head.groups, self.held, strict=True)):
            count = shape.channels if held is None else len(held)
            for part in PARTS:
                name = f"{group_name(index)}.{part}"
                if name not in self._names:
                    raise KeyError(name)
                found = self._file.get_slice(name).get_shape()
                if found != [self.head.n, count, shape.height, shape.width]:
                    raise ValueError(f"{name} is of shape {found}")
