"""What the growth suite can measure, and the multiply-accumulates of each for an image: of models, and of features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.data import keyed_generator
from benchmarks.metrics.features import Extractor, Features
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.metrics.sample_quality import TwoSets, compared
from benchmarks.records.catalogue import COMPARED
from benchmarks.report.speed import TRAINING_PASSES
from benchmarks.speed.clock import Call
from benchmarks.training.cost import counted_macs, macs_of, macs_per_image
from models.elbo import importance_weighted
from models.output import Draw, Model


def _training(model: Model, draws: int) -> int:
    """Of a training step: forward, gradient of inputs, of weights."""
    return TRAINING_PASSES * _forward(model, draws)


def _forward(model: Model, draws: int) -> int:
    """Of a pass from image to likelihood."""
    return macs_per_image(model, model.image)


def _encoding(model: Model, draws: int) -> int:
    """Of the way from image to latents."""
    return macs_of(model, model.image, lambda twin, x, draw: twin.encode(twin.padded(x), draw))


def _sampling(model: Model, draws: int) -> int:
    """Of an image from the prior."""
    return macs_of(model, model.image, lambda twin, x, draw: twin.sample(1, draw))


def _bound(model: Model, draws: int) -> int:
    """Of an image's importance-weighted bound: every draw after the first costs the same."""

    def of(k: int) -> int:
        def call(twin: Model, x: Tensor, draw: Draw) -> object:
            return importance_weighted(twin, x, draw, k)

        return macs_of(model, model.image, call)

    first = of(1)
    return first if draws == 1 else first + (draws - 1) * (of(2) - first)


MODELS: dict[str, Callable[[Model, int], int]] = {
    "train": _training,
    "loop": _training,
    "encode": _encoding,
    "reconstruct": _forward,
    "sample": _sampling,
    "iwae": _bound,
}
"""Multiply-accumulates for an image, from the model and K, by the verb of `benchmarks.speed.work` that is timed."""


@dataclass(frozen=True)
class Metric:
    """Something computed for n images from an extractor, with its multiply-accumulates for each of them."""

    call: Callable[[Extractor, Tensor], Call]
    arithmetic: Callable[[Extractor, Tensor], float]


def _extraction(extractor: Extractor, images: Tensor) -> Call:
    """Features of n images."""
    return lambda: extractor.features(images)


def _of_network(extractor: Extractor, images: Tensor) -> float:
    """Of the network, counted on one image."""
    twin = copy.deepcopy(extractor.network).to("meta")
    return counted_macs(lambda: twin(images[:1].to("meta")))


def _sets(extractor: Extractor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of random features (N, D): their distance costs what that of images does."""
    gen, size = keyed_generator(0, "growth: features"), (len(images), extractor.dims)
    a, b = (torch.randn(size, dtype=torch.float64, generator=gen) for _ in range(2))
    return a, b


def _distance(extractor: Extractor, images: Tensor) -> Call:
    """Frechet distance of two sets of n features, from the features on."""
    a, b = _sets(extractor, images)
    return lambda: frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))


ROOT_COST, SINGULAR_COST = 4.5 + 1, 4 / 3
"""In D^3 multiply-accumulates: eigenvalues and vectors of a symmetric matrix with the product that makes the root of
it; singular values alone (Golub & Van Loan 2013, sections 8.3 and 8.6)."""


def _of_distance(extractor: Extractor, images: Tensor) -> float:
    """Two covariances, n D^2 each; two roots, their product and its singular values, D^3 each."""
    dims, n = extractor.dims, len(images)
    return 2 * dims**2 + (2 * ROOT_COST + 1 + SINGULAR_COST) * dims**3 / n


def _scores(extractor: Extractor, images: Tensor) -> Call:
    """All that an evaluation says of two sets of n features, with intervals."""
    a, b = (Features(side, None) for side in _sets(extractor, images))
    return lambda: compared(COMPARED, TwoSets(a, b, extractor))


PAIRINGS = 4 + 4 + 3
"""All pairs of images: torch-fidelity's precision and recall, the influences on them, those on the kernel distance."""


def _of_scores(extractor: Extractor, images: Tensor) -> float:
    """The pairs, n D an image each; what does not grow with n^2 is left out."""
    return float(PAIRINGS * extractor.dims * len(images))


METRICS = {
    "features": Metric(_extraction, _of_network),
    "distance": Metric(_distance, _of_distance),
    "scores": Metric(_scores, _of_scores),
}
"""What is measured of features."""
