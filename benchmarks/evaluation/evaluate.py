"""Scores a trained model on the test split: likelihood, reconstruction, latent usage, sample quality."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.base.batches import Batches, Layers, Task, in_batches
from benchmarks.base.errors import first_line
from benchmarks.base.streams import seed_tensor
from benchmarks.data import DataSet, cache_folder, keyed_generator, to_uint8
from benchmarks.evaluation.inputs import Inputs, at_depth, errors_per_image
from benchmarks.evaluation.per_image import BINARISATION
from benchmarks.evaluation.samples import PRIOR_BATCH, draw_samples, part_key, prior_statistics
from benchmarks.metrics.influence import Influence
from benchmarks.metrics.latents import LatentUsage, latent_metrics, usage_of
from benchmarks.metrics.on_features import of_reconstructions, of_samples
from benchmarks.metrics.reconstruction import PER_IMAGE, reconstruction_metrics
from benchmarks.records.catalogue import (
    INFLUENCE,
    NO_EXTRACTOR,
    PRIOR_STATISTICS_METRICS,
    dash,
)
from benchmarks.records.record import LatentGroupInfo, Measurement
from benchmarks.records.uncertainty import per_image
from benchmarks.suites.config import TrialConfig
from models.elbo import Bounds, ELBOTerms, bits_per_dim, importance_weighted
from models.output import Draw, Model

PICTURES = 64
NO_PRIOR = "no prior"
NO_BATCH_NORM = "no batch norm between the prior and the image"
LIKELIHOOD = ("elbo", "bits_per_dim", "iwae_bound", "rate", "distortion")
USAGE = ("active_units", "collapsed_groups")
Progress = Callable[[int, int, str], None]


@dataclass
class Evaluation:
    """Measurements, use of the latent groups, per-image values and pictures (N, H, W, C) uint8 for the figures.

    `failures` says which parts could not be worked out, and why; their metrics are dashes.
    """

    measurements: list[Measurement] = field(default_factory=list)
    groups: list[LatentGroupInfo] = field(default_factory=list)
    per_image: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, metrics: tuple[str, ...]) -> Iterator[None]:
        """Work out a part; if that fails, its metrics are dashes that say why, and the other parts go on."""
        try:
            yield
        except Exception as error:  # whatever it is, what other parts worked out is kept
            traceback.print_exc(file=sys.stderr)
            reason = first_line(error)
            self.failures.append(f"{name}: {reason}")
            known = {found.metric for found in self.measurements}
            self.measurements += [dash(metric, f"failed: {reason}") for metric in metrics if metric not in known]


def evaluate(
    model: Model,
    trial: TrialConfig,
    data: DataSet,
    progress: Progress,
    keep: Callable[[Evaluation], None] = lambda found: None,
    batches: Batches = in_batches,
) -> Evaluation:
    """All metrics of `model` on the test split, with keyed noise: batch size does not matter.

    Images are the likelihood's mean, clamped and rounded to uint8; MSE and features are against the test images at the
    likelihood's bit depth, grey where the model saw them binarised. `keep` is called after each part with what there
    is so far; `batches` runs the long loops.
    """
    model.eval()
    device = next(model.parameters()).device
    test = data.test[: trial.evaluation.images or None]
    x = Inputs.of(test, trial.likelihood_spec, keyed_generator(trial.seed, BINARISATION), device)
    originals = at_depth(test, trial.bits)
    found = Evaluation()
    with found.part("likelihood", LIKELIHOOD):
        _add_likelihood(found, model, trial, x, data, progress, batches)
    keep(found)
    reconstructions = samples = None
    with found.part("reconstruction", (*PER_IMAGE, *USAGE)):
        reconstructions = _add_reconstruction(found, model, trial, x, originals, progress, batches)
    keep(found)
    with found.part("samples", ()):
        if model.has_prior:
            samples = draw_samples(model, trial, trial.evaluation.samples or len(test), progress, batches)
    with found.part("feature distances", feature_metrics()):
        real = originals, samples, reconstructions
        keep_influence = _keeper(found, trial)
        progress(0, 1, "feature distances")
        found.measurements += quality_metrics(trial, data, *real, model.has_prior, batches, keep_influence)
    keep(found)
    found.pictures = pictures(originals, reconstructions, samples)
    if trial.evaluation.prior_batches:
        with found.part("samples with prior statistics", PRIOR_STATISTICS_METRICS):
            _add_prior_statistics(found, model, trial, data, originals, progress, batches)
    return found


def reference_images(trial: TrialConfig, data: DataSet, originals: Tensor) -> Tensor:
    """What samples are compared with (N, C, H, W): the test images, or training images where the trial says so."""
    if trial.evaluation.reference_split == "test":
        return originals
    from benchmarks.metrics.sample_quality import training_images

    return at_depth(training_images(data.train, data.validation), trial.bits)


def _add_likelihood(
    found: Evaluation,
    model: Model,
    trial: TrialConfig,
    x: Inputs,
    data: DataSet,
    progress: Progress,
    batches: Batches,
) -> None:
    """Bounds of the test images x (N, C, H, W); dashes without a prior."""
    if not model.has_prior:
        found.measurements += [dash(name, NO_PRIOR) for name in ("elbo", "bits_per_dim", "iwae_bound")]
        return
    bounds = test_bounds(model, trial, x, progress, data.content_hash, batches)
    found.measurements += likelihood_metrics(bounds, trial, data.image.dims)
    found.per_image |= {"elbo": bounds.elbo.cpu().numpy(), "iwae_bound": bounds.iwae.cpu().numpy()}


def _add_reconstruction(
    found: Evaluation,
    model: Model,
    trial: TrialConfig,
    x: Inputs,
    originals: Tensor,
    progress: Progress,
    batches: Batches,
) -> Tensor:
    """Errors and use of the latents for x (N, C, H, W); returns the reconstructions (N, C, H, W) uint8."""
    reconstructions, found.groups = reconstruct(model, trial, x, progress, batches)
    values = errors_per_image(reconstructions, originals)
    found.measurements += reconstruction_metrics(values, trial.seed)
    found.measurements += latent_metrics(found.groups, len(x))
    found.per_image |= values
    return reconstructions


def _add_prior_statistics(
    found: Evaluation,
    model: Model,
    trial: TrialConfig,
    data: DataSet,
    originals: Tensor,
    progress: Progress,
    batches: Batches,
) -> None:
    """Scores and first images of the same latents' samples, with batch-norm statistics of images from the prior."""
    settings = trial.evaluation
    with prior_statistics(model, trial.seed, settings.prior_batches, settings.temperature) as norms:
        if not norms:
            note = NO_BATCH_NORM if model.has_prior else NO_PRIOR
            found.measurements += [dash(metric, note) for metric in PRIOR_STATISTICS_METRICS]
            return
        named = lambda done, total, phase: progress(done, total, "samples with prior statistics")  # noqa: E731
        samples = draw_samples(model, trial, settings.samples or len(originals), named, batches)
    found.pictures["samples_prior_statistics"] = channels_last(samples[:PICTURES])
    name = settings.extractor or data.extractor
    if not name:
        found.measurements += [dash(metric, NO_EXTRACTOR) for metric in PRIOR_STATISTICS_METRICS]
        return
    from benchmarks.metrics.extractors import open_extractor
    from benchmarks.metrics.sample_quality import prior_statistics_quality

    extractor = open_extractor(name, settings.extractor_weights or None, trial.device)
    extractor, cache = dataclasses.replace(extractor, batches=batches), cache_folder("features")
    how = {"prior_batches": settings.prior_batches, "prior_batch_size": PRIOR_BATCH}
    reference, split = reference_images(trial, data, originals), settings.reference_split
    kept = _keeper(found, trial)
    found.measurements += prior_statistics_quality(
        samples, reference, extractor, cache, kept, reference_split=split, **how
    )


def _keeper(found: Evaluation, trial: TrialConfig) -> Callable[[str, Influence], None]:
    """Puts what each test image moves a metric by beside the values per image: models are compared on them in pairs."""

    def keep(metric: str, influence: Influence) -> None:
        test = influence.by_reference
        if test is not None and (influence.paired or trial.evaluation.reference_split == "test"):
            found.per_image[f"{metric}{INFLUENCE}"] = test.float().numpy()

    return keep


def pictures(originals: Tensor, reconstructions: Tensor | None, samples: Tensor | None) -> dict[str, np.ndarray]:
    """Images for the figures, (N, H, W, C): the same random test images for every model, and the first samples."""
    shown = {"originals": shown_images(originals)}
    if reconstructions is not None:
        shown["reconstructions"] = shown_images(reconstructions)
    if samples is not None:
        shown["samples"] = samples[:PICTURES]
    return {name: channels_last(images) for name, images in shown.items()}


def shown_images(images: Tensor) -> Tensor:
    """The test images, or what was made of them (N, C, H, W), that are shown: random, alike for all models."""
    return images[torch.randperm(len(images), generator=keyed_generator(0, "pictures"))[:PICTURES]]


def channels_last(images: Tensor) -> np.ndarray:
    """Images (..., C, H, W) as (..., H, W, C)."""
    return images.movedim(-3, -1).numpy()


def test_bounds(
    model: Model,
    trial: TrialConfig,
    x: Inputs,
    progress: Progress,
    data_hash: str,
    batches: Batches,
) -> Bounds:
    """ELBO and importance-weighted bound of every test image x (N, C, H, W)."""
    k, size = trial.evaluation.iwae_samples, trial.evaluation.batch_size
    settings, before = {"seed": trial.seed, "k": k}, lambda start: progress(start, len(x), "likelihood")
    task = Task("model", model, _bounds, x, settings, before)
    found = batches(part_key("likelihood", model, trial, data_hash), len(x), size, task)
    progress(len(x), len(x), "likelihood")
    found = {name: values.to(x.device) for name, values in found.items()}
    return Bounds(ELBOTerms(found["distortion"], found["rates"]), found["elbo_sampled"], found["iwae"], k)


def _bounds(model: Model, x: Tensor, start: int, end: int, *, seed: int, k: int) -> Layers:
    """Terms and bounds of a batch of test images x (B, C, H, W)."""
    draw = Draw(seed_tensor(seed, "test latents", x.device), first_sample=start)
    found = importance_weighted(model, x, draw, k)
    terms = {"distortion": found.terms.distortion, "rates": found.terms.rates}
    return terms | {"elbo_sampled": found.elbo_sampled, "iwae": found.iwae}


def likelihood_metrics(bounds: Bounds, trial: TrialConfig, dims: int) -> list[Measurement]:
    """ELBO, rate, distortion, importance-weighted bound and, over integer levels, bits/dim; with intervals."""
    details = {"likelihood": f"{trial.likelihood}({trial.likelihood_spec.variant})", "k": bounds.k}

    def values(tensor: Tensor) -> np.ndarray:
        return tensor.double().cpu().numpy()

    rows = [
        per_image("elbo", values(bounds.elbo), trial.seed, details=details),
        per_image("iwae_bound", values(bounds.iwae), trial.seed, details=details),
        per_image("rate", values(bounds.terms.rate), trial.seed, details=details),
        per_image("distortion", values(bounds.terms.distortion), trial.seed, details=details),
    ]
    if trial.likelihood_spec.over_levels:
        bits = values(bits_per_dim(bounds.elbo, dims))
        return [*rows, per_image("bits_per_dim", bits, trial.seed, details=details)]
    return [*rows, dash("bits_per_dim", f"not defined for the {trial.likelihood} likelihood")]


def reconstruct(
    model: Model, trial: TrialConfig, x: Inputs, progress: Progress, batches: Batches = in_batches
) -> tuple[Tensor, list[LatentGroupInfo]]:
    """Mean images (N, C, H, W) uint8 with z at the posterior mean, and the use of the latent groups (one draw)."""
    usage, images = LatentUsage(), list[Tensor]()
    task = Task("model", model, _reconstructions, x, {"seed": trial.seed})
    for found in batches.each(len(x), trial.evaluation.batch_size, task):
        images.append(found.pop("images"))
        usage.add(found)
        progress(sum(map(len, images)), len(x), "reconstruction")
    return torch.cat(images), usage.result()


@torch.no_grad()
def _reconstructions(model: Model, x: Tensor, start: int, end: int, *, seed: int) -> Layers:
    """Mean images of a batch of test images x (B, C, H, W), and how it uses the latent groups."""
    draw = Draw(seed_tensor(seed, "usage latents", x.device), first_sample=start)
    at_mean = dataclasses.replace(draw, at_mean=True)
    images = to_uint8(model(x, at_mean).likelihood.mean()).cpu()
    return {"images": images, **usage_of(model.encode(model.padded(x), draw).groups)}


def feature_metrics() -> tuple[str, ...]:
    """All metrics on features that an evaluation has, beside those of prior statistics."""
    return (*of_samples(), *of_reconstructions(), "fid_floor")


def quality_metrics(
    trial: TrialConfig,
    data: DataSet,
    originals: Tensor,
    samples: Tensor | None,
    reconstructions: Tensor | None,
    has_prior: bool,
    batches: Batches = in_batches,
    keep: Callable[[str, Influence], None] = lambda metric, found: None,
) -> list[Measurement]:
    """Feature distances of samples to the trial's reference images, and of reconstructions to the test images.

    `keep` is given what each image moves a metric by.
    Where there are no samples or reconstructions although there should be, their metrics are dashes.
    """
    name = trial.evaluation.extractor or data.extractor
    if not name:
        return [dash(metric, NO_EXTRACTOR) for metric in feature_metrics()]
    # they import torchvision: seconds, and not needed by data without an extractor
    from benchmarks.metrics.extractors import open_extractor
    from benchmarks.metrics.sample_quality import fid_floor, reconstruction_quality, sample_metrics

    extractor = open_extractor(name, trial.evaluation.extractor_weights or None, trial.device)
    extractor = dataclasses.replace(extractor, batches=batches)
    cache = cache_folder("features")
    reference, split = reference_images(trial, data, originals), trial.evaluation.reference_split
    others = data.train if split == "test" else originals
    shown = partial(at_depth, bits=trial.bits)  # which changes nothing where it is done twice
    rows = [fid_floor(others, reference, extractor, cache, split, shown)]
    if reconstructions is None:
        rows += [dash(metric, "failed: no reconstructions") for metric in of_reconstructions()]
    else:
        rows = [*reconstruction_quality(reconstructions, originals, extractor, cache, keep), *rows]
    if samples is None:
        return [*rows, *(dash(metric, "failed: no samples" if has_prior else NO_PRIOR) for metric in of_samples())]
    return [*rows, *sample_metrics(samples, reference, extractor, cache, split, keep)]
