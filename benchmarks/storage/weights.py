"""A trial's model in memory and on disk: built from its config, written and read as safetensors."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from benchmarks.base.streams import seeded
from benchmarks.base.tensor_files import raw
from benchmarks.machine.environment import choose_device, collect
from benchmarks.storage import tensors
from benchmarks.storage.fit import check_fit, load_weights, require_sizes, skeleton
from benchmarks.storage.published.checkpoint import is_torch_file, load_settings
from benchmarks.storage.published.registry import read_published
from benchmarks.suites.config import TrialConfig, build_suite, to_dict, trial_from_dict
from benchmarks.suites.presets import recipe_row, setup_row
from kernels.backends import best_for
from kernels.reference.synchronised import synchronised
from models.layers.synchronised import synchronise
from models.output import ImageShape, Model
from models.presets import ModelSetup
from models.registry import MODELS, build

CONFIG = "config.json"
PUBLISHED = "original"
"""Suite of a model that a published code trained, as records and saved weights name it."""
PUBLISHED_BATCH = 16


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, the trial it was trained as, and the hash of its training data."""

    model: Model
    trial: TrialConfig
    data_hash: str


def write_config(trial: TrialConfig, folder: Path) -> None:
    """Put the trial's config into its folder, where `run_trial` reads it."""
    write_text_atomically(folder / CONFIG, json.dumps(to_dict(trial), indent=1) + "\n")


def read_config(folder: Path) -> TrialConfig:
    """The trial of `folder`.

    Raises:
        UserError: no config, or one that does not fit this version.
    """
    try:
        return trial_from_dict(read_json(folder / CONFIG))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{folder}: expected a run folder with {CONFIG}: {error}") from error


def build_model(trial: TrialConfig, image: ImageShape, device: torch.device, *, shared: bool = False) -> Model:
    """The trial's model, freshly initialised from its seed; on the meta device its shapes alone.

    One that is `shared` is trained by all processes of torch's default group together.

    Raises:
        UserError: the config does not fit the images or the likelihood.
    """
    ops = synchronised(best_for(device)) if shared else best_for(device)
    try:
        shapes = torch.device(device) if torch.device(device).type == "meta" else nullcontext()
        with seeded(trial.seed, "initialisation"), shapes:
            model = build(trial.model, trial.model_config, image, trial.likelihood_spec, ops)
    except ValueError as error:
        raise UserError(f"{trial.suite}.models.{trial.row}: {error}") from error
    if shared:
        synchronise(model)
    return model.to(device)


def save_weights(model: Model, trial: TrialConfig, data_hash: str, path: Path) -> None:
    """Write weights with everything needed to build the model again."""
    metadata = {"cell": to_dict(trial), "data_hash": data_hash, "image": dataclasses.asdict(model.image)}
    tensors.save(path, dict(model.state_dict()), metadata)


def weights_hash(model: Model) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the model's state: the same in any file that holds it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()


def trained_folder(path: Path) -> Path:
    """What `path` names: itself, or for OUT/ROW the folder of that row's first seed that has weights in the run OUT."""
    if path.exists() or not path.parent.is_dir():
        return path
    seeds = path.parent.glob(f"{glob.escape(path.name)}-seed*-*/{tensors.WEIGHTS}")
    return min((found.parent for found in seeds), key=_seed_of, default=path)


def _seed_of(folder: Path) -> int:
    """The seed in a trial folder's name."""
    digits = folder.name.rpartition("-seed")[2].partition("-")[0]
    return int(digits) if digits.isdecimal() else sys.maxsize


def load_model(path: Path, device: torch.device, hparams: Path | None = None) -> LoadedModel:
    """The model of a weights file, of a folder that holds one, or of a checkpoint that a published code wrote.

    A folder is a trial's, or one that `export` wrote. OUT/ROW stands for the first seed of a row in the run OUT.
    `hparams` is a JSON file of settings, for a published code's checkpoint without any. The model is in evaluation
    mode.

    Raises:
        UserError: missing, corrupt or foreign file; settings for what holds its own.
    """
    path = trained_folder(path)
    path = _weights_in(path) if path.is_dir() else path
    if is_torch_file(path):
        return _load_published(path, device, hparams)
    if hparams is not None and path.is_file():
        raise UserError(
            f"--hparams {hparams}: expected a checkpoint of a published code, got {path}; leave the flag out"
        )
    said = tensors.describe(path)
    try:
        trial, image = _described(path, said.metadata["cell"], said.metadata["image"])
        data_hash = said.metadata["data_hash"]
        model = _filled(trial, image, device, said.tensors, lambda: tensors.load(path).tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = _first(error)
        raise UserError(f"checkpoint {path}: expected the weights of a model of this version: {reason}") from error
    return LoadedModel(model, trial, str(data_hash))


def _weights_in(folder: Path) -> Path:
    """The weights in the folder of a trial, or of an exported one."""
    exported = folder / tensors.HUB_WEIGHTS
    return exported if exported.exists() and not (folder / tensors.WEIGHTS).exists() else folder / tensors.WEIGHTS


def _described(path: Path, cell: Any, image: Any) -> tuple[TrialConfig, ImageShape]:
    """The trial and the images that metadata describe.

    Raises:
        UserError: they describe none.
    """
    try:
        found = parse(ImageShape, image, "image")
        if min(dataclasses.astuple(found)) < 1:
            raise UserError(f"expected sides and channels of at least 1, got {found}")
        return trial_from_dict(cell), found
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error


def _filled(
    trial: TrialConfig,
    image: ImageShape,
    device: torch.device,
    said: Mapping[str, Tensor],
    read: Callable[[], Mapping[str, Tensor]],
) -> Model:
    """The trial's model with weights, in evaluation mode; made, and they read, where what is `said` of them fits it.

    Raises:
        ValueError, RuntimeError: they do not fit, or are not finite.
        UserError: the model cannot be built.
    """
    require_sizes(trial.model_config, said)
    check_fit(skeleton(lambda: build_model(trial, image, torch.device("meta")), len(said)), said)
    model = build_model(trial, image, device)
    load_weights(model, read())
    return model.eval()


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _load_published(path: Path, device: torch.device, hparams: Path | None) -> LoadedModel:
    """The model of a published code's checkpoint.

    Raises:
        UserError: another layout, or weights that do not fit the stored setup; names the first keys that differ.
    """
    try:
        reader, published = read_published(path, None if hparams is None else load_settings(hparams))
        trial = published_trial(published.setup, reader.label)
        model = _filled(trial, published.setup.image, device, published.state, lambda: published.state)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"checkpoint {path}: {_first(error).removeprefix(f'{path}: ')}") from error
    return LoadedModel(model, trial, data_hash="")


def published_trial(setup: ModelSetup, label: str) -> TrialConfig:
    """The trial of a published model: its setup with the published recipe, on data that it does not name.

    Raises:
        UserError: a setup that cannot be built.
    """
    row = {"label": label, **setup_row(setup), **recipe_row(MODELS[setup.model].recipe)}
    table = {"data": "", "models": {setup.model: row}, "evaluation": {"batch_size": PUBLISHED_BATCH}}
    return build_suite(PUBLISHED, table).trials[0]


def record_names(trial: TrialConfig) -> dict[str, Any]:
    """The fields of a `RunRecord` that may change without another training."""
    names = ("suite", "row", "label", "data")
    return {name: getattr(trial, name) for name in names} | {"config": to_dict(trial)}


def record_head(trial: TrialConfig, folder: Path) -> dict[str, Any]:
    """The fields of a `RunRecord` that are known before anything is run."""
    return {
        **record_names(trial),
        "model": trial.model,
        "seed": trial.seed,
        "config_hash": folder.name.rsplit("-", 1)[-1],
        "environment": collect(choose_device(trial.device), trial.threads, trial.training.precision),
    }
