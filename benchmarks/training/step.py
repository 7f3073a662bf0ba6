"""One optimisation step: the learning rate, the loss, its gradient, the guarded update, the averaged weights."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from benchmarks.base.errors import GivenUpError, StarvedError, first_line
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
    """Norm of the gradients and loss (2,); where memory runs out, with less from then on (`_take_less`).

    What a failed pass leaves behind may be what is missing: allocators keep it, and a limit of the system counts it. A
    process that was started for want of memory does not try again, but leaves that to the next one; nor does one of
    several ranks, as the others are in the middle of the step.

    Raises:
        StarvedError: all was too much; the state is set to what a fresh process is to try.
        GivenUpError: there is nothing less that a fresh process could try.
    """

    def measured(x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
        guard.keep()
        return guard.measure(backward(state, trial, x, draw, weights))

    weights = weights_at(trial.objective, state.step / state.steps)
    less: tuple[int, bool] | None = None
    while True:
        try:
            graphs = state.graphs
            return measured(x, draw, weights) if graphs is None else graphs.measure(measured, x, draw, weights)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        guard.undo()  # here, where the error no longer holds the pass that failed
        guard.drop_gradients()
        release(x.device)
        taken = _take_less(state, len(x) // state.ranks.count)
        if taken and less is None:
            less = state.passes, state.recompute
        if not taken or state.restarts or state.ranks.count > 1:
            raise _starved(state, less, said)


def _take_less(state: TrainingState, images: int) -> bool:
    """Let a batch take twice as many passes; if each is of one image, let cells compute again what they would keep.

    `images` are those of a process. False where all that is done already.
    """
    if state.passes < images:
        state.passes = min(2 * state.passes, images)
        return True
    state.recompute |= (started := start_recomputing(state.model))
    return started


def _starved(state: TrainingState, less: tuple[int, bool] | None, said: str) -> GivenUpError:
    """What to raise of a step that found no memory; `less` are the passes, and whether cells recompute, to try next."""
    if less is None:
        after = f", after {state.restarts} starts of a fresh process" if state.restarts else ""
        return GivenUpError(f"training of one image at a time ran out of memory{after}: {said}")
    state.passes, state.recompute = less
    return StarvedError(f"training ran out of memory in this process: {said}")


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
