"""What a suite will run: its trials, their folders, and what they are expected to cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.base.errors import UserError
from benchmarks.data import DataSet, load
from benchmarks.evaluation.checks import check
from benchmarks.machine.environment import choose_device
from benchmarks.machine.peak import resident
from benchmarks.records.record import (
    GALLERY,
    RECORD,
    LatentGroupInfo,
    RunRecord,
    load_record,
)
from benchmarks.storage.tensors import WEIGHTS
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import Suite, TrialConfig, trial_from_dict
from benchmarks.training.cost import macs_per_image, parameter_count, training_memory
from benchmarks.training.loop import CALIBRATION_STEPS, planned_steps, seconds_per_step
from benchmarks.trials.refusals import why_refused
from kernels.backends import describe

MOST_MEASURED = 10**11
"""Multiply-accumulates of forward passes in the steps that an estimate measures on a CPU: half a minute of a core."""
FEWEST_STEPS, SMALLEST_BATCH = 2, 2
"""Of such an estimate; the first step warms up."""
Size = tuple[int, int, tuple[LatentGroupInfo, ...]]
Work = Literal["train", "evaluate", "rename", "draw", "nothing"]
"""What is left of a trial: all, the evaluation of its weights, its names in the record, its gallery, or nothing."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, where it goes, and what is known of it before it runs."""

    trial: TrialConfig
    folder: Path
    parameters: int
    macs_per_image: int
    latents: tuple[LatentGroupInfo, ...]

    @property
    def name(self) -> str:
        """Row and seed, for messages."""
        return f"{self.trial.row} seed {self.trial.seed}"

    @property
    def work(self) -> Work:
        """What the trial's record leaves to do."""
        record = self.record
        if record is None or record.status not in ("trained", "done"):
            return "train"
        stored = _stored_trial(record)
        if record.status == "trained" or stored is None or stored.evaluation != self.trial.evaluation:
            return "evaluate"
        if stored != self.trial:
            return "rename"
        return "draw" if self.lacks_gallery else "nothing"

    @property
    def lacks_gallery(self) -> bool:
        """Whether the pictures for the page are missing, and there are weights to make them from."""
        return (self.folder / WEIGHTS).exists() and not (self.folder / GALLERY).exists()

    @property
    def record(self) -> RunRecord | None:
        """The trial's record, if an earlier run left one.

        Raises:
            UserError: a record that cannot be read.
        """
        try:
            return load_record(self.folder) if (self.folder / RECORD).exists() else None
        except ValueError as error:
            raise UserError(f"{error}; move that folder away to run the trial again") from error


@dataclass(frozen=True)
class Plan:
    """A suite made ready: its data is loaded, its models can be built, its folders are named.

    `missing` says, a line each, what its evaluation needs and is not there, `refused` which settings it will not train.
    """

    suite: Suite
    data: DataSet
    trials: list[PlannedTrial]
    out: Path
    plugins: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def plugin_flags(self) -> list[str]:
        """Command-line flags that hand the plugins on to a trial's process."""
        return [flag for plugin in self.plugins for flag in ("--plugin", plugin)]


def plan(suite: Suite, out: Path, plugins: tuple[str, ...] = (), *, to_run: bool = True) -> Plan:
    """The suite's plan; raises UserError for whatever would stop it later.

    A plan that is not `to_run` says what would.
    """
    data = load(suite.data)
    sizes: dict[str, Size] = {}
    trials = [planned_in(folder_of(trial, data.content_hash, out), trial, data, sizes) for trial in suite.trials]
    missing = check(list(dict.fromkeys(one.trial for one in trials if one.work in ("train", "evaluate"))), data)
    reasons = (why_refused(one.trial, data.image) for one in trials if one.work == "train")
    refused = [reason for reason in dict.fromkeys(reasons) if reason]
    if to_run and (refused or missing):
        raise UserError((refused or missing)[0])
    return Plan(suite, data, trials, out, plugins, tuple(missing), tuple(refused))


def planned_in(folder: Path, trial: TrialConfig, data: DataSet, sizes: dict[str, Size] | None = None) -> PlannedTrial:
    """The trial of that folder with its size: from its record where there is one, else from the model.

    `sizes` are those of models on these images, to which its own is added: another seed's is the same.
    """
    known = PlannedTrial(trial, folder, 0, 0, ())
    record = known.record
    if record is not None and record.macs_per_image is not None and known.work != "train":
        counts = record.parameters, record.macs_per_image, tuple(record.latent_groups)
    else:
        sizes, model = {} if sizes is None else sizes, repr((trial.model, trial.model_config, trial.likelihood_spec))
        counts = sizes[model] if model in sizes else _size(trial, data)
        sizes[model] = counts
    return PlannedTrial(trial, folder, *counts)


def _size(trial: TrialConfig, data: DataSet) -> Size:
    """Parameters, multiply-accumulates of an image and latent groups of the trial's model."""
    model = build_model(trial, data.image, torch.device("meta"))
    latents = tuple(LatentGroupInfo(s.channels, s.height, s.width) for s in model.latent_shapes)
    return parameter_count(model), macs_per_image(model, data.image), latents


def folder_of(trial: TrialConfig, data_hash: str, out: Path) -> Path:
    """The trial's folder in `out`: one that holds this very training, under whichever name, else a new one.

    Early runs named it after its label and evaluation, too.
    """
    versions = f"torch {torch.__version__}, operations {describe(trial.device)}"
    start = f"{trial.row}-seed{trial.seed}"
    names = [trial.identity(data_hash, versions), trial.first_identity(data_hash, versions)]
    folders = [out / f"{start}-{name}" for name in names]
    found = next((folder for folder in folders if folder.exists()), None)
    others = (path.parent for path in sorted(out.glob(f"{start}-*/{RECORD}")))
    return found or next((one for one in others if _holds(one, names[0])), folders[0])


def _holds(folder: Path, identity: str) -> bool:
    """Whether a folder's record is of the training of that identity."""
    try:
        record = load_record(folder)
    except ValueError:  # damaged: said when it is asked for itself
        return False
    stored, versions = _stored_trial(record), record.environment
    named = f"torch {versions.torch}, operations {versions.operations}"
    return stored is not None and stored.identity(record.data_hash, named) == identity


def _stored_trial(record: RunRecord) -> TrialConfig | None:
    """The trial that a record was taken of; None where its config does not fit this version."""
    try:
        return trial_from_dict(record.config)
    except UserError:
        return None


def estimated_seconds(planned: PlannedTrial, data: DataSet) -> float:
    """Training seconds expected of a trial, from a few measured steps on this machine now.

    On a CPU, steps that take long are measured on fewer images and counted in proportion.
    """
    config, device = planned.trial.training, choose_device(planned.trial.device)
    if config.budget is not None:
        return config.budget
    work = planned.macs_per_image * config.batch_size * CALIBRATION_STEPS
    steps, batch = CALIBRATION_STEPS, config.batch_size
    if device.type == "cpu" and work > MOST_MEASURED:
        steps = FEWEST_STEPS
        batch = min(batch, max(SMALLEST_BATCH, MOST_MEASURED // (planned.macs_per_image * steps)))
    trial = dataclasses.replace(planned.trial, training=dataclasses.replace(config, batch_size=batch))
    threads = torch.get_num_threads()
    torch.set_num_threads(planned.trial.threads)
    try:
        model = build_model(trial, data.image, device)
        seconds = seconds_per_step(model, trial, data, steps=steps) * config.batch_size / batch
        return seconds * planned_steps(config, len(data.train))
    finally:
        torch.set_num_threads(threads)


def estimated_memory(planned: PlannedTrial, data: DataSet, before: int) -> float:
    """MiB that the trial's process holds at its peak: what is there `before` it trains, and `training_memory`.

    On a GPU the latter alone, as its record counts.
    """
    model = build_model(planned.trial, data.image, torch.device("meta"))
    resident = before if planned.trial.device == "cpu" else 0
    return (resident + training_memory(model, planned.trial.training)) / 2**20


Status = Literal["done", "to run", "to evaluate", "to draw"]
STATUS: dict[Work, Status] = {
    "train": "to run",
    "evaluate": "to evaluate",
    "rename": "done",
    "draw": "to draw",
    "nothing": "done",
}


@dataclass(frozen=True)
class ScheduleRow:
    """A trial as `--dry-run` prints it; sizes and multiply-accumulates of one image, estimates in seconds and MiB.

    `steps` and `images` are None where the training has a budget in seconds.
    """

    row: str
    seed: int
    model: str
    parameters: int
    latents: int
    macs_per_image: int
    steps: int | None
    images: int | None
    estimated_training_seconds: float
    estimated_memory_mib: float
    status: Status
    folder: str
    config: dict[str, Any]


def schedule_rows(
    plan: Plan, estimate: Callable[[PlannedTrial, DataSet], float] = estimated_seconds
) -> list[ScheduleRow]:
    """Rows of `--dry-run`, one a trial, with counts and an estimate of training time and memory."""
    before = resident()  # imports and data, as in a trial's own process; no step has been measured yet
    return [_schedule_row(planned, plan.data, estimate, before) for planned in plan.trials]


def _schedule_row(
    planned: PlannedTrial, data: DataSet, estimate: Callable[[PlannedTrial, DataSet], float], before: int
) -> ScheduleRow:
    training, work = planned.trial.training, planned.work
    steps = None if training.budget else planned_steps(training, len(data.train))
    return ScheduleRow(
        row=planned.trial.row,
        seed=planned.trial.seed,
        model=planned.trial.model,
        parameters=planned.parameters,
        latents=sum(g.channels * g.height * g.width for g in planned.latents),
        macs_per_image=planned.macs_per_image,
        steps=steps,
        images=None if steps is None else steps * training.batch_size,
        estimated_training_seconds=estimate(planned, data) if work == "train" else 0.0,
        estimated_memory_mib=round(estimated_memory(planned, data, before), 1),
        status=STATUS[work],
        folder=planned.folder.name,
        config=dataclasses.asdict(planned.trial),
    )
