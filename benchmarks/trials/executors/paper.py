"""What a plan will take on a cluster, before anything is handed over: trials, memory, hours with their basis, disk."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.base.children import ROOT
from benchmarks.machine.peak import resident
from benchmarks.training.loop import planned_steps
from benchmarks.trials.executors.choice import Wanted
from benchmarks.trials.executors.slurm import HOURS
from benchmarks.trials.schedule import Plan, PlannedTrial, estimated_memory, estimated_seconds

FOUND = ROOT / "results" / "gpu" / "nvidia-h100-80gb-hbm3" / "training.json"
"""What a training of `nvae-cifar10` in bfloat16 was measured to take on one H100."""
FOUND_MACS = 33_585e6
"""Multiply-accumulates of an image of that training."""
BUDGET, RECORDED, MEASURED = "its budget", "the record of another seed", "steps measured on this machine now"
STATES, MOMENTS = 3, 2
"""Training states that a trial keeps at a time, and optimizer values a parameter in each."""
FLOAT = 4
PICTURES, PER_IMAGE = 512, 64
"""Images that a finished trial keeps, as if nothing were compressed, and bytes for each test image."""
GIB = 2**30


@dataclass(frozen=True)
class RowPlan:
    """A row of a plan: its trials that are to be trained, and what one of them takes.

    Hours are those of the training; memory in GiB is that of the process, on a GPU the GPU's; disk in GiB is what
    stays, and what a trial has at its peak.
    """

    row: str
    trials: int
    parameters: int
    macs_per_image: int
    hours: float
    basis: str
    memory: float
    disk: float
    peak_disk: float


@dataclass(frozen=True)
class PaperPlan:
    """A plan on paper: its rows, trials at a time (None: not known), and sums.

    `hours` are of all trainings one after the other, `wall_hours` with so many at a time, no shorter than the longest.
    """

    title: str
    data: str
    executor: str
    at_once: int | None
    device: str
    cores: int
    ranks: int
    limit_hours: float | None
    rows: list[RowPlan]
    trials: int
    finished: int
    hours: float
    wall_hours: float | None
    disk: float
    peak_disk: float
    data_gib: float


def paper_plan(plan: Plan, wanted: Wanted) -> PaperPlan:
    """The plan on paper, for the executor that is wanted."""
    groups: dict[str, list[PlannedTrial]] = {}
    for planned in plan.trials:
        if planned.work == "train":
            groups.setdefault(planned.trial.row, []).append(planned)
    before = resident()
    rows = [_row(found, plan, before) for found in groups.values()]
    hours, first = sum(row.trials * row.hours for row in rows), plan.suite.trials[0]
    trials = sum(row.trials for row in rows)
    kept = sum(row.trials * row.disk for row in rows)
    data = plan.data.train, plan.data.validation, plan.data.test
    return PaperPlan(
        title=plan.suite.title,
        data=plan.data.name,
        executor=wanted.name,
        at_once=wanted.jobs,
        device=first.device,
        cores=max(trial.threads for trial in plan.suite.trials) * wanted.ranks,
        ranks=wanted.ranks,
        limit_hours=(wanted.hours or HOURS) if wanted.name == "slurm" else None,
        rows=rows,
        trials=trials,
        finished=len(plan.trials) - trials,
        hours=hours,
        wall_hours=max([hours / wanted.jobs, *(row.hours for row in rows)]) if wanted.jobs else None,
        disk=kept,
        peak_disk=kept + _most_at_once(rows, wanted.jobs),
        data_gib=sum(part.nbytes for part in data) / GIB,
    )


def shown(papers: Sequence[PaperPlan]) -> str:
    """Plans on paper as text: each by itself, and several together."""
    return "\n".join([*(_shown(paper) for paper in papers), *(_together(papers) if len(papers) > 1 else [])])


def _together(papers: Sequence[PaperPlan]) -> list[str]:
    """Lines for several plans, trials of all of them at a time."""
    jobs, hours = papers[0].at_once, sum(paper.hours for paper in papers)
    longest = max(row.hours for paper in papers for row in paper.rows) if any(paper.rows for paper in papers) else 0.0
    clock = f", {max(hours / jobs, longest):,.1f} by the clock with {jobs} at a time" if jobs else ""
    kept = sum(paper.disk for paper in papers)
    rows = [row for paper in papers for row in paper.rows]
    return [
        f"together: {sum(paper.trials for paper in papers)} trials on {len(papers)} data sets, {hours:,.1f} hours of "
        f"training{clock}, {kept:,.2f} GiB of disk stay, {kept + _most_at_once(rows, jobs):,.2f} at most"
    ]


def _shown(paper: PaperPlan) -> str:
    width = max([3, *(len(row.row) for row in paper.rows)])
    lines = [f"{paper.title}: {paper.data}, on {paper.executor}"]
    lines += [
        f"  {row.row:{width}}  {row.trials:3} trials  {row.parameters:>11,} parameters  "
        f"{row.macs_per_image / 1e6:9,.1f} M MACs/image  each {row.memory:6.2f} GiB, {row.hours:8.2f} h, "
        f"disk {row.disk:.2f} GiB, {row.peak_disk:.2f} in training"
        for row in paper.rows
    ]
    return "\n".join([*lines, *_sums(paper), *_bases(paper.rows)])


def _sums(paper: PaperPlan) -> list[str]:
    """Lines for all rows together."""
    devices = f"{paper.ranks} GPU{'s' * (paper.ranks > 1)}, " if paper.device.startswith("cuda") else ""
    limit = paper.limit_hours
    longer = sum(row.trials for row in paper.rows if limit is not None and row.hours > limit)
    room = paper.at_once or "as many as there is room for"
    return [
        f"trials: {paper.trials} to train, {paper.finished} trained before; {room} at a time",
        f"a job: {devices}{paper.cores} cores" + (f", {limit:g} h" if limit is not None else ""),
        *([f"{longer} trials take longer than that and go on after a requeue"] if longer else []),
        f"memory: up to {max((row.memory for row in paper.rows), default=0):.2f} GiB a trial"
        + (" on its GPU" if devices else "")
        + f"; images {paper.data_gib:.2f} GiB a process",
        f"hours: {paper.hours:,.1f} of training"
        + (f", {paper.wall_hours:,.1f} by the clock" if paper.wall_hours is not None else "")
        + "; evaluation and throughput come on top",
        f"disk: {paper.disk:,.2f} GiB stay, {paper.peak_disk:,.2f} GiB at most",
    ]


def _bases(rows: Sequence[RowPlan]) -> list[str]:
    """What the hours rest on, a line a basis."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.basis, []).append(row.row)
    return [f"basis of hours: {basis} ({', '.join(names)})" for basis, names in found.items()]


def _row(trials: Sequence[PlannedTrial], plan: Plan, before: int) -> RowPlan:
    """A row of which these trials are to be trained."""
    first = trials[0]
    seconds, basis = _seconds(first, plan)
    image, training = plan.data.image, first.trial.training
    pictures = PICTURES * image.dims + PER_IMAGE * len(plan.data.test)
    weights = FLOAT * first.parameters
    states = STATES * weights * (1 + MOMENTS + bool(training.ema))
    return RowPlan(
        row=first.trial.row,
        trials=len(trials),
        parameters=first.parameters,
        macs_per_image=first.macs_per_image,
        hours=seconds / 3600,
        basis=basis,
        memory=estimated_memory(first, plan.data, before) / 2**10,
        disk=(weights + pictures) / GIB,
        peak_disk=(weights + pictures + states) / GIB,
    )


def _seconds(planned: PlannedTrial, plan: Plan) -> tuple[float, str]:
    """Seconds of a trial's training, and what they rest on."""
    training, row = planned.trial.training, planned.trial.row
    if training.budget is not None:
        return training.budget, BUDGET
    steps = planned_steps(training, len(plan.data.train))
    others = [record for one in plan.trials if one.trial.row == row and (record := one.record) is not None]
    known = [record.training_seconds / record.steps for record in others if record.steps]
    if known:
        return steps * sum(known) / len(known), RECORDED
    if planned.trial.device.startswith("cuda") and not torch.cuda.is_available():
        images = steps * training.batch_size
        return planned.macs_per_image * images / (FOUND_MACS * found_images()), proportion()
    return estimated_seconds(planned, plan.data), MEASURED


@functools.cache
def found_images() -> float:
    """Images/s of the training in `FOUND`."""
    rows = json.loads(FOUND.read_text())["rows"]
    return next(float(row["images_per_s"]) for row in rows if row["case"] == "training")


def proportion() -> str:
    """The basis of hours on a GPU that is elsewhere."""
    images = found_images()
    return (
        f"multiply-accumulates, at the {FOUND_MACS * images:.1e} a second that a training of nvae-cifar10 reached on "
        f"one H100 ({images:.0f} images/s)"
    )


def _most_at_once(rows: Sequence[RowPlan], at_once: int | None) -> float:
    """GiB of the training states that are on disk at a time, at most: those of the largest trials."""
    sizes = sorted((row.peak_disk - row.disk for row in rows for _ in range(row.trials)), reverse=True)
    return sum(sizes[:at_once])
