"""Pictures of a trained model for the page of its run: what it draws, what lies between images, what a scale holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import DataSet
from benchmarks.evaluation.evaluate import PICTURES, channels_last, shown_images
from benchmarks.evaluation.inputs import at_depth
from benchmarks.evaluation.nearest import nearest
from benchmarks.evaluation.samples import draw_samples
from benchmarks.evaluation.variations import Variations
from benchmarks.storage.weights import LoadedModel
from models.output import LatentShape

TEMPERATURES = (0.5, 0.7, 0.85, 1.0)
ACROSS = 8
"""Images of a row."""
WAYS = 4
"""Pairs of test images with the line between them."""
SCALE_ROWS, MOST_IMAGES = 6, 3
"""Rows of a grid of redrawn groups, and images that they are of."""
Arrays = dict[str, np.ndarray]


@torch.inference_mode()
def gallery(loaded: LoadedModel, data: DataSet, progress: Callable[[int, int, str], None]) -> Arrays:
    """Pictures (..., H, W, C) uint8 by name, and what they are of; empty for a model without a prior.

    Everything depends on the weights and the trial's seed alone, and draws from no stream of the evaluation's but that
    of its samples, which are keyed by their index.

    `at_temperature` (T, 8): the first samples at each of `temperatures` (T,), with the same noise.
    `interpolations` (4, 10): an original, eight steps between the latents of two test images, the other original.
    `finer_redrawn`, `coarser_redrawn` (M, K, 8), of models with several resolutions: of M test images the original,
    its reconstruction, and draws of the latent groups after (before) the first `cuts` (K,), the others as encoded.
    `samples`, `neighbours` (8,): the first samples, and the training images that are nearest to them, which are of 8
    bits whatever the likelihood's depth.
    `sample_errors`, `test_errors` (64,): mean squared error (0-1) to the nearest training image, of the first samples
    and of test images.
    """
    if not loaded.model.has_prior:
        return {}
    loaded.model.eval()
    trial = loaded.trial
    test = shown_images(data.test[: trial.evaluation.images or None])
    variations = Variations(loaded, trial.seed, trial.evaluation.temperature)
    parts: list[Callable[[], Arrays]] = [
        lambda: _at_temperatures(loaded),
        lambda: _interpolations(variations, test),
        lambda: _scales(variations, test),
        lambda: _neighbours(loaded, test, data.train),
    ]
    found: Arrays = {}
    for index, part in enumerate(parts):
        progress(index, len(parts), "pictures")
        found |= part()
    progress(len(parts), len(parts), "pictures")
    return found


def cuts_of(shapes: Sequence[LatentShape]) -> list[int]:
    """How many latent groups lie before each change of resolution, coarse -> fine; a few of them where there are many.

    Empty for a model of one resolution.
    """
    sides = [(shape.height, shape.width) for shape in shapes]
    cuts = [index for index in range(1, len(sides)) if sides[index] != sides[index - 1]]
    if len(cuts) <= SCALE_ROWS:
        return cuts
    return [cuts[place] for place in np.linspace(0, len(cuts) - 1, SCALE_ROWS).round().astype(int)]


def _at_temperatures(loaded: LoadedModel) -> Arrays:
    """The first samples at several temperatures."""
    rows = [_drawn(loaded, ACROSS, temperature) for temperature in TEMPERATURES]
    return {"temperatures": np.array(TEMPERATURES), "at_temperature": _pictures(torch.stack(rows))}


def _interpolations(variations: Variations, test: Tensor) -> Arrays:
    """Lines between the latents of the first test images and the next ones."""
    originals, rows = at_depth(test, variations.loaded.trial.bits), []
    for a in range(0, min(2 * WAYS, len(test) - 1), 2):
        way = variations.between(test[a : a + 1], test[a + 1 : a + 2], ACROSS)
        rows.append(torch.cat([originals[a : a + 1], way, originals[a + 1 : a + 2]]))
    return {"interpolations": _pictures(torch.stack(rows))}


def _scales(variations: Variations, test: Tensor) -> Arrays:
    """Test images with the groups below or above a resolution drawn anew."""
    shapes = variations.loaded.model.latent_shapes
    cuts = cuts_of(shapes)
    if not cuts:
        return {}
    images = test[: min(MOST_IMAGES, max(1, SCALE_ROWS // len(cuts)))]
    fixed = [at_depth(images, variations.loaded.trial.bits)[:, None], variations.reconstructed(images)[:, None]]
    draws = ACROSS - len(fixed)

    def rows(redrawn: Callable[[int], range]) -> np.ndarray:
        found = [torch.cat([*fixed, variations.redrawn(images, redrawn(cut), draws)], dim=1) for cut in cuts]
        return _pictures(torch.stack(found, dim=1))

    return {
        "cuts": np.array(cuts),
        "finer_redrawn": rows(lambda cut: range(cut, len(shapes))),
        "coarser_redrawn": rows(range),
    }


def _neighbours(loaded: LoadedModel, test: Tensor, training: Tensor) -> Arrays:
    """Samples beside their nearest training images, and how near test images are to theirs."""
    trial = loaded.trial
    samples = _drawn(loaded, PICTURES, trial.evaluation.temperature)
    near = nearest(samples, training)
    return {
        "samples": _pictures(samples[:ACROSS]),
        "neighbours": _pictures(training[near.index[:ACROSS]]),
        "sample_errors": near.error.numpy(),
        "test_errors": nearest(at_depth(test, trial.bits), training).error.numpy(),
    }


def _drawn(loaded: LoadedModel, n: int, temperature: float) -> Tensor:
    """The evaluation's first `n` samples (n, C, H, W) uint8, at that temperature."""
    evaluation = dataclasses.replace(loaded.trial.evaluation, temperature=temperature)
    return draw_samples(loaded.model, dataclasses.replace(loaded.trial, evaluation=evaluation), n, lambda *_: None)


def _pictures(images: Tensor) -> np.ndarray:
    """Images (..., C, H, W) as (..., H, W, C)."""
    return channels_last(images.cpu())
