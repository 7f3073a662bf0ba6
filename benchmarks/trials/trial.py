"""One trial of a table, run in a process of its own: build, train, evaluate, record."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.base.errors import UserError
from benchmarks.base.files import write_bytes_atomically
from benchmarks.data import DataSet, load
from benchmarks.evaluation.evaluate import Evaluation, Progress, evaluate
from benchmarks.machine.environment import choose_device
from benchmarks.machine.peak import highest
from benchmarks.machine.process import frozen_garbage, keep_freed_memory
from benchmarks.records.catalogue import measurement, of_the_machine
from benchmarks.records.record import RECORD, LatentGroupInfo, Measurement, RunRecord, load_record, save_record
from benchmarks.storage import tensors
from benchmarks.storage.weights import build_model, read_config, record_head, record_names, save_weights
from benchmarks.suites.config import TrialConfig
from benchmarks.training.cost import macs_per_image, parameter_count
from benchmarks.training.loop import TrainingResult, fault, train
from models.output import Model

PROGRESS_SECONDS = 0.5


class Reporter:
    """Writes progress as JSON lines for the process that started this one."""

    def __init__(self) -> None:
        self.last = 0.0

    def say(self, text: str) -> None:
        """Hand on a line for people."""
        print(json.dumps({"said": text}), file=sys.stdout, flush=True)

    def __call__(self, done: int, total: int, phase: str) -> None:
        """Say that `done` of `total` are through in `phase`, at most twice a second."""
        now = time.monotonic()
        if now - self.last >= PROGRESS_SECONDS or done == total:
            self.last = now
            print(json.dumps({"done": done, "total": total, "phase": phase}), file=sys.stdout, flush=True)


class StopSignal:
    """Turns true at SIGINT or SIGTERM, so that work stops at the next step and is saved."""

    def __init__(self) -> None:
        self.raised = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: object) -> None:
        self.raised = True

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.raised


def run_trial(folder: Path) -> RunRecord:
    """Train and evaluate the trial of `folder`, continuing where an earlier run stopped; returns its record.

    Where the training is through, its weights are evaluated.
    """
    keep_freed_memory()
    trial = read_config(folder)
    torch.set_num_threads(trial.threads)
    device = choose_device(trial.device)
    stop, report = StopSignal(), Reporter()
    data = load(trial.data)
    model = build_model(trial, data.image, device)
    record = _trained_before(trial, folder, model) or _trained_now(trial, folder, model, data, report, stop)
    if record.status == "interrupted":
        return record
    save_weights(model, trial, data.content_hash, folder / tensors.WEIGHTS)
    record = _evaluated(record, trial, folder, model, data, lambda *event: _report_or_stop(report, stop, *event))
    if record.status == "done":
        (folder / tensors.STATE).unlink(missing_ok=True)
    return record


def _trained_before(trial: TrialConfig, folder: Path, model: Model) -> RunRecord | None:
    """The record of a training that is through, its weights loaded into `model`; None where there is none."""
    if not ((folder / RECORD).exists() and (folder / tensors.WEIGHTS).exists()):
        return None
    record = load_record(folder)
    if record.status not in ("trained", "done"):
        return None
    model.load_state_dict(tensors.load(folder / tensors.WEIGHTS).tensors)
    again = [f"evaluated again after the training of {record.environment.date}"] if record.status == "done" else []
    kept = [one for one in record.measurements if of_the_machine(one.metric)]  # others belong to other settings
    notes = [*record.notes, *again]
    return dataclasses.replace(record, **record_names(trial), measurements=kept, notes=notes, error="")


def _trained_now(
    trial: TrialConfig, folder: Path, model: Model, data: DataSet, report: Reporter, stop: StopSignal
) -> RunRecord:
    """Train `model`; the record is written, also of a training that was interrupted or is hopeless.

    Raises:
        UserError: the training is hopeless.
    """
    with frozen_garbage():
        result = train(model, trial, data, folder, report, stop, report.say)
    peak = [_peak_memory(next(model.parameters()).device)]
    record = _trained_record(trial, folder, model, data, result).with_measurements(peak)
    save_record(record, folder)
    if result.hopeless:
        raise UserError(result.hopeless)
    return record


def _report_or_stop(report: Reporter, stop: StopSignal, done: int, total: int, phase: str) -> None:
    """Report progress; leave at once if asked to: the trained weights are saved, evaluation starts over."""
    report(done, total, phase)
    if stop():
        raise KeyboardInterrupt


def _trained_record(trial: TrialConfig, folder: Path, model: Model, data: DataSet, result: TrainingResult) -> RunRecord:
    """The record before evaluation."""
    undone = f"{result.skipped} training steps were {fault(trial.training)} and were undone; {result.trouble}"
    return RunRecord(
        **record_head(trial, folder),
        data_hash=data.content_hash,
        data_note=data.note,
        status="trained" if result.finished else "interrupted",
        parameters=parameter_count(model),
        macs_per_image=macs_per_image(model, data.image),
        latent_groups=[LatentGroupInfo(s.channels, s.height, s.width) for s in model.latent_shapes],
        images_seen=result.images,
        steps=result.steps,
        training_seconds=result.seconds,
        training_cpu_seconds=result.cpu_seconds,
        skipped_steps=result.skipped,
        curves=result.curves,
        notes=[*([undone] if result.skipped else []), *([result.compilation] if result.compilation else [])],
    )


def _peak_memory(device: torch.device) -> Measurement:
    """The most memory that this process has held, data and imports included; on a GPU, that torch has allocated."""
    meaning = "allocated on the GPU in training" if device.type == "cuda" else "resident size of the training process"
    return measurement("peak_memory", highest(device) / 2**20, n=1, details={"meaning": meaning})


def _evaluated(
    record: RunRecord, trial: TrialConfig, folder: Path, model: Model, data: DataSet, progress: Progress
) -> RunRecord:
    """The record with its evaluation, saved part by part; "done" where no part failed."""

    def joined(found: Evaluation) -> RunRecord:
        return dataclasses.replace(record, status="trained").with_measurements(found.measurements)

    found = evaluate(model, trial, data, progress, lambda found: save_record(joined(found), folder))
    _save_arrays(folder / "images.npz", found.pictures)  # for figures and paired comparisons
    _save_arrays(folder / "per_image.npz", found.per_image)
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
