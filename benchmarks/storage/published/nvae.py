"""Checkpoints of the original NVAE code: recognise, read, build and load."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.ops import Ops
from models.layers.convolutions import ActivatedConv2d
from models.nvae.config import ModelSetup
from models.nvae.model import ALIAS, NVAE
from models.nvae.original import setup_from_arguments

LAYOUT_KEYS = frozenset({"state_dict", "args"})
OWN_PREFIX = "norms."
SHOWN_KEYS = 3
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
)
"""What `torch.load` raises on damaged or disallowed contents."""


@dataclass(frozen=True)
class OriginalCheckpoint:
    """What an original checkpoint holds: how to build the model, its weights, how far it was trained."""

    setup: ModelSetup
    state: dict[str, Tensor]
    epoch: int
    step: int

    def build(self, ops: Ops) -> NVAE:
        """The model with the checkpoint's weights, in evaluation mode.

        Raises:
            ValueError: the weights do not fit the stored arguments; names the first keys that differ.
        """
        model = NVAE(self.setup.config, self.setup.image, self.setup.likelihood, ops)
        load_weights(model, self.state)
        return model.eval()


def is_original_checkpoint(contents: object) -> bool:
    """Whether loaded contents have the layout of an original checkpoint."""
    return (
        isinstance(contents, dict)
        and contents.keys() >= LAYOUT_KEYS
        and isinstance(contents["args"], argparse.Namespace)
        and isinstance(contents["state_dict"], Mapping)
        and "prior_ftr0" in contents["state_dict"]
        and all(isinstance(value, Tensor) for value in contents["state_dict"].values())
    )


def read_original(path: Path) -> OriginalCheckpoint:
    """The original checkpoint in a file; nothing but tensors, plain containers and `Namespace` is unpickled.

    Raises:
        ValueError: the file cannot be read so, or has another layout.
        OSError: the file cannot be opened.
    """
    contents = _load(path)
    if not is_original_checkpoint(contents):
        raise ValueError(f"{path}: expected an original NVAE checkpoint (a dict with state_dict and args)")
    assert isinstance(contents, dict)
    state = {key: value for key, value in contents["state_dict"].items() if not key.endswith(ALIAS)}
    setup = setup_from_arguments(vars(contents["args"]))
    return OriginalCheckpoint(setup, state, int(contents.get("epoch", 0)), int(contents.get("global_step", 0)))


def _load(path: Path) -> object:
    """The unpickled contents of a file."""
    with path.open("rb") as file:
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"{path}: not a checkpoint that can be read safely ({first_line})") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into `model`; second names of weights (`*.weight_normalized`) are ignored.

    Raises:
        ValueError: keys or shapes differ; names the first of them.
    """
    own = model.state_dict()
    given = {key: value for key, value in state.items() if not key.endswith(ALIAS)}
    problems = [
        *_listed("missing", (key for key in own if key not in given)),
        *_listed("unexpected", (key for key in given if key not in own)),
        *_listed(
            "of another shape",
            (
                f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
                for key, value in given.items()
                if key in own and value.shape != own[key].shape
            ),
        ),
    ]
    if problems:
        raise ValueError(f"weights do not fit the model: {'; '.join(problems)}")
    model.load_state_dict(given)


def _listed(problem: str, keys: Iterable[str]) -> list[str]:
    """'problem: first keys, ...' if there are any."""
    first = list(islice(keys, SHOWN_KEYS + 1))
    if not first:
        return []
    return [f"{problem}: {', '.join(first[:SHOWN_KEYS])}{', ...' if len(first) > SHOWN_KEYS else ''}"]


def original_state_dict(model: NVAE) -> dict[str, Tensor]:
    """The model's state with the original's keys in its order, second names of plain weights included."""
    plain = {f"{name}.weight" for name, module in model.named_modules() if type(module) is ActivatedConv2d}
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.startswith(OWN_PREFIX):
            continue
        state[key] = value
        if key in plain:
            state[key.removesuffix(".weight") + ALIAS] = value
    return state
