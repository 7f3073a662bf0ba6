"""Checkpoints of the published NVAE code: a dict of weights and command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.storage.published.checkpoint import PublishedModel
from models.nvae.model import ALIAS
from models.nvae.published import setup_from_arguments

LAYOUT_KEYS = frozenset({"state_dict", "args"})


def is_nvae_checkpoint(contents: object) -> bool:
    """Whether loaded contents have the layout of the published code's checkpoints."""
    return (
        isinstance(contents, dict)
        and contents.keys() >= LAYOUT_KEYS
        and isinstance(contents["args"], argparse.Namespace)
        and isinstance(contents["state_dict"], Mapping)
        and "prior_ftr0" in contents["state_dict"]
        and all(isinstance(value, Tensor) for value in contents["state_dict"].values())
    )


def read_nvae(contents: dict[str, Any]) -> PublishedModel:
    """Setup and weights of a checkpoint; second names of weights (`*.weight_normalized`) are left out.

    Raises:
        ValueError: an argument is missing, or stands for something that cannot be built.
    """
    state = {key: value for key, value in contents["state_dict"].items() if not key.endswith(ALIAS)}
    return PublishedModel(setup_from_arguments(vars(contents["args"])), state)
