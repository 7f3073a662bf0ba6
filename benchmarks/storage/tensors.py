"""Weights and training state on disk: safetensors with JSON metadata, written atomically, no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.base.checked.strict_json import parse_json
from benchmarks.base.errors import UserError
from benchmarks.base.files import mistaken_for
from benchmarks.base.tensor_files import TYPES, raw, write_tensors

WEIGHTS = "weights.safetensors"
HUB_WEIGHTS = "model.safetensors"
"""The weights in a folder that was exported."""
STATE = "training.safetensors"
STATE_BEFORE = "training.before.safetensors"
"""The training state, and the one before it, which is used where the later one is damaged."""
STATE_GOOD = "training.good.safetensors"
"""The state to which a training returns whose steps are no longer finite."""
STARVED = "training.starved.json"
"""What a process that does not write states asks of the next ones, for want of memory."""
STATES = (STATE, STATE_BEFORE, STATE_GOOD, STARVED)
DIGEST = "sha256"
KEY = "vaebench"
"""Of the metadata that this suite's files carry."""


@dataclass(frozen=True)
class Stored:
    """Named tensors and a JSON-able dict from one file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and metadata to `path` atomically, with their hash; shared storage and strides are resolved."""
    write_tensors(path, tensors, {KEY: json.dumps(metadata | {DIGEST: digest(tensors)})})


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in hex."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(raw(tensor))
    return found.hexdigest()


def load(path: Path) -> Stored:
    """The content of a file written by `save`; its hash is compared where it holds one.

    Raises:
        UserError: missing, corrupt or foreign file.
    """
    file, metadata = opened(path, "checkpoint")
    with file:
        stored = Stored({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    if metadata.pop(DIGEST, None) not in (None, digest(stored.tensors)):
        raise UserError(f"checkpoint {path}: its content is not what was written (the hash differs): damaged on disk")
    return stored


def describe(path: Path) -> Stored:
    """As `load`, with tensors on the meta device: what the file says of them, of which none is read.

    Raises:
        UserError: missing, corrupt or foreign file.
    """
    file, metadata = opened(path, "checkpoint")
    with file:
        said = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        types = {name: one.get_dtype() for name, one in said.items()}
        for name, kind in types.items():
            if kind not in TYPES:
                raise UserError(f"checkpoint {path}: {name} has type {kind}, expected one of {', '.join(TYPES)}")
        shapes = {name: one.get_shape() for name, one in said.items()}
    empty = {name: torch.empty(shapes[name], dtype=TYPES[types[name]], device="meta") for name in shapes}
    return Stored(empty, metadata)


def opened(path: Path, what: str) -> tuple[Any, dict[str, Any]]:
    """A file of this suite to read tensors from, as safetensors opens it, and its metadata.

    `what` is the word for it in errors. Nothing but the file's head is read.

    Raises:
        UserError: missing, corrupt or foreign file.
    """
    mistaken = mistaken_for(path)
    if mistaken is not None:
        raise UserError(f"{what} {path}: expected a {what}, got {mistaken}; fetch the file itself")
    if not path.is_file():
        raise UserError(f"{what} {path}: expected a {path.suffix or 'safetensors'} file, found none; check the path")
    try:
        file = safe_open(str(path), framework="pt")
        metadata = (file.metadata() or {}).get(KEY)
        if metadata is None:
            raise UserError(f"{what} {path}: a safetensors file, but not one that this suite wrote")
        return file, parse_json(metadata)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{what} {path}: expected a readable safetensors file: {error}") from error


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as named tensors `optimizer.<parameter>.<name>` and the JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                rest.setdefault(str(index), {})[name] = value
    return tensors, rest


def unflatten_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any], groups: list[Any]) -> dict[str, Any]:
    """The state_dict whose `flatten_optimizer` gave `tensors` and `rest`."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest.items()}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}
