"""What the trials of a run have to do, counted before anything is timed, and how long a training step takes.

The unit is a pass: one image through the model and back to an image. A training step counts three an image, its
backward pass being taken for two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.evaluation.samples import PRIOR_BATCH
from benchmarks.training.loop import CALIBRATION_STEPS, planned_steps
from benchmarks.trials.schedule import Plan, PlannedTrial, estimated_seconds

OF_TRAINING, OF_BOUND, OF_RECONSTRUCTION, OF_SAMPLE = 3, 0.6, 1.4, 0.5
"""Passes of an image: in a training step, for a draw of the bound, reconstructed, drawn. Rounded, from the quick suite
on a CPU; evaluation is faster than a third of a step, and the encoder runs once for all draws of the bound."""
FEATURES, REFITTED, PICTURES = "feature distances", "samples with prior statistics", "pictures"
MOST_SHARE = 0.02
"""Of the steps of a training: more are not taken to find out how long they are."""


@dataclass(frozen=True)
class Workload:
    """What is left to do for a trial.

    Args:
        row: of the suite; trials of a row differ in their seed.
        model: its registry name.
        macs: multiply-accumulates of a pass.
        step: passes of a training step.
        steps: of the training; 0 where it is done, None where it has a budget of time.
        budget: seconds of the training, where it has one.
        validation: passes of a validation, of which there are `validations`.
        evaluation: passes by phase, in their order; "feature distances" has none.
        timed: whether throughput is to be measured.
        runs: whether a process is to be started for anything else.
    """

    row: str
    model: str
    macs: int
    step: int
    steps: int | None
    budget: float | None
    validation: int
    validations: int
    evaluation: dict[str, float]
    timed: bool = True
    runs: bool = True

    def training(self, steps: float, share: float) -> float:
        """Passes of so many steps, a `share` of the training, with their validations."""
        return self.step * steps + self.validation * int(self.validations * share)


def workloads(plan: Plan) -> dict[str, Workload]:
    """What is left to do, by name, for each trial of a plan of which anything is."""
    return {one.name: _workload(one, plan) for one in plan.trials if one.work != "nothing" or _lacks_throughput(one)}


def _lacks_throughput(planned: PlannedTrial) -> bool:
    record = planned.record
    return record is not None and record.get("train_throughput") is None


def _workload(planned: PlannedTrial, plan: Plan) -> Workload:
    trial, data, work = planned.trial, plan.data, planned.work
    training, steps = trial.training, 0
    if work == "train":
        steps = None if training.budget else planned_steps(training, len(data.train))
    return Workload(
        row=trial.row,
        model=trial.model,
        macs=planned.macs_per_image,
        step=OF_TRAINING * training.batch_size,
        steps=steps,
        budget=training.budget if steps is None else None,
        validation=len(data.validation),
        validations=training.validations,
        evaluation=_evaluation(planned, plan) if work in ("train", "evaluate") else {},
        timed=work in ("train", "evaluate") or _lacks_throughput(planned),
        runs=work not in ("rename", "nothing"),
    )


def _evaluation(planned: PlannedTrial, plan: Plan) -> dict[str, float]:
    """Passes of the phases of an evaluation."""
    settings, images = planned.trial.evaluation, len(plan.data.test)
    images = min(images, settings.images or images)
    found: dict[str, float] = {"reconstruction": OF_RECONSTRUCTION * images}
    if planned.latents:
        samples = OF_SAMPLE * (settings.samples or images)
        found = {"likelihood": OF_BOUND * settings.iwae_samples * images, **found, "samples": samples}
    if settings.extractor or plan.data.extractor:
        found[FEATURES] = 0
    if settings.prior_batches and planned.latents:
        found[REFITTED] = found["samples"] + OF_SAMPLE * PRIOR_BATCH * settings.prior_batches
    if planned.latents:
        found[PICTURES] = 0
    return found


def step_seconds(plan: Plan, jobs: int) -> dict[str, float]:
    """Seconds of a training step by row: of another seed's record, else measured here and now if trials have to wait.

    Rows differ in speed by much more than in multiply-accumulates. A row is measured on a CPU, if that takes a small
    share of its training; rows of one size and batch are measured once.
    """
    trained = [(one.trial.row, record) for one in plan.trials if (record := one.record) is not None and record.steps]
    known = {row: record.training_seconds / record.steps for row, record in trained}
    waiting = [one for one in plan.trials if one.work == "train" and one.trial.row not in known]
    return known | (_measured(waiting, plan) if len(waiting) > jobs else {})


def _measured(waiting: Sequence[PlannedTrial], plan: Plan) -> dict[str, float]:
    """Seconds of a training step by row, as measured."""
    sizes, found = dict[tuple[object, ...], float](), dict[str, float]()
    for one in waiting:
        training, row = one.trial.training, one.trial.row
        if row in found or training.budget or one.trial.device != "cpu":
            continue
        steps = planned_steps(training, len(plan.data.train))
        if MOST_SHARE * steps < CALIBRATION_STEPS:
            continue
        size = one.trial.model, one.parameters, one.macs_per_image, training.batch_size, training.precision
        if size not in sizes:
            sizes[size] = estimated_seconds(one, plan.data) / steps
        found[row] = sizes[size]
    return found
