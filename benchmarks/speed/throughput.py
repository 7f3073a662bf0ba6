"""Rates, peak memory and breakdown of models, variants in turns; run in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.base.errors import unknown
from benchmarks.machine import instructions
from benchmarks.records.catalogue import measurement
from benchmarks.records.record import Measurement
from benchmarks.speed import clock, memory
from benchmarks.speed.breakdown import step_breakdown
from benchmarks.speed.clock import Call, Watch, interleave, synchronise
from benchmarks.speed.spread import Spread, paired_ratio, spread, winner
from benchmarks.speed.target import Target
from benchmarks.speed.work import OURS, Job, job_of, verbs_of
from benchmarks.speed.worker import Work, Worker
from benchmarks.training.cost import macs_per_image
from kernels.backends import describe

OURS_NAME, PLAIN_NAME = "ours", "baseline"
MEMORY, BREAKDOWN, START = "memory", "breakdown", "start"
USUAL = ("train", "encode", "reconstruct", "sample", MEMORY, BREAKDOWN)
"""What is measured unless told otherwise; `iwae` joins where a number of draws is given."""
KNOWN = (*OURS, MEMORY, BREAKDOWN, START)
TRAINING = ("train", "loop")
"""Verbs that train, and so may be compiled."""


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: a target in this suite's implementation or in the plain one."""

    name: str
    target: Target
    plain: bool = False


@dataclass(frozen=True)
class Settings:
    """How variants are measured.

    Args:
        device: where they run; on a CPU with torch's present number of threads.
        what: some of `KNOWN`.
        seconds: time for each verb and variant.
        draws: K of the importance-weighted bound.
        trace: file for a Chrome trace of one training step of the first variant.
        plugins: modules that a fresh process imports first.
    """

    device: torch.device
    what: tuple[str, ...] = USUAL
    seconds: float = 0.8
    draws: int = 1
    trace: Path | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.what:
            if name not in KNOWN:
                raise unknown("name of --what", name, KNOWN)


def measure(variants: Sequence[Variant], settings: Settings) -> list[Measurement]:
    """Rates with quartiles, speed-ups of the first of two variants, peak memory, shares of the training step.

    Raises:
        UserError: a model without a plain implementation, or one that it does not cover.
    """
    jobs = {v.name: job_of(v.target, settings.device, settings.draws) for v in variants}
    details = {v.name: describe_variant(v, jobs[v.name], settings) for v in variants}
    rows: list[Measurement] = []
    for verb in settings.what:
        if verb in OURS:
            rows += rates(verb, variants, jobs, details, settings)
    if BREAKDOWN in settings.what or settings.trace is not None:
        first = variants[0]
        rows += breakdown_rows(jobs[first.name], details[first.name], settings)
    del jobs
    if MEMORY in settings.what:
        rows += [row for v in variants for row in memory_rows(v, details[v.name], settings)]
    return rows


def describe_variant(variant: Variant, job: Job, settings: Settings) -> dict[str, Any]:
    """What every measurement of the variant says about its conditions."""
    return {
        "target": variant.target.name,
        "variant": variant.name,
        "overrides": list(variant.target.overrides),
        "batch": job.batch,
        "threads": torch.get_num_threads(),
        "precision": "float32" if variant.plain else job.trial.training.precision,
        "compile": "off" if variant.plain else job.trial.training.compile,
        "device": settings.device.type,
        "instruction_set": None if settings.device.type == "cuda" else instructions.present(),
        "operations": "plain PyTorch" if variant.plain else describe(settings.device),
        "macs_per_image": macs_per_image(job.model, job.model.image),
    }


def rates(
    verb: str,
    variants: Sequence[Variant],
    jobs: dict[str, Job],
    details: dict[str, dict[str, Any]],
    settings: Settings,
) -> list[Measurement]:
    """Images a second of one verb of all variants that have it, in turns, and the speed-up of the first."""
    chosen = [v for v in variants if verb in verbs_of(v.target.trial, v.plain)]
    metric, calls = f"{verb}_throughput", {v.name: OURS[verb](jobs[v.name]) for v in chosen if not v.plain}
    rows = [
        measurement(metric, None, note="no prior", details=details[name])
        for name, call in calls.items()
        if call is None
    ]
    timed: dict[str, Call | Worker] = {name: call for name, call in calls.items() if call is not None}
    if not timed:
        return rows
    with contextlib.ExitStack() as workers:
        for variant in (v for v in chosen if v.plain):
            work = Work(request_of(variant, settings), verb, settings.draws, clock.TURN_SECONDS)
            timed[variant.name] = workers.enter_context(Worker(work))
        watch = Watch([one.process.pid for one in timed.values() if isinstance(one, Worker)])
        times = interleave(timed, settings.seconds, synchronise(settings.device))
        around = dataclasses.asdict(watch.stop())
    values = {name: [jobs[name].batch / t for t in found.wall] for name, found in times.items()}
    for name, found in values.items():
        extra = {"draws": settings.draws} if verb == "iwae" else {}
        row = rate_row(metric, spread(found), {**details[name], **around, **extra})
        said = dict.fromkeys(jobs[name].notes) if verb in TRAINING else ()
        rows.append(dataclasses.replace(row, note="; ".join(said)))
    if len(values) == 2:
        cpu = [jobs[name].batch / spread(found.cpu).median for name, found in times.items()]
        ratio = cpu[0] / cpu[1] if torch.get_num_threads() == 1 else None
        rows.append(speedup_row(verb, values, {**details[variants[0].name], **around, "cpu_ratio": ratio}))
    return rows


def rate_row(metric: str, rate: Spread, details: dict[str, Any]) -> Measurement:
    """A rate with its interquartile range."""
    interval = {"low": rate.low, "high": rate.high, "spread_kind": "IQR"}
    return measurement(metric, rate.median, n=rate.n, **interval, details=details)


def speedup_row(verb: str, values: dict[str, list[float]], details: dict[str, Any]) -> Measurement:
    """The ratio of two variants' rates, round by round, and which is faster.

    `cpu_ratio` in the details is that of images per CPU second, where one thread computes: other processes hardly
    change it, while threads that wait for each other would.
    """
    (first, ours), (second, other) = values.items()
    ratio = paired_ratio(ours, other)
    said = winner(spread(ours), spread(other), ratio, (first, second))
    return Measurement(
        f"{verb}_speedup",
        ratio.median,
        f"x {second}",
        True,
        ratio.n,
        ratio.low,
        ratio.high,
        "IQR",
        note=said,
        details={**details, "over": second},
    )


def request_of(variant: Variant, settings: Settings) -> memory.Request:
    """What another process needs to build the variant."""
    target = variant.target
    return memory.Request(
        target.source,
        target.row,
        list(target.overrides),
        variant.plain,
        str(settings.device),
        torch.get_num_threads(),
        list(settings.plugins),
        target.hparams,
    )


def memory_rows(variant: Variant, details: dict[str, Any], settings: Settings) -> list[Measurement]:
    """Peak memory of the training step in MiB, in a fresh process: of all of it, and above model and data."""
    peak = memory.measure_peak(request_of(variant, settings))
    whole = {**details, "meaning": memory.MEANING["cuda" if settings.device.type == "cuda" else "cpu"]}
    above = {**details, "meaning": memory.ABOVE}
    return [
        measurement("peak_memory", peak.whole / 2**20, n=1, details=whole),
        measurement("peak_memory_above_model", peak.above / 2**20, n=1, details=above),
    ]


def breakdown_rows(job: Job, details: dict[str, Any], settings: Settings) -> list[Measurement]:
    """Share of each kind of operation in one training step; with `trace`, a Chrome trace of it."""
    found = step_breakdown(job, settings.trace)
    return [
        Measurement(f"{kind}_share", share, "of the training step", None, 1, details=details)
        for kind, share in found.items()
    ]
