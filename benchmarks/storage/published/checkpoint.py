"""Checkpoints that published codes wrote: what a reader of them is, and how their contents are read without running."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.presets import ModelSetup

Settings = Mapping[str, Any]
"""How a model was built, by the published code's own names."""
TORCH_FILES = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""First bytes of what `torch.save` writes: a zip archive, or before torch 1.6 a pickled magic number."""


@dataclass(frozen=True)
class PublishedModel:
    """What a checkpoint of a published code holds: how to build the model, and its weights under our names."""

    setup: ModelSetup
    state: dict[str, Tensor]


@dataclass(frozen=True)
class PublishedReader:
    """Reads the checkpoints of one published code.

    `label` is the row's label in tables. `layout` says in an error what was expected. `recognises` tells from what
    `torch.load` gave whether the code wrote it; `read` takes only what `recognises` accepts, and raises ValueError for
    what cannot be built. `safe_types` may be unpickled besides tensors and plain containers. `read_as`, of a code whose
    files are weights alone, does the same with the settings that a user gives beside the file.
    """

    label: str
    layout: str
    recognises: Callable[[object], bool]
    read: Callable[[Any], PublishedModel]
    safe_types: tuple[type, ...] = ()
    read_as: Callable[[Any, Settings], PublishedModel] | None = None


def is_torch_file(path: Path) -> bool:
    """Whether `torch.save` wrote the file, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in TORCH_FILES


def load_contents(path: Path, safe_types: Iterable[type] = ()) -> object:
    """The unpickled contents of a file: tensors, plain containers and `safe_types`, nothing else.

    Raises:
        ValueError: the file cannot be read so.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            _require_plain(path)
            ignored = warnings.catch_warnings(action="ignore")
            with ignored, torch.serialization.safe_globals(list(safe_types)):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged or disallowed contents raise anything
            raise ValueError(f"{path}: not a checkpoint that can be read safely ({_reason(error)})") from error


def _require_plain(path: Path) -> None:
    """Raise ValueError where an archive does not hold its members as `torch.save` writes them: as they are, once."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, which torch.save never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its members are larger than the file")
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise ValueError("an archive, but not one of torch.save; give the run folder or the .safetensors file")


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without torch's advice to run what is in it."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused is not None:
        return f"it holds Python objects, {refused[1]}, and these are not run; save the model's state_dict()"
    if "weights_only" in str(error):
        return "it holds more than tensors, or is damaged, and nothing of it is run; save the model's state_dict()"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        ValueError: the file cannot be read, or holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--hparams {path}: expected a JSON file of settings: {reason}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f'--hparams {path}: expected an object of settings, such as {{"width": 384}}, got {found!r:.40}'
        )
    return found
