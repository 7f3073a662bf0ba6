"""Latents as data: images to latents by a model's posterior, and latents to images by its decoder and prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.output import Draw, LatentGroup, Likelihood, Model, Temperature


@dataclass(frozen=True)
class GroupLatents:
    """Latents of one group for B images: z (B, Z, h, w), and mean and scale of the posterior that it was drawn from.

    With flows z has gone through them, mean and scale are those before. `channels` (Z,) int64 are the indices of the
    group's channels that are held, None for all.
    """

    z: Tensor
    mean: Tensor
    scale: Tensor
    channels: Tensor | None = None

    def pruned(self, channels: Tensor) -> GroupLatents:
        """Those channels alone, by their indices (K,) int64; decoding puts the others at their prior's mean."""
        z, mean, scale = (part.index_select(1, channels) for part in (self.z, self.mean, self.scale))
        return GroupLatents(z, mean, scale, channels if self.channels is None else self.channels[channels])

    def to(self, device: torch.device) -> GroupLatents:
        """The same on a device."""
        channels = None if self.channels is None else self.channels.to(device)
        return GroupLatents(self.z.to(device), self.mean.to(device), self.scale.to(device), channels)


def latents_of(groups: Sequence[LatentGroup]) -> tuple[GroupLatents, ...]:
    """What is worth keeping of the latent groups of a model's output, coarse -> fine."""
    return tuple(GroupLatents(group.z, group.posterior.mean, group.posterior.scale) for group in groups)


def encode(model: Model, x: Tensor, draw: Draw) -> tuple[GroupLatents, ...]:
    """Latents of images (B, C, H, W) in [0, 1], coarse -> fine; with `Draw(..., at_mean=True)` z is the mean.

    Raises:
        ValueError: a model without latent groups.
    """
    if not model.has_prior:
        raise ValueError(f"expected a model with latents, got {type(model).__name__}, which has a code without a prior")
    return latents_of(model.encode(model.padded(x), draw).groups)


def decode(
    model: Model,
    latents: Sequence[GroupLatents],
    draw: Draw,
    *,
    keep: int | None = None,
    temperature: Temperature = 1.0,
) -> Likelihood:
    """p(x given z) of encoded images, from the latents of the first `keep` groups; the others come from the prior.

    By default all groups that are given are kept, and where these are the model's, this is its reconstruction. The
    draw keys the noise of the others, `temperature` multiplies the scale of their priors.

    Raises:
        ValueError: `keep` beyond the groups that are given, no group to tell the number of images from, or latents of
            another shape than the model's.
    """
    keep = len(latents) if keep is None else keep
    if not (latents and 0 <= keep <= len(latents) <= len(model.latent_shapes)):
        raise ValueError(
            f"expected latents of 1 to {len(model.latent_shapes)} groups and keep from 0 to their number, "
            f"got {len(latents)} and keep {keep}"
        )
    kept = latents[:keep]
    given = dataclasses.replace(
        draw, latents=tuple(group.z for group in kept), channels=tuple(group.channels for group in kept)
    )
    return model.sample(len(latents[0].z), given, temperature)
