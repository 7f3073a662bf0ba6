"""The process of a rank other than the first: it trains along, and neither writes nor reports."""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist

from benchmarks.machine.process import frozen_garbage
from benchmarks.storage.weights import build_model
from benchmarks.training.loop import train
from benchmarks.training.ranks import Ranks
from benchmarks.trials.ranks import POLL_SECONDS, device_of, join
from benchmarks.trials.trial import begun, data_of


def train_along(folder: Path, ranks: Ranks, port: int, *, with_parent: bool, data_hash: str | None) -> None:
    """Train the trial of `folder` as one of `ranks`, to the end or until the first one leaves or asks to.

    `port` is where that listens on this machine; other arguments as of `run_trial`.

    Raises:
        UserError: the images are gone, or are others by now.
    """
    trial, _, stop = begun(folder, with_parent)
    data = data_of(trial, data_hash)
    device = device_of(trial.device, ranks)
    try:
        join(ranks, port, device)
        model = build_model(trial, data.image, device, shared=True)
        with frozen_garbage():
            train(model, trial, data, folder, lambda done, total, phase: None, stop, ranks=ranks)
        dist.destroy_process_group()
    except RuntimeError:
        time.sleep(POLL_SECONDS)  # where the first one has gone, so has standard input
        if not stop():
            raise
