"""The verb `sample`: images drawn from a trained model into a grid, a folder or an archive."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.streams import seed_tensor
from benchmarks.cli.checkpoints import load_checkpoint
from benchmarks.data import keyed_generator, to_uint8
from benchmarks.evaluation.picture_files import Each, Sink, asked_for, written
from benchmarks.evaluation.samples import prior_statistics
from benchmarks.storage.weights import LoadedModel, weights_hash
from benchmarks.training.ranks import Ranks
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
    chosen = shard(options.n, *options.shard) if options.shard else range(options.n)
    sinks = _sinks(loaded, options, chosen)
    with _statistics(loaded.model, options):
        images = drawn(loaded.model, chosen, options.seed, options.temperature, pixels=options.draw)
        places = written(images, sinks)
    of = f" ({chosen.start}-{chosen.stop - 1} of {options.n})" if options.shard else ""
    print(f"{len(chosen)} images{of} in {', '.join(places)}", file=sys.stderr)
    return 0


def shard(n: int, index: int, count: int) -> range:
    """Which of `n` images are part `index` of `count`: neighbours, in whole passes of the model.

    Raises:
        UserError: there are fewer passes than parts.
    """
    passes = math.ceil(n / TOGETHER)
    if passes < count:
        raise UserError(
            f"--shard {index + 1}/{count}: expected at most {passes} parts of {n} images, which are drawn {TOGETHER} "
            "at a time; take fewer parts or more images"
        )
    share = Ranks(index, count).share(passes)
    return range(share.start * TOGETHER, min(n, share.stop * TOGETHER))


def _sinks(loaded: LoadedModel, options: argparse.Namespace, chosen: range) -> list[Sink]:
    """Where the images go; parts of them into a folder that they share, or an archive of their own.

    Raises:
        UserError: a part of a grid.
    """
    if not options.shard:
        return asked_for(options.out, options.each, options.npz, options.n, GRID)
    if options.out or not (options.each or options.npz):
        raise UserError("--shard: expected --each DIR, which all parts may share, or --npz FILE of each, without --out")
    said = {name: getattr(options, name) for name in ("n", "seed", "temperature", "draw", "prior_statistics")}
    made_of = json.dumps({"weights": weights_hash(loaded.model), **said})
    sinks = [Each(Path(options.each), options.n, chosen.start, made_of)] if options.each else []
    return [*sinks, *asked_for(None, None, options.npz, len(chosen), "")]


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
def drawn(model: Model, images: range, seed: int, temperature: float, *, pixels: bool) -> Iterator[Tensor]:
    """Images (b, C, H, W) uint8 from the prior, some at a time: the likelihood's mean, or a draw of pixels.

    The latents of an image depend on the seed and its index alone; `images` begin with a pass (a multiple of 64).
    """
    device = next(model.parameters()).device
    latents = seed_tensor(seed, "sample", device)
    for start in images[::TOGETHER]:
        likelihood = model.sample(min(TOGETHER, images.stop - start), Draw(latents, first_sample=start), temperature)
        source = keyed_generator(seed, "sample pixels", start, device)
        yield to_uint8((likelihood.sample(source) if pixels else likelihood.mean()).cpu())
