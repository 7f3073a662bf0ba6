"""The metrics by name, with unit and direction; no torch import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.base.errors import unknown
from benchmarks.records.record import Measurement

COLLAPSED_RATE = 0.01  # nats per image: mean rate below which a whole latent group is called collapsed

NEIGHBOURS = 3  # of precision and recall
FEWEST = 10  # images for metrics on features: parts of the inception score, more than the neighbours of precision
COMPARED = ("sample_fid", "kid", "precision", "recall")
SAMPLE_METRICS = (*COMPARED, "inception_score")
RECONSTRUCTION_METRICS = (
    "reconstruction_fid",
    "reconstruction_kid",
    "reconstruction_precision",
    "reconstruction_recall",
)
PRIOR_STATISTICS_METRICS = (
    "sample_fid_prior_statistics",
    "kid_prior_statistics",
    "precision_prior_statistics",
    "recall_prior_statistics",
)
INFLUENCE = "_influence"
"""Ends the name of an array in `per_image.npz`: what each test image moves a metric by, mean 0."""
_REFITTED = "with batch-norm statistics of images from the prior"
NO_EXTRACTOR = "no extractor for this data; needs --inception-weights PATH"


TIMED = {
    "train": "training steps on one batch",
    "loop": "training steps with the drawing of their batches",
    "encode": "posterior means",
    "reconstruct": "reconstructions at the posterior mean",
    "sample": "images from the prior",
    "iwae": "the importance-weighted bound from K draws",
}
"""What `throughput` times, by verb."""


@dataclass(frozen=True)
class Metric:
    """Unit, direction (None: neither is better) and meaning of a metric."""

    unit: str
    higher_is_better: bool | None
    description: str


METRICS: dict[str, Metric] = {
    "elbo": Metric(
        "nats", True, "evidence lower bound per image, -(distortion + rate), unweighted, mean over the posterior draws"
    ),
    "bits_per_dim": Metric("bits/dim", False, "-ELBO / (C H W ln 2); likelihoods over integer pixel levels only"),
    "iwae_bound": Metric("nats", True, "importance-weighted bound with K posterior draws per image"),
    "rate": Metric("nats", None, "KL(posterior, prior) per image, summed over the latent groups"),
    "distortion": Metric("nats", None, "-log p(x given z) per image"),
    "mse": Metric(
        "0-1", False, "squared error of the reconstruction per pixel, pixel range 0-1, z at the posterior mean"
    ),
    "psnr": Metric("dB", True, "peak signal-to-noise ratio of the reconstruction, mean over images"),
    "sample_fid": Metric("", False, "Frechet distance of features: samples against the reference split"),
    "reconstruction_fid": Metric("", False, "Frechet distance of features: reconstructions against their originals"),
    "reconstruction_kid": Metric(
        "", False, "kernel distance of features (unbiased, cubic kernel): reconstructions against their originals"
    ),
    "reconstruction_precision": Metric(
        "", True, "share of reconstructions inside their originals' manifold of features (3 neighbours)"
    ),
    "reconstruction_recall": Metric(
        "", True, "share of originals inside their reconstructions' manifold of features (3 neighbours)"
    ),
    "fid_floor": Metric(
        "", False, "Frechet distance of features: as many other real images against the reference split"
    ),
    "kid": Metric(
        "", False, "kernel distance of features (unbiased, cubic kernel): samples against the reference split"
    ),
    "precision": Metric("", True, "share of samples inside the reference split's manifold of features (3 neighbours)"),
    "recall": Metric("", True, "share of reference images inside the samples' manifold of features (3 neighbours)"),
    "inception_score": Metric("", True, "exp of the mean KL of class predictions to their mean, over samples"),
    "sample_fid_prior_statistics": Metric(
        "", False, f"Frechet distance of features: samples {_REFITTED} against the reference split"
    ),
    "kid_prior_statistics": Metric(
        "",
        False,
        f"kernel distance of features (unbiased, cubic kernel): samples {_REFITTED} against the reference split",
    ),
    "precision_prior_statistics": Metric(
        "", True, f"share of samples {_REFITTED} inside the reference split's manifold of features (3 neighbours)"
    ),
    "recall_prior_statistics": Metric(
        "", True, f"share of reference images inside the manifold of features (3 neighbours) of samples {_REFITTED}"
    ),
    "active_units": Metric("units", None, "latent units that carry information about the image"),
    "collapsed_groups": Metric("groups", False, f"latent groups with a mean rate below {COLLAPSED_RATE} nats"),
    "parameters": Metric("", None, "trainable values"),
    "latents": Metric("", None, "latent units of all groups"),
    "macs": Metric("MACs/image", None, "multiply-accumulates of a forward pass, on the reference operations"),
    "training_images": Metric("images", None, "images shown in training, repeats counted"),
    "training_seconds": Metric("s", None, "wall-clock time of the training steps"),
    "training_cpu_seconds": Metric("CPU s", None, "processor time of the training steps, all threads together"),
    **{
        f"{verb}_throughput": Metric("images/s", True, f"{done}, median over repeats on the quiet machine")
        for verb, done in TIMED.items()
    },
    "peak_memory": Metric("MiB", False, "most memory that the process held; on a GPU, that torch allocated"),
    "peak_memory_above_model": Metric("MiB", False, "most memory of a training step above model and data"),
}


def of_the_machine(metric: str) -> bool:
    """Whether a metric says how fast or large a model is, which no evaluation of its weights changes."""
    return metric.endswith("_throughput") or metric.startswith("peak_memory")


def measurement(metric: str, value: float | None, **fields: Any) -> Measurement:
    """The measured value with the metric's own unit and direction; `fields` are those of `Measurement`.

    Raises:
        UserError: no such metric.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    known = METRICS[metric]
    return Measurement(metric, value, known.unit, known.higher_is_better, **fields)


def dash(metric: str, note: str) -> Measurement:
    """A metric that does not apply or cannot be had; `note` says why."""
    return measurement(metric, None, note=note)
