"""Images through a model's encoder into a file of latents, and out of one through its decoder; batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.base.streams import seed_tensor
from benchmarks.data import keyed_generator, to_uint8
from benchmarks.evaluation.inputs import at_depth
from benchmarks.evaluation.per_image import BINARISATION, padded_input
from benchmarks.machine.environment import suite_version
from benchmarks.metrics.latents import GroupUsage, LatentUsage
from benchmarks.metrics.reconstruction import mse_per_image
from benchmarks.storage.latents import LatentsFile, LatentsHead, written
from benchmarks.storage.weights import LoadedModel, weights_hash
from models.latents import GroupLatents, decode, latents_of
from models.output import Draw, ImageShape, LatentGroup, Temperature


@dataclass(frozen=True)
class Loss:
    """Mean squared error (0-1) of the reconstructions from all latents, and from those that were written."""

    mse_all: float
    mse_pruned: float


@dataclass(frozen=True)
class Encoder:
    """A model with the images (n, C, H, W) that it encodes, uint8 or floating point in [0, 1], `batch_size` a pass.

    Latents are draws from the posterior keyed by `seed` and an image's index, or with `at_mean` its mean. Where the
    likelihood is binary, 8-bit images are binarised as `evaluate` binarises them.
    """

    loaded: LoadedModel
    images: Tensor
    seed: int
    at_mean: bool
    batch_size: int

    def head(self, data: str, split: str) -> LatentsHead:
        """What the file says of itself."""
        model = self.loaded.model
        return LatentsHead(
            checkpoint=weights_hash(model),
            model=self.loaded.trial.label,
            data=data,
            split=split,
            n=len(self.images),
            image=model.image,
            groups=model.latent_shapes,
            at_mean=self.at_mean,
            seed=self.seed,
            version=suite_version(),
        )

    @torch.inference_mode()
    def groups(self) -> Iterator[tuple[LatentGroup, ...]]:
        """Latent groups of the images, a batch at a time; every call gives the same."""
        model = self.loaded.model
        device = next(model.parameters()).device
        key = seed_tensor(self.seed, "encoded latents", device)
        pixels = keyed_generator(self.loaded.trial.seed, BINARISATION)
        for start in range(0, len(self.images), self.batch_size):
            x = padded_input(self.images[start : start + self.batch_size], self.loaded, pixels)
            yield model.encode(x.to(device), Draw(key, first_sample=start, at_mean=self.at_mean)).groups

    def write(self, path: Path, head: LatentsHead) -> list[GroupUsage]:
        """Write the latents of all groups; returns how the groups are used."""
        usage = LatentUsage()
        with written(path, head) as add:
            for groups in self.groups():
                usage.update(groups)
                add(latents_of(groups))
        return usage.groups()

    def usage(self) -> list[GroupUsage]:
        """How the groups are used on these images."""
        usage = LatentUsage()
        for groups in self.groups():
            usage.update(groups)
        return usage.groups()

    def write_pruned(self, path: Path, head: LatentsHead, usage: list[GroupUsage]) -> Loss:
        """Write the latents of the channels that hold an active unit; returns what the loss of the others costs."""
        device = next(self.loaded.model.parameters()).device
        held = [torch.tensor(group.active_channels, dtype=torch.int64, device=device) for group in usage]
        errors: list[tuple[float, float]] = []
        start = 0
        with written(path, head, held) as add:
            for groups in self.groups():
                latents = latents_of(groups)
                pruned = tuple(group.pruned(index) for group, index in zip(latents, held, strict=True))
                add(pruned)
                errors.append((self._squared_errors(latents, start), self._squared_errors(pruned, start)))
                start += len(latents[0].z)
        return Loss(*(sum(of_batch) / start for of_batch in zip(*errors, strict=True)))

    @torch.inference_mode()
    def _squared_errors(self, latents: tuple[GroupLatents, ...], start: int) -> float:
        """Sum over images, from that index on, of the MSE of their reconstructions, as `evaluate` measures it."""
        draw = Draw(torch.zeros((), dtype=torch.int64, device=latents[0].z.device))
        found = to_uint8(decode(self.loaded.model, latents, draw).mean()).cpu()
        images = _without_padding(self.images[start : start + len(found)], self.loaded.model.image)
        originals = to_uint8(images) if images.is_floating_point() else at_depth(images, self.loaded.trial.bits)
        return float(mse_per_image(found, originals).sum())


def _without_padding(images: Tensor, image: ImageShape) -> Tensor:
    """Images (B, C, H, W) of those that may have their padding."""
    return F.pad(images, (-((images.shape[-1] - image.width) // 2),) * 4)


@torch.inference_mode()
def decoded(
    loaded: LoadedModel, file: LatentsFile, keep: int, *, temperature: Temperature, seed: int, batch_size: int
) -> Iterator[Tensor]:
    """Mean images (b, C, H, W) uint8 of a file's latents, those of the first `keep` groups; the others are drawn.

    What is drawn depends on the seed and an image's index alone; `temperature` is of `models.latents.decode`.
    """
    device = next(loaded.model.parameters()).device
    key = seed_tensor(seed, "decoded latents", device)
    for start in range(0, file.head.n, batch_size):
        latents = [group.to(device) for group in file.read(start, start + batch_size, max(keep, 1))]
        draw = Draw(key, first_sample=start)
        yield to_uint8(decode(loaded.model, latents, draw, keep=keep, temperature=temperature).mean()).cpu()
