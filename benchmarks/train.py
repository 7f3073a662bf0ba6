"""Training as functions: one loop, keyed randomness, checkpoints from which it continues bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import checkpoint
from benchmarks.config import CellConfig, TrainingConfig
from benchmarks.data import DataSet, batches, binarise, keyed_generator, to_unit
from benchmarks.record import Curve
from benchmarks.streams import seed_tensor
from models.diagnostics import first_non_finite, non_finite_gradients
from models.elbo import terms
from models.output import Draw, Model

CURVE_POINTS = 100
CALIBRATION_STEPS = 8


@dataclass
class TrainingState:
    """Everything that training carries from step to step."""

    model: Model
    optimizer: Optimizer
    losses: Tensor  # (steps,) on the device; NaN where the step was skipped
    steps: int
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)
    validation: list[tuple[int, float]] = field(default_factory=list)
    trouble: str = ""

    @property
    def skipped(self) -> int:
        """Number of steps whose loss or gradient was not finite."""
        return int(self.losses[: self.step].isnan().sum())


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training hands to evaluation and record; `trouble` says where a skipped step went wrong."""

    steps: int
    images: int
    seconds: float
    skipped: int
    curves: list[Curve]
    finished: bool
    trouble: str = ""


Progress = Callable[[int, int, str], None]


def model_input(images: Tensor, cell: CellConfig, gen: torch.Generator) -> Tensor:
    """What the model sees of uint8 images (B, C, H, W): levels in [0, 1], binarised where the likelihood is binary."""
    x = to_unit(images, cell.bits)
    return binarise(x, gen) if cell.binary else x


def build_optimizer(config: TrainingConfig, model: nn.Module, device: torch.device) -> Optimizer:
    """The configured optimizer; on a GPU its step counter lives on the device."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    if config.optimizer == "adamax":
        return torch.optim.Adamax(parameters, **options, foreach=True, capturable=device.type == "cuda")
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


def loss_of(model: Model, cell: CellConfig, x: Tensor, draw: Draw, progress: float) -> Tensor:
    """The scalar loss of one batch at `progress` in [0, 1] of the training, under the cell's precision."""
    bfloat16 = cell.training.precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        output = model(x, draw)
    loss = cell.objective.loss(terms(output, x), progress)
    penalty = model.penalty(cell.objective.kl_weight(progress))
    return loss if penalty is None else loss + penalty


class StepGuard:
    """Makes a step whose loss or gradient is not finite leave no trace, on the device and without synchronising.

    Buffers (batch-norm statistics) are copied before each step and put back. Fused Adam and AdamW skip their own
    update when told; for Adamax parameters and optimizer state are copied and put back too.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.skips_itself = bool(optimizer.defaults.get("fused"))

    def _guarded(self) -> list[Tensor]:
        buffers = list(self.model.buffers())
        if self.skips_itself:
            return buffers
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return [*buffers, *self.model.parameters(), *(v for v in states if isinstance(v, Tensor))]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the state before a step."""
        self.before = [tensor.detach().clone() for tensor in self._guarded()]

    @torch.no_grad()
    def step(self, good: Tensor) -> None:
        """Take the optimizer's step where `good` () bool is true; else bring the remembered state back."""
        if self.skips_itself:
            self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if good.device.type == "cpu" and bool(good):
            return
        tensors = self._guarded()
        for tensor, old in zip(tensors, self.before, strict=False):
            tensor.copy_(torch.where(good, tensor, old))
        for fresh in tensors[len(self.before) :]:  # optimizer state born in this very step
            fresh.copy_(torch.where(good, fresh, torch.zeros_like(fresh)))


def train_step(state: TrainingState, guard: StepGuard, cell: CellConfig, x: Tensor, draw: Draw) -> None:
    """One optimisation step on x (B, C, H, W); a non-finite one leaves everything as it was and counts as skipped."""
    config = cell.training
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, state.steps)
    guard.keep()
    state.optimizer.zero_grad(set_to_none=True)
    loss = loss_of(state.model, cell, x, draw, state.step / state.steps)
    loss.backward()
    limit = config.clip_norm or math.inf
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    good = torch.isfinite(norm) & torch.isfinite(loss.detach())
    guard.step(good)
    state.losses[state.step] = torch.where(good, loss.detach(), torch.nan)
    state.step += 1
    if config.ema:
        update_average(state, config.ema)


@torch.no_grad()
def update_average(state: TrainingState, decay: float) -> None:
    """Move the averaged weights towards the current ones; decay warmed as min(decay, (1 + t) / (10 + t))."""
    warmed = min(decay, (1 + state.step) / (10 + state.step))
    for name, parameter in state.model.named_parameters():
        average = state.average.setdefault(name, parameter.detach().clone())
        average.lerp_(parameter.detach(), 1 - warmed)


@torch.no_grad()
def adopt_average(state: TrainingState, cell: CellConfig, data: DataSet, device: torch.device) -> None:
    """Load the averaged weights and re-estimate batch-norm statistics under them, on fixed training batches."""
    for name, parameter in state.model.named_parameters():
        parameter.copy_(state.average[name])
    norms = [m for m in state.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    state.model.train()
    for x, draw in _fixed_batches(cell, data, device):
        state.model(x, draw)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _fixed_batches(cell: CellConfig, data: DataSet, device: torch.device) -> Iterable[tuple[Tensor, Draw]]:
    order = batches(len(data.train), cell.training.batch_size, cell.seed + 1, 0)
    for index in range(cell.training.ema_batches):
        gen = keyed_generator(cell.seed, "re-estimate", index)
        x = model_input(data.train[next(order)], cell, gen).to(device)
        yield x, Draw(seed_tensor(cell.seed, "re-estimate", device, index))


def training_batch(cell: CellConfig, images: Tensor, indices: Tensor, step: int) -> Tensor:
    """Model input of one step, keyed on (seed, step): flips where configured, then levels, then binarisation."""
    gen = keyed_generator(cell.seed, "batch", step, images.device)
    chosen = images[indices.to(images.device)]
    if cell.training.flip:
        flip = torch.rand(len(chosen), 1, 1, 1, generator=gen, device=images.device) < 0.5
        chosen = torch.where(flip, chosen.flip(-1), chosen)
    return model_input(chosen, cell, gen)


@torch.no_grad()
def validation_elbo(model: Model, cell: CellConfig, images: Tensor, device: torch.device) -> float:
    """Mean ELBO of one draw over the validation split, nats per image; for models without a prior, -distortion."""
    model.eval()
    total = 0.0
    size = cell.evaluation.batch_size
    for start in range(0, len(images), size):
        gen = keyed_generator(cell.seed, "validation", start)
        x = model_input(images[start : start + size], cell, gen).to(device)
        output = model(x, Draw(seed_tensor(cell.seed, "validation latents", device), first_sample=start))
        total += float(terms(output, x).elbo.double().sum())
    model.train()
    return total / len(images)


def planned_steps(config: TrainingConfig, train_images: int) -> int:
    """Number of steps for `images` or `epochs` (not for `seconds`, which is measured)."""
    images = config.images if config.epochs is None else config.epochs * train_images
    return max(1, round(images / config.batch_size))


def train(
    model: Model,
    cell: CellConfig,
    data: DataSet,
    folder: Path,
    progress: Progress,
    stop: Callable[[], bool],
) -> TrainingResult:
    """Train `model` in place, continuing from `folder`'s checkpoint if there is one.

    `progress(step, steps, text)` is called now and then; when `stop()` turns true, the state is saved and the result
    says `finished = False`.
    """
    device = next(model.parameters()).device
    state = restore(model, cell, data, folder) or fresh_state(model, cell, data, device)
    guard = StepGuard(model, state.optimizer)
    images = data.train.to(device)
    latents = seed_tensor(cell.seed, "latents", device)
    order = batches(len(images), cell.training.batch_size, cell.seed, state.step)
    validate_at = validation_steps(cell.training, state.steps)
    started = saved = time.perf_counter()
    before = state.seconds
    paused = 0.0
    model.train()
    while state.step < state.steps and not stop():
        x = training_batch(cell, images, next(order), state.step)
        train_step(state, guard, cell, x, Draw(latents + state.step))
        now = time.perf_counter()
        state.seconds = before + now - started - paused
        due = now - saved > cell.training.checkpoint_seconds
        if due or device.type == "cpu":  # on a GPU a look at the losses waits for the device
            note_trouble(state, cell, images, latents)
        if state.step in validate_at:
            state.validation.append((state.step, validation_elbo(model, cell, data.validation, device)))
        if due:
            save_state(state, folder)
            saved = time.perf_counter()
        progress(state.step, state.steps, "train")
        paused += time.perf_counter() - now
    state.seconds = _finish_clock(state, device, before, started, paused)
    finished = state.step >= state.steps
    note_trouble(state, cell, images, latents)
    save_state(state, folder)
    if finished and cell.training.ema:
        adopt_average(state, cell, data, device)
    return _result(state, cell, finished)


def note_trouble(state: TrainingState, cell: CellConfig, images: Tensor, latents: Tensor) -> None:
    """Set `state.trouble` at the first call that finds skipped steps: where the last of them goes wrong."""
    if state.trouble or not state.skipped:
        return
    skipped = state.losses[: state.step].isnan()
    step = int(skipped.nonzero()[-1])
    x = training_batch(cell, images, next(batches(len(images), cell.training.batch_size, cell.seed, step)), step)
    where = replay(state.model, lambda twin: loss_of(twin, cell, x, Draw(latents + step), step / state.steps))
    found = f"the first value that is not finite is in the {where}" if where else "it is finite with the weights of now"
    state.trouble = f"step {step + 1} replayed after step {state.step}: {found}"


def replay(model: Model, loss: Callable[[Model], Tensor]) -> str | None:
    """Where `loss` of a copy of the model, or its gradient, is not finite first; None if all is finite."""
    twin = copy.deepcopy(model).train()
    found = first_non_finite(twin, lambda: loss(twin))
    if found is None:
        loss(twin).backward()
        found = next((f"gradient of {name}" for name in non_finite_gradients(twin)), None)
    return found


def _finish_clock(state: TrainingState, device: torch.device, before: float, started: float, paused: float) -> float:
    """Training seconds with the device's queue drained; validation, checkpoints and display are not counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return before + time.perf_counter() - started - paused if state.step else state.seconds


def fresh_state(model: Model, cell: CellConfig, data: DataSet, device: torch.device) -> TrainingState:
    """State at step 0; for a budget in seconds the number of steps is fixed here, from measured speed."""
    steps = planned_steps(cell.training, len(data.train))
    if cell.training.seconds is not None:
        steps = max(1, int(cell.training.seconds / seconds_per_step(model, cell, data)))
    optimizer = build_optimizer(cell.training, model, device)
    return TrainingState(model, optimizer, torch.full((steps,), torch.nan, device=device), steps)


def seconds_per_step(model: Model, cell: CellConfig, data: DataSet) -> float:
    """Median seconds of a training step, measured on a copy of the model so that nothing changes."""
    device = next(model.parameters()).device
    twin = copy.deepcopy(model).train()
    optimizer = build_optimizer(cell.training, twin, device)
    state = TrainingState(twin, optimizer, torch.zeros(CALIBRATION_STEPS, device=device), CALIBRATION_STEPS)
    guard = StepGuard(twin, optimizer)
    order = batches(len(data.train), cell.training.batch_size, cell.seed, 0)
    times = []
    for step in range(CALIBRATION_STEPS):
        start = time.perf_counter()
        x = training_batch(cell, data.train, next(order), step).to(device)
        train_step(state, guard, cell, x, Draw(seed_tensor(cell.seed, "calibration", device, step)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[len(times[2:]) // 2]


def validation_steps(config: TrainingConfig, steps: int) -> set[int]:
    """Steps after which the validation split is scored: evenly spread, the last one included."""
    return {round(steps * (i + 1) / config.validations) for i in range(config.validations)}


def save_state(state: TrainingState, folder: Path) -> None:
    """Write the training state atomically."""
    tensors, rest = checkpoint.flatten_optimizer(state.optimizer.state_dict())
    tensors |= {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    tensors["losses"] = state.losses
    metadata = {
        "steps": state.steps,
        "step": state.step,
        "seconds": state.seconds,
        "validation": state.validation,
        "trouble": state.trouble,
        "optimizer": rest,
    }
    checkpoint.save(folder / checkpoint.STATE, tensors, metadata)


def restore(model: Model, cell: CellConfig, data: DataSet, folder: Path) -> TrainingState | None:
    """The state saved in `folder`, loaded into `model`, or None if there is none."""
    if not (folder / checkpoint.STATE).exists():
        return None
    device = next(model.parameters()).device
    stored = checkpoint.load(folder / checkpoint.STATE)
    model.load_state_dict(_under(stored.tensors, "model."))
    optimizer = build_optimizer(cell.training, model, device)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(checkpoint.unflatten_optimizer(stored.tensors, stored.metadata["optimizer"], groups))
    _match_layout(optimizer)
    average = {name: tensor.to(device) for name, tensor in _under(stored.tensors, "average.").items()}
    meta = stored.metadata
    return TrainingState(
        model,
        optimizer,
        stored.tensors["losses"].to(device),
        meta["steps"],
        meta["step"],
        meta["seconds"],
        average,
        [(int(step), float(value)) for step, value in meta["validation"]],
        meta.get("trouble", ""),
    )


def _match_layout(optimizer: Optimizer) -> None:
    """Give loaded state the strides of its parameters: fused optimizers walk memory, not indices."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _result(state: TrainingState, cell: CellConfig, finished: bool) -> TrainingResult:
    batch = cell.training.batch_size
    losses = state.losses[: state.step].double().cpu()
    chunks = [c for c in losses.tensor_split(min(CURVE_POINTS, max(1, len(losses)))) if len(c)]
    ends = torch.tensor([len(c) for c in chunks]).cumsum(0) * batch
    loss = Curve("loss", "nats/image", ends.tolist(), [float(c.nanmean()) for c in chunks])
    steps, values = [s for s, _ in state.validation], [v for _, v in state.validation]
    validation = Curve("validation elbo", "nats/image", [float(s * batch) for s in steps], values)
    curves = [loss, validation]
    return TrainingResult(state.step, state.step * batch, state.seconds, state.skipped, curves, finished, state.trouble)
