"""Step `training`: a short training of NVAE in bfloat16: is it finite, does its loss fall, does its seed repeat it?

On a GPU the steps are replayed as CUDA graphs; the last case says how far they are from those of an eager training.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.base.errors import UserError
from benchmarks.base.streams import seed_tensor
from benchmarks.data import batches, load
from benchmarks.gpu.findings import Fields, Findings
from benchmarks.speed.target import Target, resolve
from benchmarks.training.guard import StepGuard
from benchmarks.training.loop import compile_step, training_batch
from benchmarks.training.state import TrainingState, build_optimizer
from benchmarks.training.step import train_step
from models.output import Draw, ImageShape

PRESET = {"cuda": "nvae-cifar10", "cpu": "nvae-color-small"}
OVERRIDES = {"cuda": (), "cpu": ("model.channels_encoder=8", "model.channels_decoder=8", "training.batch_size=4")}
STEPS, REPEATED = {"cuda": 80, "cpu": 20}, {"cuda": 10, "cpu": 2}
DATA = ("photos-32-small", "patches")
"""In the order of preference; made images where no package has them."""
IMAGES = 512
SETTINGS = ("training.precision=bfloat16", "training.learning_rate=2e-3", "training.compile=graph")
EAGER = ("training.compile=off",)
WARMUP = 0.5
"""Share of the steps in which the learning rate rises: the published one rises over thousands of steps, up to 1e-2."""
STEP_SECONDS = 0.6
"""Of one step at most, for planning."""


def run(findings: Findings) -> None:
    """A training, then the same one's beginning twice, with algorithms as they are and deterministic ones."""
    findings.show(
        (
            *(("steps", "steps"), ("first", "first loss"), ("last", "last loss"), ("skipped", "skipped")),
            *(("images_per_s", "images/s"), ("equal_losses", "equal losses"), ("equal_weights", "equal weights")),
            ("seconds", "s"),
        )
    )
    device = torch.device(findings.device)
    target = shortened(resolve(PRESET[device.type])[0].overridden([*OVERRIDES[device.type], *SETTINGS]))
    images, where = images_for(target.image)
    findings.facts |= {"preset": PRESET[device.type], "images": where, "batch": target.trial.training.batch_size}
    steps, repeated = STEPS[device.type], REPEATED[device.type]
    findings.case("training", functools.partial(_train, target, images, device, steps, findings), needs=20)
    for deterministic in (False, True):
        name = f"the same seed twice{', deterministic algorithms of cuDNN' if deterministic else ''}"
        call = functools.partial(_twice, target, images, device, repeated, deterministic)
        findings.case(name, call, needs=10 + 2 * repeated * (STEP_SECONDS if device.type == "cuda" else 0.1))
        if findings.dry:
            return
    call = functools.partial(_eager_too, target, images, device, repeated)
    findings.case("the same seed eagerly", call, needs=15 + repeated * STEP_SECONDS)


def shortened(target: Target) -> Target:
    """The target with a learning rate that rises for half of a short training."""
    training = dataclasses.replace(target.trial.training, warmup=WARMUP)
    return dataclasses.replace(target, trial=dataclasses.replace(target.trial, training=training))


def images_for(image: ImageShape) -> tuple[Tensor, str]:
    """Training images (N, C, H, W) uint8 of that shape and where they come from."""
    for name in DATA:
        try:
            found = load(name, download=False).train
        except (UserError, ImportError, OSError, ValueError):
            continue
        if tuple(found.shape[1:]) == (image.channels, image.height, image.width):
            return found[:IMAGES], name
    return made_images(image), "made: smooth noise"


def made_images(image: ImageShape) -> Tensor:
    """Smooth coloured noise, uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, image.channels, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, (image.height, image.width), mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Losses (steps,) on the CPU, the state behind the last step, and seconds of the second half of the steps."""

    losses: Tensor
    state: TrainingState
    seconds: float


def trained(target: Target, images: Tensor, device: torch.device, steps: int, until: float | None = None) -> Trained:
    """A training of `steps`, or as many as fit until a time on the clock."""
    trial, model = target.trial, target.build(device).train()
    optimizer = build_optimizer(trial.training, model, device)
    state = TrainingState(model, optimizer, torch.full((steps,), torch.nan), steps)
    guard, images = StepGuard(model, optimizer), images.to(device)
    compile_step(state, trial, images)
    latents = seed_tensor(trial.seed, "latents", device)
    order, middle, started = batches(len(images), trial.training.batch_size, trial.seed, 0), steps // 2, 0.0
    for step in range(steps):
        if step == middle:
            _wait(device)
            started = time.perf_counter()
        x = training_batch(trial, images, next(order), step)
        train_step(state, guard, trial, x, Draw(latents + step))
        if until is not None and step % 10 == 9:
            _wait(device)
            if time.time() > until and step > middle:
                break
    _wait(device)
    return Trained(state.losses[: state.step], state, time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _train(target: Target, images: Tensor, device: torch.device, steps: int, findings: Findings) -> Fields:
    """Losses of a training; it passes if no step was skipped and the last quarter's loss is below the first's."""
    found = trained(target, images, device, steps, until=time.time() + 0.6 * findings.left())
    losses: list[float] = found.losses.tolist()
    quarter = max(1, len(losses) // 4)
    first, last = statistics.fmean(losses[:quarter]), statistics.fmean(losses[-quarter:])
    timed = len(losses) - steps // 2
    return {
        "passed": found.state.skipped == 0 and last < first,
        "steps": len(losses),
        "first": first,
        "last": last,
        "skipped": found.state.skipped,
        "images_per_s": timed * target.trial.training.batch_size / found.seconds,
        "losses": losses,
        "message": "" if last < first else "the loss did not fall",
    }


def _twice(target: Target, images: Tensor, device: torch.device, steps: int, deterministic: bool) -> Fields:
    """What is equal bit for bit when the same training is begun twice; nothing is judged."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = deterministic
    try:
        one, two = (trained(target, images, device, steps) for _ in range(2))
    finally:
        torch.backends.cudnn.deterministic = before
    equal = (one.losses == two.losses).tolist()
    weights = _differences(one.state, two.state)
    return {
        "passed": None,
        "steps": steps,
        "equal_losses": f"{sum(equal)} of {steps}",
        "equal_weights": f"{sum(not value for value in weights.values())} of {len(weights)}",
        "first different loss": equal.index(False) if False in equal else None,
        "largest difference of a loss": float((one.losses - two.losses).abs().max()),
        "weights that differ most": dict(sorted(weights.items(), key=lambda item: -item[1])[:10]),
    }


def _eager_too(target: Target, images: Tensor, device: torch.device, steps: int) -> Fields:
    """How far losses of replayed steps are from those of eager ones, relative; not judged, for sums may differ."""
    replayed, eager = (
        trained(one, images, device, steps).losses.double() for one in (target, target.overridden(EAGER))
    )
    return {
        "passed": None,
        "steps": steps,
        "equal_losses": f"{int((replayed == eager).sum())} of {steps}",
        "relative differences": ((replayed - eager).abs() / eager.abs()).tolist(),
    }


def _differences(one: TrainingState, two: TrainingState) -> dict[str, Any]:
    """Largest difference of each parameter and buffer of two states."""
    other = two.model.state_dict()
    return {
        key: float((value.double() - other[key].double()).abs().max()) if value.numel() else 0.0
        for key, value in one.model.state_dict().items()
    }
