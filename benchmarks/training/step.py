"""One optimisation step: the learning rate, the loss, its gradient, the guarded update, the averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.suites.config import TrainingConfig, TrialConfig
from benchmarks.training.graphed import LossWeights
from benchmarks.training.guard import StepGuard
from benchmarks.training.state import Forward, TrainingState, forward_terms
from models.elbo import Objective
from models.output import Draw, Model


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Learning rate at `step`: linear warm-up, then cosine to final_rate x learning_rate."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    warmup = config.warmup_steps or config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)


def weights_at(objective: Objective, progress: float) -> LossWeights:
    """The weights of the loss at `progress` in [0, 1] of the training."""
    kl = objective.kl_weight(progress)
    return LossWeights(objective.beta * kl, kl, objective.balanced(progress))


def loss_of(
    model: Model, trial: TrialConfig, x: Tensor, draw: Draw, weights: LossWeights, forward: Forward = forward_terms
) -> Tensor:
    """The scalar loss of one batch under the trial's precision."""
    found = forward(model, x, draw, trial.training.precision == "bfloat16")
    loss = trial.objective.weighted(found, weights.rate, weights.balanced)
    penalty = model.penalty(weights.kl)
    return loss if penalty is None else loss + penalty


def train_step(state: TrainingState, guard: StepGuard, trial: TrialConfig, x: Tensor, draw: Draw) -> float:
    """The loss of one step on x (B, C, H, W); NaN if the step was not taken.

    That is where it, or the gradient's norm, is not finite, or the latter reaches the threshold of steps to be skipped.
    """
    config = trial.training
    if config.ema and not config.ema_warmup and not state.average:
        state.average = {name: one.detach().clone() for name, one in state.model.named_parameters()}

    def measured(x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
        guard.keep()
        loss = loss_of(state.model, trial, x, draw, weights, state.forward)
        loss.backward()
        return guard.measure(loss)

    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, state.steps)
    weights = weights_at(trial.objective, state.step / state.steps)
    graphs = state.graphs
    found = measured(x, draw, weights) if graphs is None else graphs.measure(measured, x, draw, weights)
    norm, loss = found.tolist()
    taken = math.isfinite(norm + loss) and not 0 < config.skip_threshold <= norm
    if taken:
        limit = config.clip_norm if 0 < config.clip_norm < norm else None
        if graphs is None:
            guard.take(found, limit)
        else:
            graphs.take(guard.take, found, limit)
    else:
        if math.isfinite(norm + loss) and not state.trouble:
            state.trouble = (
                f"step {state.step + 1}: gradient of norm {norm:.4g}, skipped from {config.skip_threshold:g} on"
            )
        loss = math.nan
        guard.undo()
    state.losses[state.step] = loss
    state.step += 1
    if config.ema and taken:
        update_average(state, config.ema, warmed=config.ema_warmup)
    return loss


@torch.no_grad()
def update_average(state: TrainingState, decay: float, *, warmed: bool = True) -> None:
    """Move the averaged weights towards the current ones; decay warmed as min(decay, (1 + t) / (10 + t)), or not."""
    decay = min(decay, (1 + state.step) / (10 + state.step)) if warmed else decay
    for name, parameter in state.model.named_parameters():
        average = state.average.setdefault(name, parameter.detach().clone())
        average.lerp_(parameter.detach(), 1 - decay)
