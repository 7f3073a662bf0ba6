"""The process of a rank other than the first: it trains and evaluates along, and neither writes nor reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.base.signals import StopSignal
from benchmarks.data import DataSet
from benchmarks.evaluation.shared import serve
from benchmarks.machine.process import frozen_garbage
from benchmarks.metrics.extractors import open_extractor
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import TrialConfig
from benchmarks.training.loop import train
from benchmarks.training.ranks import Ranks
from benchmarks.trials.ranks import POLL_SECONDS, device_of, join
from benchmarks.trials.trial import begun, data_of


def take_part(folder: Path, ranks: Ranks, port: int, *, with_parent: bool, data_hash: str | None) -> None:
    """Train and evaluate the trial of `folder` as one of `ranks`, to the end or until the first one leaves or asks to.

    `port` is where that listens on this machine; other arguments as of `run_trial`.

    Raises:
        UserError: the images are gone, or are others by now.
    """
    trial, _, stop = begun(folder, with_parent)
    data = data_of(trial, data_hash)
    device = device_of(trial.device, ranks)
    try:
        join(ranks, port, device)
        trained_before = ranks.any(False)
        if trained_before or _train(trial, data, folder, device, stop, ranks):
            serve(_networks(trial, data, device))
        dist.destroy_process_group()
    except RuntimeError:
        time.sleep(POLL_SECONDS)  # where the first one has gone, so has standard input
        if not stop():
            raise


def _train(
    trial: TrialConfig, data: DataSet, folder: Path, device: torch.device, stop: StopSignal, ranks: Ranks
) -> bool:
    """Train along; whether the training is through."""
    model = build_model(trial, data.image, device, shared=True)
    with frozen_garbage():
        return train(model, trial, data, folder, lambda done, total, phase: None, stop, ranks=ranks).finished


def _networks(trial: TrialConfig, data: DataSet, device: torch.device) -> dict[str, Callable[[], nn.Module]]:
    """How the networks of the trial's evaluation are opened; the model's weights come from the first process."""

    def extractor() -> nn.Module:
        settings = trial.evaluation
        name = settings.extractor or data.extractor
        assert name, "without an extractor the first process asks for no features"
        return open_extractor(name, settings.extractor_weights or None, device).network

    return {"model": lambda: build_model(trial, data.image, device), "extractor": extractor}
