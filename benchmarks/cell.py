"""One cell of a table, run in a process of its own: build, train, evaluate, record."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import checkpoint
from benchmarks.config import CellConfig, cell_from_dict, to_dict
from benchmarks.cost import macs_per_image, parameter_count
from benchmarks.data import DataSet, load
from benchmarks.environment import choose_device, collect
from benchmarks.errors import UserError
from benchmarks.evaluate import Evaluation, evaluate
from benchmarks.record import LatentGroupInfo, RunRecord, save_record, write_bytes_atomically, write_text_atomically
from benchmarks.streams import seeded
from benchmarks.train import TrainingResult, train
from kernels.fused import best_for
from models.output import ImageShape, Model
from models.registry import build

CONFIG = "config.json"
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, the cell it was trained as, and the hash of its training data."""

    model: Model
    cell: CellConfig
    data_hash: str


def write_config(cell: CellConfig, folder: Path) -> None:
    """Put the cell's config into its folder, where `run_cell` reads it."""
    write_text_atomically(folder / CONFIG, json.dumps(to_dict(cell), indent=1) + "\n")


def read_config(folder: Path) -> CellConfig:
    """The cell of `folder`.

    Raises:
        UserError: no config, or one that does not fit this version.
    """
    try:
        return cell_from_dict(json.loads((folder / CONFIG).read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder}: expected a run folder with {CONFIG}: {error}") from error


def build_model(cell: CellConfig, image: ImageShape, device: torch.device) -> Model:
    """The cell's model, freshly initialised from its seed.

    Raises:
        UserError: the config does not fit the images or the likelihood.
    """
    try:
        with seeded(cell.seed, "initialisation"):
            model = build(cell.model, cell.model_config, image, cell.likelihood_spec, best_for(device))
    except ValueError as error:
        raise UserError(f"{cell.suite}.models.{cell.row}: {error}") from error
    return model.to(device)


def save_weights(model: Model, cell: CellConfig, data: DataSet, path: Path) -> None:
    """Write weights with everything needed to build the model again."""
    metadata = {"cell": to_dict(cell), "data_hash": data.content_hash, "image": dataclasses.asdict(data.image)}
    checkpoint.save(path, dict(model.state_dict()), metadata)


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """The model of a weights file, or of a run folder that holds one; in evaluation mode.

    Raises:
        UserError: missing, corrupt or foreign file.
    """
    path = path / checkpoint.WEIGHTS if path.is_dir() else path
    stored = checkpoint.load(path)
    try:
        cell = cell_from_dict(stored.metadata["cell"])
        model = build_model(cell, ImageShape(**stored.metadata["image"]), device)
        model.load_state_dict(stored.tensors)
        return LoadedModel(model.eval(), cell, stored.metadata["data_hash"])
    except (KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path}: expected the weights of a model of this version: {first}") from error


class Reporter:
    """Writes progress as JSON lines for the process that started this one."""

    def __init__(self) -> None:
        self.last = 0.0

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
        return self.raised


def run_cell(folder: Path) -> RunRecord:
    """Train and evaluate the cell of `folder`, continuing where an earlier run stopped; returns its record."""
    cell = read_config(folder)
    torch.set_num_threads(cell.threads)
    device = choose_device(cell.device)
    stop, report = StopSignal(), Reporter()
    data = load(cell.data)
    model = build_model(cell, data.image, device)
    result = train(model, cell, data, folder, report, stop)
    record = _trained_record(cell, folder, model, data, result)
    save_record(record, folder)
    if not result.finished:
        return record
    save_weights(model, cell, data, folder / checkpoint.WEIGHTS)
    record = _with_evaluation(record, evaluate(model, cell, data, report), folder)
    save_record(record, folder)
    (folder / checkpoint.STATE).unlink(missing_ok=True)
    return record


def _trained_record(cell: CellConfig, folder: Path, model: Model, data: DataSet, result: TrainingResult) -> RunRecord:
    """The record before evaluation."""
    notes = [f"{result.skipped} training steps were not finite and were undone"] if result.skipped else []
    return RunRecord(
        suite=cell.suite,
        row=cell.row,
        label=cell.label,
        model=cell.model,
        data=cell.data,
        data_hash=data.content_hash,
        seed=cell.seed,
        config_hash=folder.name.rsplit("-", 1)[-1],
        config=to_dict(cell),
        environment=collect(choose_device(cell.device), cell.threads, cell.training.precision),
        status="trained" if result.finished else "interrupted",
        parameters=parameter_count(model),
        macs_per_image=macs_per_image(model, data.image),
        latent_groups=[LatentGroupInfo(s.channels, s.height, s.width) for s in model.latent_shapes],
        images_seen=result.images,
        steps=result.steps,
        training_seconds=result.seconds,
        skipped_steps=result.skipped,
        curves=result.curves,
        notes=notes,
    )


def _with_evaluation(record: RunRecord, evaluation: Evaluation, folder: Path) -> RunRecord:
    """The finished record; arrays for figures and paired comparisons are written beside it."""
    _save_arrays(folder / "images.npz", evaluation.pictures)
    _save_arrays(folder / "per_image.npz", evaluation.per_image)
    record = dataclasses.replace(record, status="done", latent_groups=evaluation.groups)
    return record.with_measurements(evaluation.measurements)


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes_atomically(path, buffer.getvalue())
