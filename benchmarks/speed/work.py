"""What is timed: calls over one batch, of this suite's models and of the plain implementations beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.streams import seed_tensor
from benchmarks.data import batches, keyed_generator, model_input
from benchmarks.speed.baseline.registry import BASELINES
from benchmarks.speed.clock import MAX_ROUNDS, MOST_REPEATS, WARMUP_CALLS, Call
from benchmarks.speed.target import Target
from benchmarks.suites.config import TrialConfig
from benchmarks.training.guard import StepGuard
from benchmarks.training.loop import compile_step, training_input
from benchmarks.training.state import TrainingState, build_optimizer
from benchmarks.training.step import train_step
from benchmarks.training.supply import placed, supplied
from models.elbo import importance_weighted
from models.output import Draw, Model

Copy = Callable[[Model], Model]
Marked = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
STEPS = MAX_ROUNDS * (MOST_REPEATS + 1) + WARMUP_CALLS + 1
"""Training steps that a measurement takes at most."""


@dataclass(frozen=True)
class Job:
    """A model and the batch that it works on; `images` (N, C, H, W) uint8 hold at least `batch` images.

    `notes` gathers what a record should say, such as what came of `compile = on`.
    """

    model: Model
    trial: TrialConfig
    images: Tensor
    batch: int
    draws: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def x(self) -> Tensor:
        """The model's input (B, C, H, W): the first images."""
        gen = keyed_generator(self.trial.seed, "throughput")
        return model_input(self.images[: self.batch], self.trial.likelihood_spec, gen).to(self.device)

    def draw(self) -> Draw:
        """Keyed noise, the same in every call."""
        return Draw(seed_tensor(self.trial.seed, "throughput", self.device))


def job_of(target: Target, device: torch.device, draws: int = 1) -> Job:
    """The work of a target at its configured batch."""
    batch = target.trial.training.batch_size
    return Job(target.build(device), target.trial, target.images(batch), batch, draws)


def training_state(job: Job, copied: Copy = copy.deepcopy) -> tuple[TrainingState, StepGuard]:
    """A copy of the model at the start of a training, compiled where the trial says so."""
    model = copied(job.model).train()
    optimizer = build_optimizer(job.trial.training, model, job.device)
    state = TrainingState(model, optimizer, torch.zeros(STEPS), STEPS)
    note = compile_step(state, job.trial, job.images)
    job.notes.extend([note] if note else [])
    return state, StepGuard(model, optimizer)


def train(job: Job, copied: Copy = copy.deepcopy) -> Call:
    """A full training step (loss, gradients, clipping, optimizer) of a copy, on the same batch again and again."""
    (state, guard), x, draw = training_state(job, copied), job.x(), job.draw()
    return lambda: train_step(state, guard, job.trial, x, draw)


def loop(job: Job, copied: Copy = copy.deepcopy, marked: Marked = lambda call: call) -> Call:
    """A training step with what the loop does around it: the next batch, drawn from the data set's images.

    `marked` is given the call that draws it.
    """
    (state, guard), draw = training_state(job, copied), job.draw()
    images = placed(job.images, job.device)
    supply = supplied(images, batches(len(images), job.batch, job.trial.seed, 0), job.device)
    next_batch = marked(lambda: training_input(job.trial, next(supply), state.step))

    return lambda: train_step(state, guard, job.trial, next_batch(), draw)


def encode(job: Job) -> Call:
    """Posterior and draw of every latent group."""
    model, x, draw = copy.deepcopy(job.model).eval(), job.x(), job.draw()
    return torch.inference_mode()(lambda: model.encode(model.padded(x), draw))


def reconstruct(job: Job) -> Call:
    """Mean image at the posterior mean."""
    model, x, draw = copy.deepcopy(job.model).eval(), job.x(), Draw(job.draw().seed, at_mean=True)
    return torch.inference_mode()(lambda: model(x, draw).likelihood.mean())


def sample(job: Job) -> Call | None:
    """Mean images of latents from the prior; None for a model without one."""
    if not job.model.has_prior:
        return None
    model, draw = copy.deepcopy(job.model).eval(), job.draw()
    return torch.inference_mode()(lambda: model.sample(job.batch, draw).mean())


def iwae(job: Job) -> Call | None:
    """Importance-weighted bound from `draws` draws; None for a model without a prior."""
    if not job.model.has_prior:
        return None
    model, x, draw = copy.deepcopy(job.model).eval(), job.x(), job.draw()
    return torch.inference_mode()(lambda: importance_weighted(model, x, draw, job.draws))


Verb = Callable[[Job], Call | None]
OURS: dict[str, Verb] = {
    "train": train,
    "loop": loop,
    "encode": encode,
    "reconstruct": reconstruct,
    "sample": sample,
    "iwae": iwae,
}
"""What can be timed of every model."""


def verbs_of(trial: TrialConfig, plain: bool) -> Mapping[str, Verb]:
    """What can be timed of the trial's model, or of its plain implementation.

    Raises:
        UserError: the model has no plain implementation.
    """
    if not plain:
        return OURS
    if trial.model not in BASELINES:
        known = ", ".join(BASELINES)
        raise UserError(f"--vs baseline: there is a plain implementation of {known}, not of {trial.model}")
    return BASELINES[trial.model]
