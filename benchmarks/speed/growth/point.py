"""One point of a growth curve, measured in a process of its own: `python -m benchmarks.speed.growth.point JSON`."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.base.children import environment, output_of
from benchmarks.base.errors import UserError
from benchmarks.base.plugins import import_plugin
from benchmarks.data import keyed_generator
from benchmarks.machine.environment import choose_device
from benchmarks.machine.peak import held, highest
from benchmarks.machine.process import keep_freed_memory
from benchmarks.metrics.extractors import open_extractor
from benchmarks.metrics.features import Extractor
from benchmarks.speed.clock import MAX_ROUNDS, Call, Watch, interleave, synchronise
from benchmarks.speed.growth.plan import Point
from benchmarks.speed.growth.verbs import METRICS, MODELS
from benchmarks.speed.spread import Spread, spread
from benchmarks.speed.target import Target, resolve
from benchmarks.speed.work import OURS, job_of
from models.output import ImageShape

EXTRACTOR_SIDE = 28
"""Of the images given to an extractor that takes any size."""


@dataclass(frozen=True)
class Measured:
    """What a point costs an image: seconds with quartiles, multiply-accumulates; bytes of memory of the whole call.

    `memory` is the peak of the calls above what was held before the first: model, data and what was set aside.
    """

    seconds: Spread
    macs: float
    memory: int
    other_cpu: float | None


@dataclass(frozen=True)
class Work:
    """A call, the images that it is for, and its multiply-accumulates for each."""

    call: Call
    images: int
    macs: float


def measure(point: Point) -> Measured:
    """The point, from a process of its own.

    Raises:
        UserError: the process failed; carries its last line.
    """
    command = [sys.executable, "-m", "benchmarks.speed.growth.point", json.dumps(dataclasses.asdict(point))]
    found: dict[str, Any] = json.loads(output_of(command, environment(point.threads)).strip().splitlines()[-1])
    return Measured(**{**found, "seconds": Spread(**found["seconds"])})


def measured(point: Point) -> Measured:
    """The point, measured in this process.

    Raises:
        UserError: something that the point names is not there, or does not fit.
    """
    device = choose_device(point.device)
    work = _of_metric(point) if point.what in METRICS else _of_model(point, device)
    drain, watch, before = synchronise(device), Watch(), held(device)

    def enough(rounds: int, passed: float, wanted: float) -> bool:
        return rounds >= point.rounds and (passed >= wanted or rounds >= MAX_ROUNDS)

    (times,) = interleave({point.what: work.call}, point.seconds, drain, enough=enough).values()
    memory = highest(device) - before
    seconds = spread([one / work.images for one in times.wall])
    return Measured(seconds, work.macs, max(0, memory), watch.stop().other_cpu)


def _of_model(point: Point, device: torch.device) -> Work:
    """A verb of a model."""
    target = resolve(point.target, [point.row] if point.row else None)[0].overridden(point.overrides)
    job = job_of(_of_side(target, point.side), device, point.draws)
    call = OURS[point.what](job)
    if call is None:
        raise UserError(f"{point.what} of {target.name}: expected a model with a prior, got {target.trial.model}")
    return Work(call, job.batch, MODELS[point.what](job.model, point.draws))


def _of_side(target: Target, side: int) -> Target:
    """The target for square images of that side, on noise; as it is for 0."""
    if not side:
        return target
    trial = dataclasses.replace(target.trial, data="")
    return dataclasses.replace(target, trial=trial, image=ImageShape(target.image.channels, side, side))


def _of_metric(point: Point) -> Work:
    """A metric on features."""
    extractor = open_extractor(point.target, device=point.device)
    images = _noise(extractor, point)
    metric = METRICS[point.what]
    return Work(metric.call(extractor, images), point.n, metric.arithmetic(extractor, images))


def _noise(extractor: Extractor, point: Point) -> torch.Tensor:
    """As many 8-bit images of noise as the point asks for, of a shape that the extractor takes."""
    side = point.side or extractor.size or EXTRACTOR_SIDE
    size = (point.n, extractor.channels[0], side, side)
    return torch.randint(256, size, dtype=torch.uint8, generator=keyed_generator(0, "growth: images"))


if __name__ == "__main__":
    try:
        asked = Point(**json.loads(sys.argv[1]))
        for plugin in asked.plugins:
            import_plugin(plugin)
        keep_freed_memory()
        torch.set_num_threads(asked.threads)
        print(json.dumps(dataclasses.asdict(measured(asked))))
    except UserError as error:
        sys.exit(f"error: {error}")
