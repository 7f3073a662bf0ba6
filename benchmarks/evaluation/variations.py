"""Pictures of what a model makes of given images: reconstructions, ways between images, one latent at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.base.streams import seed_tensor
from benchmarks.data import to_uint8
from benchmarks.evaluation.per_image import padded_input
from benchmarks.storage.weights import LoadedModel
from models.output import Draw, LatentGroup


@dataclass(frozen=True)
class Variations:
    """A model that decodes latents of given images, some of its groups drawn anew from the prior.

    Groups are numbered from 0, coarse -> fine. Latents that are not drawn are the posterior's mean; what is drawn
    depends on `seed` and the number of the draw alone, at `temperature`.
    """

    loaded: LoadedModel
    seed: int = 0
    temperature: float = 1.0

    @torch.inference_mode()
    def groups(self, images: Tensor) -> tuple[LatentGroup, ...]:
        """Latent groups of 8-bit images (N, C, H, W); none of a plain autoencoder."""
        return self._encoded(images)[1]

    @torch.inference_mode()
    def reconstructed(self, images: Tensor) -> Tensor:
        """Reconstructions (N, C, H, W) uint8 of 8-bit images."""
        state, _ = self._encoded(images)
        return to_uint8(self.loaded.model.decode(state).mean()).cpu()

    @torch.inference_mode()
    def decoded(self, latents: Sequence[Tensor], redrawn: Collection[int] = ()) -> Tensor:
        """Images (N, C, H, W) uint8 of latents (N, Z, h, w) a group, those of `redrawn` groups drawn: 0, 1, ..."""
        given = tuple(None if index in redrawn else z for index, z in enumerate(latents))
        draw = dataclasses.replace(self._draw(at_mean=False), latents=given)
        return to_uint8(self.loaded.model.sample(len(latents[0]), draw, self.temperature).mean()).cpu()

    def redrawn(self, images: Tensor, groups: Collection[int], draws: int) -> Tensor:
        """Reconstructions (N, draws, C, H, W) uint8 with these groups drawn; all images have the same draws."""
        latents = [group.z for group in self.groups(images)]
        repeated = [[z[i : i + 1].expand(draws, -1, -1, -1) for z in latents] for i in range(len(images))]
        return torch.stack([self.decoded(same, groups) for same in repeated])

    def between(self, a: Tensor, b: Tensor, steps: int, groups: Collection[int] = ()) -> Tensor:
        """Images (steps, C, H, W) uint8 of latents on the line from those of image a (1, C, H, W) to those of b.

        The groups named are drawn, the same draw in every step.
        """
        ends = [[group.z for group in self.groups(image)] for image in (a, b)]
        made = []
        for share in torch.linspace(0, 1, steps).tolist():
            latents = [torch.lerp(first, last, share) for first, last in zip(*ends, strict=True)]
            made.append(self.decoded(latents, groups))
        return torch.cat(made)

    def traversed(self, image: Tensor, group: int, units: int, offsets: Sequence[float]) -> tuple[Tensor, list[int]]:
        """One unit of a group after the other set to its prior's mean plus offsets times its scale.

        Images (U, len(offsets), C, H, W) uint8 of the U units of highest rate for the image (1, C, H, W), and their
        indices; groups after this one are drawn anew, the same draw everywhere, for they follow from it.
        """
        found = self.groups(image)
        latents, chosen = [one.z for one in found], found[group]
        rates = chosen.posterior.kl(chosen.prior).flatten()
        picked = rates.topk(min(units, len(rates))).indices.tolist()
        mean, scale = (part.flatten() for part in (chosen.prior.mean, chosen.prior.scale))
        later, rows = range(group + 1, len(found)), []
        for unit in picked:
            for offset in offsets:
                moved = latents[group].clone(memory_format=torch.contiguous_format)
                moved.view(-1)[unit] = mean[unit] + offset * scale[unit]
                rows.append(self.decoded([*latents[:group], moved, *latents[group + 1 :]], later))
        made = torch.cat(rows)
        return made.view(len(picked), len(offsets), *made.shape[1:]), picked

    def _encoded(self, images: Tensor) -> tuple[Tensor, tuple[LatentGroup, ...]]:
        """State and groups of images, z at the posterior mean."""
        model = self.loaded.model
        x = padded_input(images, self.loaded).to(next(model.parameters()).device)
        encoding = model.encode(x, self._draw(at_mean=True))
        return encoding.state, encoding.groups

    def _draw(self, at_mean: bool) -> Draw:
        device = next(self.loaded.model.parameters()).device
        return Draw(seed_tensor(self.seed, "variations", device), at_mean=at_mean)
