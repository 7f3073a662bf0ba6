"""One trial of a table, run in a process of its own: build, train, evaluate, record."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from benchmarks.base import output
from benchmarks.base.batches import Batches
from benchmarks.base.errors import GivenUpError, UserError
from benchmarks.base.files import write_bytes_atomically
from benchmarks.base.signals import StopSignal
from benchmarks.data import DataSet, load
from benchmarks.evaluation.evaluate import Evaluation, Progress, evaluate
from benchmarks.evaluation.gallery import gallery
from benchmarks.evaluation.shared import shared_batches
from benchmarks.machine.environment import choose_device, collect
from benchmarks.machine.peak import highest
from benchmarks.machine.process import flush_subnormals, frozen_garbage, keep_freed_memory
from benchmarks.records.catalogue import measurement, of_the_machine
from benchmarks.records.record import (
    GALLERY,
    RECORD,
    LatentGroupInfo,
    Measurement,
    RunRecord,
    load_record,
    save_record,
)
from benchmarks.storage import tensors
from benchmarks.storage.parts import Parts
from benchmarks.storage.weights import (
    LoadedModel,
    build_model,
    load_model,
    read_config,
    record_head,
    record_names,
    save_weights,
)
from benchmarks.suites.config import TrialConfig
from benchmarks.training.cost import macs_per_image, parameter_count
from benchmarks.training.loop import VALIDATION, TrainingResult, train
from benchmarks.training.ranks import Ranks
from benchmarks.training.state import forget
from benchmarks.trials.claims import at_work
from benchmarks.trials.ranks import shared_training
from models.output import Model

PARTS = "parts"
"""Folder of an evaluation's finished parts."""
AGAIN = "evaluated again"
"""Begins the note of a record whose weights were evaluated anew."""
PROGRESS_SECONDS = 0.5


class Reporter:
    """Writes progress as JSON lines for the process that started this one."""

    def __init__(self) -> None:
        self.last, self.phase = 0.0, ""
        self.seen: dict[str, list[float]] = {}

    def say(self, text: str) -> None:
        """Hand on a line for people."""
        self._tell({"said": text})

    def observe(self, name: str, value: float) -> None:
        """Hand on what was observed with the next report of progress; means of the finite values."""
        if math.isfinite(value):
            self.seen.setdefault(name, []).append(value)

    def __call__(self, done: int, total: int, phase: str) -> None:
        """Say that `done` of `total` are through in `phase`: at its ends and validations, else twice a second."""
        now = time.monotonic()
        due = now - self.last >= PROGRESS_SECONDS or phase != self.phase or VALIDATION in self.seen
        if due or done == total:
            seen = {name: statistics.fmean(values) for name, values in self.seen.items()}
            self.last, self.phase, self.seen = now, phase, {}
            self._tell({"done": done, "total": total, "phase": phase, "seen": seen})

    def _tell(self, event: dict[str, object]) -> None:
        try:
            print(json.dumps(event), file=sys.stdout, flush=True)
        except BrokenPipeError:  # nobody listens any more; the trial is asked to leave in another way
            output.discard()


def run_trial(
    folder: Path,
    *,
    with_parent: bool = False,
    data_hash: str | None = None,
    ranks: int = 1,
    plugins: Sequence[str] = (),
) -> RunRecord:
    """Train and evaluate the trial of `folder`, continuing where an earlier run stopped; returns its record.

    Where the training is through, its weights are evaluated. One `with_parent` leaves when standard input ends.
    `data_hash` is that of the images for which the folder was named, where the caller knows it. Of several `ranks`,
    which train and evaluate together, this process is the first and starts the others, with the same `plugins`.

    Raises:
        StarvedError: the training is to go on in a fresh process.
        GivenUpError: the training was given up; the record says so.
        UserError: the images are gone, or are others by now.
    """
    trial, report, stop = begun(folder, with_parent)
    with at_work(folder):
        data = data_of(trial, data_hash)
        flags = [*(word for plugin in plugins for word in ("--plugin", plugin)), "--data-hash", data.content_hash]
        together = shared_training(folder, ranks, flags, trial.device, trial.threads)
        return _run(trial, folder, data, report, stop, together)


def draw_gallery(folder: Path, *, with_parent: bool = False, data_hash: str | None = None) -> RunRecord:
    """Make the pictures for the page of a trial that is through, from its weights; its record stays as it is.

    Raises:
        UserError: as `run_trial`; weights that cannot be read.
    """
    trial, report, stop = begun(folder, with_parent)
    with at_work(folder):
        loaded, data = load_model(folder, choose_device(trial.device)), data_of(trial, data_hash)
        _save_arrays(folder / GALLERY, gallery(loaded, data, lambda *event: _report_or_stop(report, stop, *event)))
        return load_record(folder)


def begun(folder: Path, with_parent: bool) -> tuple[TrialConfig, Reporter, StopSignal]:
    """The trial of `folder`, with this process made ready for it."""
    stop = StopSignal()
    if with_parent:
        stop.with_parent()
    keep_freed_memory()
    flush_subnormals()
    trial = read_config(folder)
    torch.set_num_threads(trial.threads)
    return trial, Reporter(), stop


def data_of(trial: TrialConfig, data_hash: str | None) -> DataSet:
    """The trial's images, which are those of the hash: a run may have begun hours ago."""
    data = load(trial.data)
    if data_hash not in (None, data.content_hash):
        raise UserError(
            f"{data.name}: expected the images that the run began with (hash {str(data_hash)[:12]}), got others "
            f"({data.content_hash[:12]}); start the run again, which trains on what is there now"
        )
    return data


def _run(
    trial: TrialConfig,
    folder: Path,
    data: DataSet,
    report: Reporter,
    stop: StopSignal,
    together: AbstractContextManager[Ranks],
) -> RunRecord:
    """What `run_trial` does once nobody else works on the trial."""
    model = build_model(trial, data.image, choose_device(trial.device))
    before = _trained_before(trial, folder, model)
    with together as ranks:
        ranks.any(before is not None)  # the others hear whether there is something to train
        record = before or _trained_now(trial, folder, model, data, report, stop, ranks)
        if record.status == "interrupted":
            return record
        save_weights(model, trial, data.content_hash, folder / tensors.WEIGHTS)
        with shared_batches(model) as batches:
            progress = lambda *event: _report_or_stop(report, stop, *event)  # noqa: E731
            record = _evaluated(record, trial, folder, model, data, progress, batches)
    if record.status == "done":
        tidy(folder)
    return record


def is_untidy(folder: Path) -> bool:
    """Whether a trial's folder holds what only an unfinished one needs."""
    return (folder / PARTS).exists() or any((folder / name).exists() for name in tensors.STATES)


def tidy(folder: Path) -> None:
    """Remove from a trial's folder what only an unfinished one needs."""
    forget(folder)
    Parts(folder / PARTS).clear()


def _trained_before(trial: TrialConfig, folder: Path, model: Model) -> RunRecord | None:
    """The record of a training that is through, its weights loaded into `model`; None where there is none."""
    if not ((folder / RECORD).exists() and (folder / tensors.WEIGHTS).exists()):
        return None
    record = load_record(folder)
    if record.status not in ("trained", "done"):
        return None
    try:
        weights = tensors.load(folder / tensors.WEIGHTS).tensors
    except UserError as error:
        if not (folder / tensors.STATE).exists():
            raise
        print(f"{error}; they are made again from the training state", file=sys.stderr, flush=True)
        return None
    model.load_state_dict(weights)
    kept = [one for one in record.measurements if of_the_machine(one.metric)]  # others belong to other settings
    notes = [note for note in record.notes if not note.startswith(AGAIN)]
    notes += [_evaluated_again(trial)] if record.status == "done" else []
    return dataclasses.replace(record, **record_names(trial), measurements=kept, notes=notes, error="")


def _evaluated_again(trial: TrialConfig) -> str:
    """When and by which code: the record's environment is that of the training."""
    here = collect(choose_device(trial.device), trial.threads, trial.training.precision)
    return f"{AGAIN} on {here.date[:10]}, commit {here.shown_commit}"


def _trained_now(
    trial: TrialConfig,
    folder: Path,
    model: Model,
    data: DataSet,
    report: Reporter,
    stop: StopSignal,
    ranks: Ranks,
) -> RunRecord:
    """Train `model` as the first of `ranks`; the record is written, also of one interrupted or hopeless.

    Raises:
        GivenUpError: the training is hopeless.
    """
    with frozen_garbage():
        device = next(model.parameters()).device
        trained = model if ranks.count == 1 else build_model(trial, data.image, device, shared=True)
        result = train(trained, trial, data, folder, report, stop, report.say, report.observe, ranks)
    if trained is not model:
        model.load_state_dict(trained.state_dict())
    peak = [_peak_memory(next(model.parameters()).device)]
    record = _trained_record(trial, folder, model, data, result).with_measurements(peak)
    save_record(record, folder)
    if result.hopeless:
        raise GivenUpError(result.hopeless)
    return record


def _report_or_stop(report: Reporter, stop: StopSignal, done: int, total: int, phase: str) -> None:
    """Report progress; leave at once if asked to: the trained weights are saved, evaluation starts over."""
    report(done, total, phase)
    if stop():
        raise KeyboardInterrupt


def _trained_record(trial: TrialConfig, folder: Path, model: Model, data: DataSet, result: TrainingResult) -> RunRecord:
    """The record before evaluation; what takes seconds to count is left out where the trial was asked to leave."""
    ends = result.finished or bool(result.hopeless)
    return RunRecord(
        **record_head(trial, folder),
        data_hash=data.content_hash,
        data_note=data.note,
        status="trained" if result.finished else "interrupted",
        parameters=parameter_count(model),
        macs_per_image=macs_per_image(model, data.image) if ends else None,
        latent_groups=[LatentGroupInfo(s.channels, s.height, s.width) for s in model.latent_shapes],
        images_seen=result.images,
        steps=result.steps,
        training_seconds=result.seconds,
        training_cpu_seconds=result.cpu_seconds,
        skipped_steps=result.skipped,
        curves=result.curves,
        notes=_training_notes(trial, result),
        ranks=result.ranks,
    )


def _training_notes(trial: TrialConfig, result: TrainingResult) -> list[str]:
    """What a reader of the table should know of how the training went."""
    broken, threshold = result.skipped - result.over_threshold, trial.training.skip_threshold
    again = ", whose cells were computed again in the backward pass" if result.recompute else ""
    anew = f" after {result.restarts} starts of a fresh process" if result.restarts else ""
    told = {
        f"trained by {result.ranks} processes together, a share of every batch each": result.ranks > 1,
        f"{broken} training steps were not finite and were undone; {result.trouble}": broken,
        f"{result.over_threshold} training steps were skipped, their gradient's norm at {threshold:g} or above": (
            result.over_threshold
        ),
        f"the training returned {result.back_offs} times to its last good state, at half the rate each time; "
        f"{result.trouble or 'steps were skipped'}": result.back_offs,
        f"memory ran out: batches were taken in {result.passes} passes{again}{anew}, with the same noise and one "
        "update; batch norm and the balancing of the KL saw the smaller batches": result.passes > 1 or result.recompute,
        result.compilation: result.compilation,
    }
    return [note for note, holds in told.items() if holds]


def _peak_memory(device: torch.device) -> Measurement:
    """The most memory that this process has held, data and imports included; on a GPU, that torch has allocated."""
    meaning = "allocated on the GPU in training" if device.type == "cuda" else "resident size of the training process"
    return measurement("peak_memory", highest(device) / 2**20, n=1, details={"meaning": meaning})


def _evaluated(
    record: RunRecord,
    trial: TrialConfig,
    folder: Path,
    model: Model,
    data: DataSet,
    progress: Progress,
    batches: Batches,
) -> RunRecord:
    """The record with its evaluation, saved part by part; "done" where no part failed."""

    def joined(found: Evaluation) -> RunRecord:
        return dataclasses.replace(record, status="trained").with_measurements(found.measurements)

    parts = Parts(folder / PARTS, batches)
    found = evaluate(model, trial, data, progress, lambda found: save_record(joined(found), folder), parts)
    _save_arrays(folder / "images.npz", found.pictures)  # for figures and paired comparisons
    _save_arrays(folder / "per_image.npz", found.per_image)
    with found.part("gallery", ()):
        loaded = LoadedModel(model, trial, data.content_hash)
        _save_arrays(folder / GALLERY, gallery(loaded, data, progress))
    failed = "; ".join(f"evaluation failed: {failure}" for failure in found.failures)
    groups = found.groups or record.latent_groups
    status = "trained" if failed else "done"
    record = dataclasses.replace(joined(found), status=status, latent_groups=groups, error=failed)
    save_record(record, folder)
    return record


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes_atomically(path, buffer.getvalue())
