"""The likelihood of given images, one by one: what `evaluate` says of the images of a file."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from benchmarks.base.streams import seed_tensor
from benchmarks.data import keyed_generator, model_input
from benchmarks.records.catalogue import measurement
from benchmarks.records.record import Measurement
from benchmarks.records.uncertainty import per_image
from benchmarks.storage.weights import LoadedModel
from benchmarks.suites.config import TrialConfig
from models.elbo import ELBOTerms, bits_per_dim, terms
from models.output import Draw, Model, ModelOutput
from models.registry import MODELS

BINARISATION = "test binarisation"
"""Purpose of the stream that binarises images to be scored or encoded, as `evaluate` does."""


@dataclass(frozen=True)
class ImageScores:
    """Terms of every image in nats, float64; `at_mean`: with every z at its posterior mean, else for one draw.

    With flows the rate at the mean is log q - log p of that one point; `is_point` is true then.
    """

    terms: ELBOTerms
    at_mean: bool
    is_point: bool
    has_prior: bool


def with_published_rules(loaded: LoadedModel) -> LoadedModel:
    """The model with its likelihood as the code that published it computes it."""
    spec = MODELS[loaded.trial.model].published_rules(loaded.trial.likelihood_spec)
    loaded.model.likelihood = spec
    return dataclasses.replace(loaded, trial=dataclasses.replace(loaded.trial, likelihood_spec=spec))


def padded_input(images: Tensor, loaded: LoadedModel, source: torch.Generator | None = None) -> Tensor:
    """What the encoder sees (N, C, H + 2 pad, W + 2 pad) of images with or without their padding.

    Floating-point images are taken as they are, padding included. 8-bit ones become levels, are binarised by the
    trial's seed where the likelihood is binary, and padded with zeros.
    `source` of the binary draws goes on from batch to batch where images come in several.

    Raises:
        UserError: images of another shape than the model's.
    """
    model, pad = loaded.model, loaded.model.pad
    image = model.image
    shapes = [(image.channels, image.height + 2 * p, image.width + 2 * p) for p in dict.fromkeys((0, pad))]
    shape = tuple(images.shape[1:])
    if shape not in shapes:
        expected = " or ".join(f"{h}x{w}" for _, h, w in shapes)
        raise UserError(
            f"--data: expected {expected} images of {image.channels} channels, as the model was built for, got "
            f"{shape[1]}x{shape[2]} of {shape[0]}"
        )
    padded_already = bool(pad) and shape == shapes[-1]
    if images.is_floating_point():
        return images if padded_already else model.padded(images)
    bare = _cropped(images, pad) if padded_already else images
    source = source or keyed_generator(loaded.trial.seed, BINARISATION)
    return model.padded(model_input(bare, loaded.trial.likelihood_spec, source))


def _cropped(images: Tensor, pad: int) -> Tensor:
    return F.pad(images, (-pad,) * 4)


@torch.no_grad()
def score_images(loaded: LoadedModel, padded: Tensor, *, at_mean: bool) -> ImageScores:
    """Scores of padded images (N, C, H + 2 pad, W + 2 pad), with keyed noise: batch size does not matter."""
    model, size = loaded.model, loaded.trial.evaluation.batch_size
    device = next(model.parameters()).device
    seed = seed_tensor(loaded.trial.seed, "test latents", device)
    parts = [
        _terms(model, padded[start : start + size].to(device), Draw(seed, first_sample=start, at_mean=at_mean))
        for start in range(0, len(padded), size)
    ]
    distortion = torch.cat([part.distortion for part in parts]).double().cpu()
    rates = torch.cat([part.rates for part in parts]).double().cpu()
    flows = bool(getattr(loaded.trial.model_config, "flows", 0))
    return ImageScores(ELBOTerms(distortion, rates), at_mean, at_mean and flows, model.has_prior)


def _terms(model: Model, padded: Tensor, draw: Draw) -> ELBOTerms:
    """Terms of one batch of images that have their padding; it is not scored."""
    encoding = model.encode(padded, draw)
    output = ModelOutput(model.decode(encoding.state), encoding.groups)
    return terms(output, _cropped(padded, model.pad))


def summary(scores: ImageScores, trial: TrialConfig, dims: int) -> list[Measurement]:
    """Means over the images, with intervals where there are two or more; what is no bound is not called one."""
    at_mean = "_at_mean" if scores.at_mean else ""
    found = {f"distortion{at_mean}": _mean("distortion", scores.terms.distortion, trial)}
    if scores.has_prior:
        rate, total = ("log_q_over_p", "value") if scores.is_point else ("rate", "elbo")
        found[f"{rate}{at_mean}"] = _mean("rate", scores.terms.rate, trial)
        found[f"{total}{at_mean}"] = _mean("elbo", scores.terms.elbo, trial)
        if trial.likelihood_spec.over_levels:
            found[f"bits_per_dim{at_mean}"] = _mean("bits_per_dim", bits_per_dim(scores.terms.elbo, dims), trial)
    return [dataclasses.replace(row, metric=name) for name, row in found.items()]


def _mean(metric: str, values: Tensor, trial: TrialConfig) -> Measurement:
    if len(values) == 1:
        return measurement(metric, float(values), n=1)
    return per_image(metric, values.numpy(), trial.seed)


def write_scores(scores: ImageScores, path: Path) -> None:
    """Write `{"images": [{"log_px_given_z", "rates", "elbo"}, ...]}`: nats, rates in generation order.

    Raises:
        UserError: the file cannot be written.
    """
    rows = zip(scores.terms.distortion.tolist(), scores.terms.rates.tolist(), scores.terms.elbo.tolist(), strict=True)
    images = [
        {
            "log_px_given_z": _finite(-distortion),
            "rates": [_finite(rate) for rate in rates],
            "elbo": _finite(elbo) if scores.has_prior else None,
        }
        for distortion, rates, elbo in rows
    ]
    try:
        write_text_atomically(path, json.dumps({"images": images}, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--per-image {path}: expected a file that can be written: {error.strerror}") from error


def _finite(value: float) -> float | None:
    """`value`, or None (null in JSON) where it is not finite."""
    return value if math.isfinite(value) else None
