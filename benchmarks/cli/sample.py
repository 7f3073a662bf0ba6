"""The verb `sample`: images drawn from a trained model into a grid, a folder or an archive."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.streams import seed_tensor
from benchmarks.cli.checkpoints import load_checkpoint
from benchmarks.data import keyed_generator, to_uint8
from benchmarks.evaluation.picture_files import asked_for, written
from benchmarks.evaluation.samples import prior_statistics
from models.output import Draw, Model

TOGETHER = 64
"""Images of one pass; fixed, for drawn pixels depend on it."""
GRID = "samples.png"


def sample(options: argparse.Namespace) -> int:
    """Draw images into a grid, a folder or an archive."""
    loaded = load_checkpoint(options, options.device)
    if not loaded.model.has_prior:
        raise UserError(
            f"{options.checkpoint}: a {loaded.trial.model} has no prior to sample from; choose another model"
        )
    with _statistics(loaded.model, options):
        sinks = asked_for(options.out, options.each, options.npz, options.n, GRID)
        images = drawn(loaded.model, options.n, options.seed, options.temperature, pixels=options.draw)
        places = written(images, sinks)
    print(f"{options.n} images in {', '.join(places)}", file=sys.stderr)
    return 0


@contextmanager
def _statistics(model: Model, options: argparse.Namespace) -> Iterator[None]:
    """Batch-norm statistics as asked for: those of training, or of images from the prior."""
    if not options.prior_statistics:
        yield
        return
    with prior_statistics(model, options.seed, options.prior_statistics, options.temperature) as norms:
        if not norms:
            raise UserError(
                f"--prior-statistics: expected a model with batch norm between the prior and the image, "
                f"got {options.checkpoint}; leave the flag out"
            )
        yield


@torch.inference_mode()
def drawn(model: Model, n: int, seed: int, temperature: float, *, pixels: bool) -> Iterator[Tensor]:
    """`n` images (b, C, H, W) uint8 from the prior, some at a time: the likelihood's mean, or a draw of pixels.

    The latents of an image depend on the seed and its index alone.
    """
    device = next(model.parameters()).device
    latents = seed_tensor(seed, "sample", device)
    for start in range(0, n, TOGETHER):
        likelihood = model.sample(min(TOGETHER, n - start), Draw(latents, first_sample=start), temperature)
        source = keyed_generator(seed, "sample pixels", start, device)
        yield to_uint8((likelihood.sample(source) if pixels else likelihood.mean()).cpu())
