"""What the processes of a training tell each other in a step, counted on the meta device without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suites.config import TrialConfig
from kernels.reference.backend import REFERENCE
from kernels.reference.norm import norm_swish
from kernels.reference.synchronised import BYTES_BACKWARD, BYTES_FORWARD, synchronised
from models.elbo import terms
from models.output import Draw, ImageShape, Model
from models.registry import build

IMAGES = 2
"""Of the batch on the meta device: a norm needs more than one value a channel."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel exchanges at a time."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process gives to all-reduce in a training step, and the number of all-reduces.

    `gradients` of the parameters; `norms`: statistics of batch norms, forward and backward; `terms`: distortion and
    rates of the batch's images. Buffers are not sent: they follow from the statistics. A few numbers that decide about
    the step are left out.
    """

    gradients: int
    norms: int
    terms: int
    exchanges: int

    @property
    def whole(self) -> int:
        """All bytes."""
        return self.gradients + self.norms + self.terms

    def ring_seconds(self, ranks: int, link: float) -> float:
        """Seconds in which a ring (Patarasu & Yuan 2009) moves them over links of `link` bytes/s, without latency.

        Each process sends, and receives, 2 (N - 1) / N of its bytes.
        """
        return 2 * (ranks - 1) / ranks * self.whole / link


ALONE = Traffic(0, 0, 0, 0)
"""Of a process that trains by itself."""


def traffic(trial: TrialConfig, image: ImageShape) -> Traffic:
    """What a step of the trial costs each of several processes, however many they are."""
    seen: list[int] = []
    model = _counting(trial, image, seen)
    loss = _loss(model)
    forward = list(seen)
    loss.backward()  # recomputed cells take their statistics again
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    of_norms = BYTES_FORWARD * sum(seen) + BYTES_BACKWARD * sum(forward)
    of_terms = trial.training.batch_size * (1 + len(model.latent_shapes)) * torch.float32.itemsize
    exchanges = len(seen) + len(forward) + 2 + -(-gradients // BUCKET)
    return Traffic(gradients, of_norms, of_terms, exchanges)


def _counting(trial: TrialConfig, image: ImageShape, seen: list[int]) -> Model:
    """The trial's model on the meta device, whose norms add their number of channels to `seen` when they are called."""

    def counted(x: Tensor, *statistics: Tensor, **settings: Any) -> Tensor:
        seen.append(x.shape[1])
        return norm_swish(x, *statistics, **settings)

    with torch.device("meta"):
        ops = synchronised(REFERENCE, counted)
        model = build(trial.model, trial.model_config, image, trial.likelihood_spec, ops)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return model.train()


def _loss(model: Model) -> Tensor:
    """A loss that all parameters of the model contribute to."""
    image = model.image
    x = torch.zeros(IMAGES, image.channels, image.height, image.width, device="meta")
    seed = torch.zeros((), dtype=torch.int64, device="meta")
    found = terms(model(x, Draw(seed, noise=lambda _, size: torch.zeros(size, device="meta"))), x)
    penalty = model.penalty(1.0)
    loss = found.distortion.mean() + found.rate.mean()
    return loss if penalty is None else loss + penalty
