"""Samples of a trained model, and batch-norm statistics measured on images from the prior, to draw them under."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.base.batches import Batches, Layers, Task, in_batches
from benchmarks.base.streams import seed_tensor
from benchmarks.data import to_uint8
from benchmarks.storage.tensors import digest
from benchmarks.suites.config import TrialConfig, to_dict
from kernels.backends import describe
from models.layers.norm_statistics import averaged_anew, batch_norms, given_back
from models.output import Draw, Model

PRIOR_BATCH = 100
"""Images of a batch from the prior whose statistics are taken; fixed, for the statistics depend on it."""


def draw_samples(
    model: Model,
    trial: TrialConfig,
    n: int,
    progress: Callable[[int, int, str], None],
    batches: Batches = in_batches,
) -> Tensor:
    """`n` mean images (N, C, H, W) uint8 of latents from the prior at the evaluation's temperature."""
    settings = {"seed": trial.seed, "temperature": trial.evaluation.temperature}
    task = Task("model", model, _samples, None, settings, lambda start: progress(start, n, "samples"))
    images = batches(part_key("samples", model, trial), n, trial.evaluation.batch_size, task)["images"]
    progress(n, n, "samples")
    return images


@torch.no_grad()
def _samples(model: Model, images: None, start: int, end: int, *, seed: int, temperature: float) -> Layers:
    """Samples `start` to `end`."""
    draw = Draw(seed_tensor(seed, "prior latents", next(model.parameters()).device), first_sample=start)
    return {"images": to_uint8(model.sample(end - start, draw, temperature).mean()).cpu()}


def part_key(name: str, model: Model, trial: TrialConfig, data_hash: str = "") -> str:
    """Everything that a part of the evaluation depends on: weights and statistics, configuration, data, versions."""
    versions = torch.__version__, describe(trial.device)
    return json.dumps([name, digest(model.state_dict()), to_dict(trial), data_hash, versions], sort_keys=True)


@contextmanager
def prior_statistics(
    model: Model, seed: int, batches: int, temperature: float, batch_size: int = PRIOR_BATCH
) -> Iterator[int]:
    """Inside this block the batch norms have statistics of images from the prior; after it the model is as it was.

    Running statistics of training are those of latents from the posterior. Here they are the mean over `batches`
    batches of `batch_size` images drawn at `temperature`, with noise keyed by `seed` in a stream of its own (Vahdat &
    Kautz 2021, section 3.1: 500 batches of 16). Gives the number of batch norms concerned: 0 where the way from the
    prior to the image has none, or there is no prior.
    """
    with given_back(model):
        fits = model.has_prior and batch_norms(model)
        yield _measure(model, seed, batches, temperature, batch_size) if fits else 0


@torch.no_grad()
def _measure(model: Model, seed: int, batches: int, temperature: float, batch_size: int) -> int:
    """Give the norms that are reached from the prior its statistics; returns how many they are."""
    key = seed_tensor(seed, "prior statistics", next(model.parameters()).device)
    with averaged_anew(model) as reached:
        for batch in range(batches):
            draw = Draw(key, first_sample=batch * batch_size)
            model.decode_parameters(model.sample_state(batch_size, draw, temperature))
    return len(reached)
