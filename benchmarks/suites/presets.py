"""NVAE's named setups as rows of a suite: `preset = "nvae-cifar10"` in a [models.ROW] table."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from benchmarks.base.errors import unknown
from models.likelihoods import likelihood_name
from models.nvae.config import ModelSetup
from models.nvae.presets import PRESETS

RECIPE: dict[str, dict[str, Any]] = {
    "training": {
        "optimizer": "adamax",
        "learning_rate": 1e-2,
        "final_rate": 1e-2,
        "weight_decay": 3e-4,
        "epsilon": 1e-3,
    },
    "objective": {"kl_constant": 1e-4, "kl_warmup": 0.3, "kl_floor": 1e-4, "balancing": "square"},
}
"""What the trainings of all published models share."""

LENGTHS: dict[str, dict[str, Any]] = {
    "nvae-mnist": {"epochs": 400.0, "batch_size": 200, "warmup": 5 / 400},
    "nvae-cifar10": {"epochs": 400.0, "batch_size": 32, "warmup": 5 / 400},
    "nvae-celeba64": {"epochs": 90.0, "batch_size": 16, "warmup": 5 / 90},
    "nvae-imagenet32": {"epochs": 45.0, "batch_size": 24, "warmup": 1 / 45},
    "nvae-celebahq256": {"epochs": 300.0, "batch_size": 4, "warmup": 5 / 300},
    "nvae-celebahq256-24ch": {"epochs": 300.0, "batch_size": 6, "warmup": 5 / 300},
    "nvae-ffhq256": {"epochs": 200.0, "batch_size": 4, "warmup": 5 / 200, "learning_rate": 8e-3, "final_rate": 1 / 80},
}
"""How long the published models were trained, with the batch of one of their GPUs."""

TABLES = ("training", "objective")


def setup_row(setup: ModelSetup) -> dict[str, Any]:
    """Model and likelihood of `setup`, as the raw table of a row."""
    likelihood = {"name": likelihood_name(setup.likelihood), **dataclasses.asdict(cast(Any, setup.likelihood))}
    return {"name": "nvae", "likelihood": likelihood, **dataclasses.asdict(setup.config)}


def preset_row(name: str) -> dict[str, Any]:
    """The raw table that `preset = name` stands for; small presets leave the training to the suite.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    row = {"label": name, **setup_row(PRESETS[name])}
    if name in LENGTHS:
        row |= {**RECIPE, "training": {**RECIPE["training"], **LENGTHS[name]}}
    return row


def with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    """The raw row with its `preset`, if it has one, filled in beneath what the row gives itself.

    Raises:
        UserError: no such preset.
    """
    if "preset" not in raw:
        return raw
    row = preset_row(str(raw["preset"]))
    for key, value in raw.items():
        if key in TABLES and isinstance(value, dict):
            value = {**row.get(key, {}), **value}
        row[key] = value
    del row["preset"]
    return row
