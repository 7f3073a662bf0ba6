"""One optimisation step: the loss, its gradient, clipping, the optimizer, and no trace of a step that is not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.suites.config import TrainingConfig, TrialConfig
from kernels.cpu.adamax import Adamax
from models.elbo import ELBOTerms, terms
from models.output import Draw, Model

Forward = Callable[[Model, Tensor, Draw, bool], ELBOTerms]
"""ELBO terms from model, images, draw, and whether the model computes in bfloat16."""


def forward_terms(model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> ELBOTerms:
    """The ELBO terms of images x; with `bfloat16` the model, but not its likelihood, runs under autocast."""
    precision = torch.autocast(x.device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    with precision:
        output = model(x, draw)
    return terms(output, x)


@dataclass
class TrainingState:
    """Everything that training carries from step to step; `forward` is `forward_terms` or its compiled form."""

    model: Model
    optimizer: Optimizer
    losses: Tensor  # (steps,) on the device; NaN where the step was skipped
    steps: int
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)
    validation: list[tuple[int, float]] = field(default_factory=list)
    trouble: str = ""
    forward: Forward = forward_terms
    cpu_seconds: float | None = 0.0  # None: not known from the start

    @property
    def skipped(self) -> int:
        """Number of steps whose loss or gradient was not finite."""
        return int(self.losses[: self.step].isnan().sum())


def build_optimizer(config: TrainingConfig, model: nn.Module, device: torch.device) -> Optimizer:
    """The configured optimizer; on a GPU its step counter lives on the device."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    if config.optimizer == "adamax":
        return Adamax(parameters, **options, foreach=True, capturable=device.type == "cuda")
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **options, fused=True)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Learning rate at `step`: linear warm-up, then cosine to final_rate x learning_rate."""
    warmup = config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)


def loss_of(
    model: Model, trial: TrialConfig, x: Tensor, draw: Draw, progress: float, forward: Forward = forward_terms
) -> Tensor:
    """The scalar loss of one batch at `progress` in [0, 1] of the training, under the trial's precision."""
    found = forward(model, x, draw, trial.training.precision == "bfloat16")
    loss = trial.objective.loss(found, progress)
    penalty = model.penalty(trial.objective.kl_weight(progress))
    return loss if penalty is None else loss + penalty


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """L2 norm of all gradients together, each dense in the memory of a CPU."""
    rows = (gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients)  # in the order of memory
    return math.sqrt(sum(torch.dot(row, row).item() for row in rows))


class StepGuard:
    """The optimizer's step, clipped; one whose loss or gradient is not finite leaves no trace.

    Buffers (batch-norm statistics) are copied before each step and put back. On a CPU the optimizer's step is then not
    taken. On a GPU nobody waits to see: fused Adam and AdamW skip their own update when told, and for Adamax parameters
    and optimizer state are copied and put back too.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.waits = self.parameters[0].device.type == "cpu"
        self.skips_itself = bool(optimizer.defaults.get("fused"))
        self.before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the state before a step, and drop the gradients of the step before."""
        guarded = [*self.model.buffers()]
        if not (self.waits or self.skips_itself):
            guarded += [*self.parameters, *self._optimizer_state()]
        self.before = [(tensor, tensor.detach().clone()) for tensor in guarded]
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, loss: Tensor, limit: float) -> Tensor:
        """Take the step for `loss` (), its gradients scaled down to the norm `limit` (0: never) where they exceed it.

        Returns:
            The loss; NaN where the step was not finite and the remembered state is back.
        """
        with torch.no_grad():
            return self._step_seen(loss, limit) if self.waits else self._step_unseen(loss, limit)

    def _step_seen(self, loss: Tensor, limit: float) -> Tensor:
        norm = gradient_norm([p.grad for p in self.parameters if p.grad is not None])
        if not math.isfinite(norm + loss.item()):
            for tensor, old in self.before:
                tensor.copy_(old)
            return torch.full_like(loss, torch.nan)
        if limit and norm > limit:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, torch.tensor(norm))
        self.optimizer.step()
        return loss

    def _step_unseen(self, loss: Tensor, limit: float) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.parameters, limit or math.inf)
        good = torch.isfinite(norm + loss)
        if self.skips_itself:
            self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        known = {id(tensor) for tensor, _ in self.before}
        self.optimizer.step()
        for tensor, old in self.before:
            tensor.copy_(torch.where(good, tensor, old))
        if not self.skips_itself:
            for born in (value for value in self._optimizer_state() if id(value) not in known):
                born.copy_(torch.where(good, born, torch.zeros_like(born)))
        return torch.where(good, loss, torch.nan)

    def _optimizer_state(self) -> list[Tensor]:
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in states if isinstance(value, Tensor)]


def train_step(state: TrainingState, guard: StepGuard, trial: TrialConfig, x: Tensor, draw: Draw) -> Tensor:
    """The loss () of one step on x (B, C, H, W); NaN if it was not finite and was undone."""
    config = trial.training
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, state.steps)
    guard.keep()
    loss = loss_of(state.model, trial, x, draw, state.step / state.steps, state.forward)
    loss.backward()
    loss = guard.step(loss.detach(), config.clip_norm)
    state.losses[state.step] = loss
    state.step += 1
    if config.ema:
        update_average(state, config.ema)
    return loss


@torch.no_grad()
def update_average(state: TrainingState, decay: float) -> None:
    """Move the averaged weights towards the current ones; decay warmed as min(decay, (1 + t) / (10 + t))."""
    warmed = min(decay, (1 + state.step) / (10 + state.step))
    for name, parameter in state.model.named_parameters():
        average = state.average.setdefault(name, parameter.detach().clone())
        average.lerp_(parameter.detach(), 1 - warmed)
