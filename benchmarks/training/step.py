"""One optimisation step: the learning rate, the loss, its gradient, the guarded update, the averaged weights."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from benchmarks.base.errors import GivenUpError, first_line
from benchmarks.machine.memory import is_out_of_memory, release
from benchmarks.suites.config import TrainingConfig, TrialConfig
from benchmarks.training.graphed import LossWeights
from benchmarks.training.guard import StepGuard
from benchmarks.training.state import Forward, TrainingState, forward_terms
from models.elbo import Objective
from models.layers.recompute import start_recomputing
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

    It is not where the loss or a gradient is not finite, nor where the gradient's norm reaches the skip threshold.
    """
    config = trial.training
    if config.ema and not config.ema_warmup and not state.average and state.ranks.first:
        state.average = {name: one.detach().clone() for name, one in state.model.named_parameters()}
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, state.steps) * 0.5**state.back_offs
    found = _measured(state, guard, trial, x, draw)
    norm, loss = state.ranks.told(*found.tolist())  # what is decided is decided by all alike
    state.gradient_norm = norm
    finite = math.isfinite(norm + loss)
    too_steep = finite and 0 < config.skip_threshold <= norm
    taken = finite and not too_steep
    if taken:
        limit = config.clip_norm if 0 < config.clip_norm < norm else None
        if state.graphs is None:
            guard.take(found, limit)
        else:
            state.graphs.take(guard.take, found, limit)
    else:
        loss = math.nan
        guard.undo()
    state.over_threshold += too_steep
    state.locked = state.locked + 1 if too_steep else 0
    state.losses[state.step] = loss
    state.step += 1
    if config.ema and taken and state.ranks.first:
        update_average(state, config.ema, warmed=config.ema_warmup)
    return loss


def _measured(state: TrainingState, guard: StepGuard, trial: TrialConfig, x: Tensor, draw: Draw) -> Tensor:
    """Norm of the gradients and loss (2,); where memory runs out, in twice as many passes from then on.

    Where one image at a time is too much, cells compute again what they would keep.

    Raises:
        GivenUpError: that is too much as well; or one of several ranks runs out of memory.
    """

    def measured(x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
        guard.keep()
        return guard.measure(backward(state, trial, x, draw, weights))

    weights = weights_at(trial.objective, state.step / state.steps)
    while True:
        try:
            graphs = state.graphs
            return measured(x, draw, weights) if graphs is None else graphs.measure(measured, x, draw, weights)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if state.ranks.count > 1:
                raise GivenUpError(
                    f"rank {state.ranks.index} of {state.ranks.count} ran out of memory: {first_line(error)}; take "
                    "more ranks, or continue with one, which splits its batches into passes as far as it must"
                ) from error
            if state.passes >= len(x) and not start_recomputing(state.model):
                raise GivenUpError(f"training of one image at a time ran out of memory: {first_line(error)}") from error
        state.recompute |= state.passes >= len(x)
        guard.undo()
        state.passes = min(2 * state.passes, len(x))
        release(x.device)


def backward(state: TrainingState, trial: TrialConfig, x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
    """The loss () of a batch, its gradients summed over the state's passes; an image's noise is that of one pass."""
    passes = min(state.passes, len(x) // state.ranks.count)
    if passes == 1:
        loss = loss_of(state.model, trial, x, draw, weights, state.forward)
        loss.backward()
        return loss
    total, start = torch.zeros((), device=x.device), draw.first_sample
    for index, part in enumerate(x.tensor_split(passes)):
        one = dataclasses.replace(draw, first_sample=start)
        with state.around_pass(index + 1 == passes):
            loss = loss_of(state.model, trial, part, one, weights, state.forward) * (len(part) / len(x))
            loss.backward()
        total, start = total + loss.detach(), start + len(part)
    return total


@torch.no_grad()
def update_average(state: TrainingState, decay: float, *, warmed: bool = True) -> None:
    """Move the averaged weights towards the current ones; decay warmed as min(decay, (1 + t) / (10 + t)), or not."""
    decay = min(decay, (1 + state.step) / (10 + state.step)) if warmed else decay
    for name, parameter in state.parameters.items():
        if name not in state.average:
            state.average[name] = parameter.detach().clone()
    averages = [state.average[name] for name in state.parameters]
    torch._foreach_lerp_(averages, list(state.parameters.values()), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
