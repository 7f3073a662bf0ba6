"""What the plain implementations can do, by the name of the model that they are the yardstick of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.speed.baseline.nvae import plain_nvae
from benchmarks.speed.baseline.training import PlainTraining
from benchmarks.speed.baseline.vae import PlainLoop
from benchmarks.speed.baseline.vdvae import PlainVDVAETraining, plain_vdvae
from benchmarks.speed.clock import Call
from benchmarks.suites.config import TrialConfig
from models.nvae import NVAE
from models.output import Model
from models.vanilla.vae import VAE
from models.vdvae.model import VDVAE


class Work(Protocol):
    """A model of this suite and a batch for it; `benchmarks.speed.work.Job` is one."""

    @property
    def model(self) -> Model:
        """The model whose weights the plain implementation takes."""
        ...

    @property
    def trial(self) -> TrialConfig:
        """Its trial."""
        ...

    @property
    def images(self) -> Tensor:
        """At least `batch` uint8 images (N, C, H, W)."""
        ...

    @property
    def batch(self) -> int:
        """Images a call."""
        ...

    @property
    def draws(self) -> int:
        """Draws of the importance-weighted bound."""
        ...

    def x(self) -> Tensor:
        """The model's input (B, C, H, W)."""
        ...


def train_nvae(job: Work) -> Call:
    """A training step of the plain NVAE."""
    assert isinstance(job.model, NVAE)
    training, x = PlainTraining(plain_nvae(job.model), job.trial.training.learning_rate), job.x()
    return lambda: training.step(x)


def sample_nvae(job: Work) -> Call:
    """Mean images of the plain NVAE."""
    assert isinstance(job.model, NVAE)
    plain = plain_nvae(job.model).eval()
    return torch.no_grad()(lambda: plain.sample(job.batch))


def iwae_nvae(job: Work) -> Call:
    """Importance-weighted bound of the plain NVAE."""
    assert isinstance(job.model, NVAE)
    plain, x = plain_nvae(job.model).eval(), job.x()
    return torch.no_grad()(lambda: plain.iwae(x, job.draws))


def train_vdvae(job: Work) -> Call:
    """A training step of the plain VDVAE, with an average of the weights where the trial keeps one."""
    assert isinstance(job.model, VDVAE)
    settings, x = job.trial.training, job.x()
    training = PlainVDVAETraining(plain_vdvae(job.model), settings.learning_rate, average=settings.ema)
    return lambda: training.step(x)


def sample_vdvae(job: Work) -> Call:
    """Mean images of the plain VDVAE."""
    assert isinstance(job.model, VDVAE)
    plain = plain_vdvae(job.model).eval()
    return torch.no_grad()(lambda: plain.sample(job.batch))


def loop_vae(job: Work) -> Call:
    """A training step of the plain loop, its next batch included."""
    assert isinstance(job.model, VAE)
    return PlainLoop(job.model, job.images, job.batch, job.trial.training.learning_rate).step


BASELINES: dict[str, dict[str, Callable[[Work], Call]]] = {
    "nvae": {"train": train_nvae, "sample": sample_nvae, "iwae": iwae_nvae},
    "vdvae": {"train": train_vdvae, "sample": sample_vdvae},
    "vae": {"loop": loop_vae},
}
