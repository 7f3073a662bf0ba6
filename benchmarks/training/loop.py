"""Training as functions: one loop, keyed randomness, checkpoints from which it continues bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.base.errors import StarvedError
from benchmarks.base.streams import generator_seed, seed_tensor
from benchmarks.data import DataSet, batches, keyed_generator, model_input, picked
from benchmarks.records.record import Curve
from benchmarks.suites.config import TrainingConfig, TrialConfig
from benchmarks.training.compiled import compiled_forward
from benchmarks.training.diagnostics import first_non_finite, non_finite_gradients, parameters_are_finite
from benchmarks.training.graphed import StepGraphs
from benchmarks.training.guard import StepGuard
from benchmarks.training.ranks import ALONE, Ranks
from benchmarks.training.shared import initialise_from_data, share_of, share_steps
from benchmarks.training.state import (
    TrainingState,
    build_optimizer,
    heed_starved,
    leave_for_next,
    restore,
    return_to_good,
    save_good,
    save_state,
)
from benchmarks.training.step import loss_of, train_step, weights_at
from benchmarks.training.supply import batch_of, placed, supplied
from models.elbo import terms
from models.layers.norm_statistics import averaged_anew, batch_norms
from models.output import Draw, Model

CURVE_POINTS = 100
CALIBRATION_STEPS = 8
GOOD_STATES = 10
"""States of a training, evenly spread from its first step on, to the last of which it can return."""
PROCESSOR_CALIBRATION_STEPS = 40
"""Steps measured for a budget of processor time, which is to be met whatever else the machine does."""
PLANNED_SHARE = 0.1
"""Of the steps that are left under a budget of time: after as many, their number is planned anew."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training hands to evaluation and record.

    `trouble` says where a skipped step went wrong, `compilation` what came of `compile = on`, `hopeless` why the
    training was given up before its end. `cpu_seconds` is the process's, all threads together, in the steps; None where
    the state of an older version was continued. `over_threshold` of the `skipped` steps had too steep a gradient;
    `back_offs` are returns to a good state, `passes` those of the last batch, in which cells may `recompute`;
    `restarts` are the fresh processes in which it went on for want of memory. `ranks` took the steps together, those at
    least since the training was last continued.
    """

    steps: int
    images: int
    seconds: float
    skipped: int
    curves: list[Curve]
    finished: bool
    trouble: str = ""
    compilation: str = ""
    hopeless: str = ""
    cpu_seconds: float | None = None
    over_threshold: int = 0
    back_offs: int = 0
    passes: int = 1
    recompute: bool = False
    restarts: int = 0
    ranks: int = 1


Progress = Callable[[int, int, str], None]
Observe = Callable[[str, float], None]
LOSS, LEARNING_RATE, GRADIENT_NORM = "loss", "learning rate", "gradient norm"
VALIDATION, VALIDATION_RATE, VALIDATION_DISTORTION = "validation elbo", "validation rate", "validation distortion"
"""What a training shows of itself, in nats/image but for learning rate and norm; loss and ELBO are recorded."""


@dataclass(frozen=True)
class Outside:
    """How a training talks to who started it; see `train`."""

    progress: Progress
    stop: Callable[[], bool]
    say: Callable[[str], None]
    observe: Observe


class StepClock:
    """Adds the seconds inside its blocks to a state's: those of steps, not of validation, checkpoints and display.

    Of several ranks it is the first one's clock that counts, and the processor time of all.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.started = self.busy = 0.0

    def __enter__(self) -> None:
        self.started, self.busy = time.perf_counter(), time.process_time()

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:  # the other ranks may not have come so far
            return
        ranks, seconds = self.state.ranks, time.perf_counter() - self.started
        seconds, busy = ranks.summed(seconds if ranks.first else 0.0, time.process_time() - self.busy)
        self.state.seconds += seconds
        if self.state.cpu_seconds is not None:
            self.state.cpu_seconds += busy


class StepPlan:
    """Keeps the number of steps to a budget of time, from what steps have cost since it was made.

    The speed measured before the first step is that of a moment; neighbours on the machine come and go.
    """

    def __init__(self, state: TrainingState, config: TrainingConfig) -> None:
        self.state, self.config = state, config
        self.start, self.spent_before = state.step, self._spent()
        self.due = self._next()

    def keep_to_budget(self) -> None:
        """Plan anew where that is due; the losses are as long as the plan."""
        state, budget, spent = self.state, self.config.budget, self._spent()
        if budget is None or spent is None or self.spent_before is None or state.step < self.due:
            return
        each = (spent - self.spent_before) / (state.step - self.start)
        if not each:  # a clock that is coarser than steps
            return
        state.steps = state.step + max(0, round((budget - spent) / each))
        longer = torch.full((max(0, state.steps - len(state.losses)),), torch.nan)
        state.losses = torch.cat((state.losses[: state.steps], longer))
        self.due = self._next()

    def _next(self) -> int:
        return self.state.step + max(1, round(PLANNED_SHARE * (self.state.steps - self.state.step)))

    def _spent(self) -> float | None:
        return self.state.seconds if self.config.cpu_seconds is None else self.state.cpu_seconds


@torch.no_grad()
def adopt_average(state: TrainingState, trial: TrialConfig, data: DataSet, device: torch.device) -> None:
    """Load the averaged weights and re-estimate batch-norm statistics under them, on fixed training batches."""
    for name, parameter in state.model.named_parameters():
        parameter.copy_(state.average.get(name, parameter))  # none where no step was taken
        state.ranks.spread(parameter)
    if not batch_norms(state.model):
        return
    with averaged_anew(state.model):
        for x, draw in _fixed_batches(trial, data, device):
            state.model(*share_of(state.ranks, x, draw))


def _fixed_batches(trial: TrialConfig, data: DataSet, device: torch.device) -> Iterable[tuple[Tensor, Draw]]:
    order = batches(len(data.train), trial.training.batch_size, trial.seed + 1, 0)
    for index in range(trial.training.ema_batches):
        gen = keyed_generator(trial.seed, "re-estimate", index)
        x = model_input(picked(data.train, next(order)), trial.likelihood_spec, gen).to(device)
        yield x, Draw(seed_tensor(trial.seed, "re-estimate", device, index))


def training_batch(
    trial: TrialConfig, images: Tensor, indices: Tensor, step: int, device: torch.device | None = None
) -> Tensor:
    """Model input of one step for some of the images, on the device, or where they are."""
    return training_input(trial, batch_of(images, indices, device or images.device), step)


def training_input(trial: TrialConfig, chosen: Tensor, step: int) -> Tensor:
    """Model input of one step, keyed on (seed, step): flips where configured, then levels, then binarisation."""
    if not trial.training.flip:
        return model_input(chosen, trial.likelihood_spec, generator_seed(trial.seed, "batch", step))
    gen = keyed_generator(trial.seed, "batch", step, chosen.device)
    flip = torch.rand(len(chosen), 1, 1, 1, generator=gen, device=chosen.device) < 0.5
    return model_input(torch.where(flip, chosen.flip(-1), chosen), trial.likelihood_spec, gen)


@dataclass(frozen=True)
class Validation:
    """Means of one draw over the validation split, nats per image; without a prior the rate is 0."""

    elbo: float
    rate: float
    distortion: float


@torch.no_grad()
def validate(
    model: Model,
    trial: TrialConfig,
    images: Tensor,
    device: torch.device,
    stop: Callable[[], bool],
    ranks: Ranks = ALONE,
) -> Validation | None:
    """The terms of the ELBO on the validation split; None where `stop()` turned true on the way.

    Ranks take batches in turns; the sums run over all batches in their order.
    """
    model.eval()
    starts = range(0, len(images), trial.evaluation.batch_size)
    sums, stopped = torch.zeros(len(starts), 3, dtype=torch.float64), False
    try:
        for index in range(ranks.index, len(starts), ranks.count):
            stopped = stop() and index > 0
            if stopped:
                break
            sums[index] = _validation_sums(model, trial, images, device, starts[index])
        if ranks.any(stopped):
            return None
        return Validation(*(sum(column) / len(images) for column in ranks.added(sums).T.tolist()))
    finally:
        model.train()


def _validation_sums(model: Model, trial: TrialConfig, images: Tensor, device: torch.device, start: int) -> Tensor:
    """ELBO, rate and distortion (3) of the batch of validation images from `start` on, summed over its images."""
    gen = keyed_generator(trial.seed, "validation", start)
    batch = picked(images, slice(start, start + trial.evaluation.batch_size))
    x = model_input(batch, trial.likelihood_spec, gen).to(device)
    output = model(x, Draw(seed_tensor(trial.seed, "validation latents", device), first_sample=start))
    found = terms(output, x)
    return torch.stack([values.double().sum() for values in (found.elbo, found.rate, found.distortion)]).cpu()


def planned_steps(config: TrainingConfig, train_images: int) -> int:
    """Number of steps for `images` or `epochs` (not for `seconds`, which is measured)."""
    images = config.images if config.epochs is None else config.epochs * train_images
    return max(1, round(images / config.batch_size))


def train(
    model: Model,
    trial: TrialConfig,
    data: DataSet,
    folder: Path,
    progress: Progress,
    stop: Callable[[], bool],
    say: Callable[[str], None] = lambda text: None,
    observe: Observe = lambda name, value: None,
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train `model` in place, continuing from `folder`'s checkpoint if there is one.

    `progress(step, steps, text)` is called now and then; when `stop()` turns true, the state is saved and the result
    says `finished = False`. After `hopeless_after` steps in a row that were not taken it goes back to its last good
    state, at half the rate; where that has been done `back_offs` times, it ends. `say(text)` tells of such things,
    and `observe(name, value)`, before a step's progress, what the step has shown.
    Where several `ranks` call it alike, each with a model on `kernels.reference.synchronised` operations, they take
    the steps together; states are written by the first and read by all.

    Raises:
        StarvedError: memory ran out, and fresh processes are to go on with less from what is on disk.
        GivenUpError: memory ran out, and there is nothing that needs less.
    """
    device = next(model.parameters()).device
    state = restore(model, trial, folder) or fresh_state(model, trial, data, device, ranks)
    outside, images = Outside(progress, stop, say, observe), placed(data.train, device)
    if ranks.count > 1:
        _initialise(state, trial, images)
    if heed_starved(state, folder):
        say(f"memory ran out in one of the processes: {said_of_passes(state)}")
    share_steps(state, ranks)
    compilation = compile_step(state, trial, images)
    model.train()
    while True:
        try:
            _take_steps(state, trial, data, images, folder, outside)
        except StarvedError:
            state.restarts += 1
            leave_for_next(state, folder)
            say(f"out of memory at step {state.step}: in a fresh process {said_of_passes(state)}")
            raise
        lost = why_lost(state, trial.training)
        if not lost or state.back_offs >= trial.training.back_offs:
            break
        step, state = state.step, return_to_good(state, trial, folder)
        say(f"{lost} at step {step}; back to step {state.step} at {0.5**state.back_offs:g} of the rate")
    if device.type == "cuda":
        with StepClock(state):  # what is still in the device's queue
            torch.cuda.synchronize(device)
    finished = state.step >= state.steps and not lost and not _validation_is_due(state, trial.training)
    note_trouble(state, trial, images, seed_tensor(trial.seed, "latents", device))
    save_state(state, folder)
    if finished and trial.training.ema:
        adopt_average(state, trial, data, device)
    if state.graphs is not None and state.graphs.note:
        compilation = state.graphs.note
    return _result(state, trial, finished, compilation, _given_up(state, trial.training, lost))


def device_of(state: TrainingState) -> torch.device:
    """Where the steps are taken."""
    return next(state.model.parameters()).device


def _initialise(state: TrainingState, trial: TrialConfig, images: Tensor) -> None:
    """Let the model see its next batch whole before ranks share it, where it starts from data."""
    order = batches(len(images), trial.training.batch_size, trial.seed, state.step)
    device = device_of(state)
    x = training_batch(trial, images, next(order), state.step, device)
    draw = Draw(seed_tensor(trial.seed, "latents", device, state.step))
    initialise_from_data(state.model.train(), x, draw, trial.training.precision == "bfloat16")


def _take_steps(
    state: TrainingState,
    trial: TrialConfig,
    data: DataSet,
    images: Tensor,
    folder: Path,
    outside: Outside,
) -> None:
    """Steps from where the state is to the last one, or until it is to stop, or until they are lost."""
    config, device, ranks = trial.training, device_of(state), state.ranks
    guard = StepGuard(state.model, state.optimizer)
    latents = seed_tensor(trial.seed, "latents", device)
    supply = supplied(images, batches(len(images), config.batch_size, trial.seed, state.step), device)
    good = {state.steps * index // GOOD_STATES for index in range(GOOD_STATES)} if config.back_offs else set[int]()
    saved, clock = time.perf_counter(), StepClock(state)
    plan = StepPlan(state, config)
    _validate(state, trial, data, device, outside)  # where it was stopped there
    lost = why_lost(state, config)  # one that was given up is so still
    while state.step < state.steps and not (lost or ranks.any(outside.stop())):
        if state.step in good and is_sound(state):
            save_good(state, folder)
        before = state.passes, state.recompute
        with clock:
            x = training_input(trial, next(supply), state.step)
            loss = train_step(state, guard, trial, x, Draw(latents + state.step))
        plan.keep_to_budget()
        if (state.passes, state.recompute) != before:
            outside.say(f"out of memory at step {state.step}: {said_of_passes(state)}")
        (since,) = ranks.told(time.perf_counter() - saved)
        due = since > config.checkpoint_seconds
        if due or math.isnan(loss):
            if note_trouble(state, trial, images, latents):
                outside.say(f"a training step was not finite and is undone; {state.trouble}")
            lost = why_lost(state, config)
        _validate(state, trial, data, device, outside)
        if due:
            save_state(state, folder)
            saved = time.perf_counter()
        _show(state, loss, outside)


def _show(state: TrainingState, loss: float, outside: Outside) -> None:
    """Tell what the last step has shown, and how far the training is."""
    outside.observe(LOSS, loss)
    outside.observe(LEARNING_RATE, state.optimizer.param_groups[0]["lr"])
    outside.observe(GRADIENT_NORM, state.gradient_norm)
    outside.progress(state.step, state.steps, "train")


def said_of_passes(state: TrainingState) -> str:
    """How a batch is taken where memory ran out."""
    again = ", whose cells are computed again in the backward pass" if state.recompute else ""
    return f"a batch takes {state.passes} passes from here on{again}"


def _validation_is_due(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether the split is to be scored after the steps so far, and has not been."""
    done = {step for step, _ in state.validation}
    return state.step in validation_steps(config, state.steps) - done - {0}


def _validate(state: TrainingState, trial: TrialConfig, data: DataSet, device: torch.device, outside: Outside) -> None:
    """Score the validation split where that is due; one that `stop` ends is done when the training continues."""
    if _validation_is_due(state, trial.training):
        found = validate(state.model, trial, data.validation, device, outside.stop, state.ranks)
        if found is not None:
            state.validation.append((state.step, found.elbo))
            outside.observe(VALIDATION, found.elbo)
            outside.observe(VALIDATION_RATE, found.rate)
            outside.observe(VALIDATION_DISTORTION, found.distortion)


def is_sound(state: TrainingState) -> bool:
    """Whether the last step was taken and all parameters are finite."""
    taken = state.step == 0 or not bool(state.losses[state.step - 1].isnan())
    return taken and parameters_are_finite(state.model)


def why_lost(state: TrainingState, config: TrainingConfig) -> str:
    """Why going on is of no use; empty if it is of some.

    The last `hopeless_after` steps in a row were not taken, or a step that was has taken a parameter out of range.
    """
    latest = state.losses[max(0, state.step - config.hopeless_after) : state.step]
    if state.locked >= config.hopeless_after:
        return (
            f"the last {state.locked} steps were skipped, their gradient's norm at {config.skip_threshold:g} or above"
        )
    if len(latest) >= config.hopeless_after and bool(latest.isnan().all()):
        return f"the last {config.hopeless_after} steps were not finite and were undone ({state.trouble})"
    broken = state.step == state.steps or bool(latest[-1:].isnan().any())  # else the next step will tell
    if broken and not parameters_are_finite(state.model):
        return f"a step took parameters out of range ({state.trouble or 'the last one'})"
    return ""


def _given_up(state: TrainingState, config: TrainingConfig, lost: str) -> str:
    """What is said of a training that was given up, and what to do; empty for one that was not."""
    if not lost:
        return ""
    backed_off = f", after {state.back_offs} returns to a good state at half the rate" if state.back_offs else ""
    raised = "training.skip_threshold" if state.locked else "training.hopeless_after"
    return (
        f"given up at step {state.step} of {state.steps}: {lost}{backed_off}; lower training.learning_rate "
        f"({config.learning_rate:g}), or raise {raised}"
    )


def compile_step(state: TrainingState, trial: TrialConfig, images: Tensor) -> str:
    """Let the state's steps run compiled where the trial says so; returns what to record about it."""
    device = device_of(state)
    if trial.training.compile == "off":
        return ""
    if state.ranks.count > 1:
        return f"compile = {trial.training.compile}, but the training ran eagerly: {state.ranks.count} ranks shared it"
    if trial.training.compile == "graph":
        if device.type != "cuda":
            return "compile = graph, but the training ran eagerly: CUDA graphs need a GPU"
        state.graphs = StepGraphs(state.optimizer, device)
        return "steps replayed as CUDA graphs"
    x = training_batch(trial, images, torch.arange(trial.training.batch_size), 0, device)
    draw = Draw(seed_tensor(trial.seed, "compilation", x.device))
    bfloat16 = trial.training.precision == "bfloat16"
    state.forward, note = compiled_forward(state.model.train(), x, draw, bfloat16)
    return note


def note_trouble(state: TrainingState, trial: TrialConfig, images: Tensor, latents: Tensor) -> bool:
    """Set `state.trouble` at the first call that finds skipped steps: where the last goes wrong; whether it did so."""
    if state.trouble or state.skipped <= state.over_threshold:
        return False
    skipped = state.losses[: state.step].isnan()
    step = int(skipped.nonzero()[-1])
    order = batches(len(images), trial.training.batch_size, trial.seed, step)
    x = training_batch(trial, images, next(order), step, device_of(state))
    weights = weights_at(trial.objective, step / state.steps)
    where = replay(state.model, lambda twin: loss_of(twin, trial, x, Draw(latents + step), weights))
    found = f"the first value that is not finite is in the {where}" if where else "it is finite with the weights of now"
    state.trouble = f"step {step + 1} replayed after step {state.step}: {found}"
    return True


def replay(model: Model, loss: Callable[[Model], Tensor]) -> str | None:
    """Where `loss` of a copy of the model, or its gradient, is not finite first; None if all is finite."""
    twin = copy.deepcopy(model).train()
    found = first_non_finite(twin, lambda: loss(twin))
    if found is None:
        loss(twin).backward()
        found = next((f"gradient of {name}" for name in non_finite_gradients(twin)), None)
    return found


def fresh_state(
    model: Model, trial: TrialConfig, data: DataSet, device: torch.device, ranks: Ranks = ALONE
) -> TrainingState:
    """State at step 0; for a budget of time the number of steps is a first estimate, from measured speed."""
    steps = planned_steps(trial.training, len(data.train))
    budget = trial.training.budget
    if budget is not None:
        by_clock = trial.training.cpu_seconds is None
        clock = time.perf_counter if by_clock else time.process_time
        measured = CALIBRATION_STEPS if by_clock else PROCESSOR_CALIBRATION_STEPS
        (each,) = ranks.told(seconds_per_step(model, trial, data, clock, measured, ranks))
        steps = max(1, int(budget / (each if by_clock else each * ranks.count)))
    optimizer = build_optimizer(trial.training, model, device)
    return TrainingState(model, optimizer, torch.full((steps,), torch.nan), steps)


def seconds_per_step(
    model: Model,
    trial: TrialConfig,
    data: DataSet,
    clock: Callable[[], float] = time.perf_counter,
    steps: int = CALIBRATION_STEPS,
    ranks: Ranks = ALONE,
) -> float:
    """Median seconds of a training step by this process's `clock`, on a copy of the model so that nothing changes.

    The first quarter of `steps` warms up and does not count.
    """
    device = next(model.parameters()).device
    twin = copy.deepcopy(model).train()
    optimizer = build_optimizer(trial.training, twin, device)
    state = TrainingState(twin, optimizer, torch.zeros(steps), steps)
    share_steps(state, ranks)
    guard = StepGuard(twin, optimizer)
    order = batches(len(data.train), trial.training.batch_size, trial.seed, 0)
    times = []
    for step in range(steps):
        start = clock()
        x = training_batch(trial, data.train, next(order), step).to(device)
        train_step(state, guard, trial, x, Draw(seed_tensor(trial.seed, "calibration", device, step)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    counted = sorted(times[-(-steps // 4) :])
    return counted[len(counted) // 2]


def validation_steps(config: TrainingConfig, steps: int) -> set[int]:
    """Steps after which the validation split is scored: evenly spread, the last one included."""
    return {round(steps * (i + 1) / config.validations) for i in range(config.validations)}


def _result(
    state: TrainingState, trial: TrialConfig, finished: bool, compilation: str, hopeless: str
) -> TrainingResult:
    batch = trial.training.batch_size
    losses = state.losses[: state.step].double().cpu()
    chunks = [c for c in losses.tensor_split(min(CURVE_POINTS, max(1, len(losses)))) if len(c)]
    ends = torch.tensor([len(c) for c in chunks]).cumsum(0) * batch
    loss = Curve(LOSS, "nats/image", ends.tolist(), [float(c.nanmean()) for c in chunks])
    steps, values = [s for s, _ in state.validation], [v for _, v in state.validation]
    validation = Curve(VALIDATION, "nats/image", [float(s * batch) for s in steps], values)
    curves = [loss, validation]
    return TrainingResult(
        state.step,
        state.step * batch,
        state.seconds,
        state.skipped,
        curves,
        finished,
        state.trouble,
        compilation,
        hopeless,
        state.cpu_seconds,
        state.over_threshold,
        state.back_offs,
        state.passes,
        state.recompute,
        state.restarts,
        state.ranks.count,
    )
