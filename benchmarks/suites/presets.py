"""Models' named setups as rows of a suite: `preset = "nvae-cifar10"` in a [models.ROW] table."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from benchmarks.base.checked.typed import one_of
from models.likelihoods import likelihood_name
from models.presets import ModelSetup, Recipe
from models.registry import presets

TABLES = ("training", "objective")


def setup_row(setup: ModelSetup) -> dict[str, Any]:
    """Model and likelihood of `setup`, as the raw table of a row."""
    likelihood = {"name": likelihood_name(setup.likelihood), **dataclasses.asdict(cast(Any, setup.likelihood))}
    return {"name": setup.model, "likelihood": likelihood, **dataclasses.asdict(setup.config)}


def recipe_row(recipe: Recipe) -> dict[str, Any]:
    """Training and objective of `recipe`, as the raw table of a row."""
    return {"training": dict(recipe.training), "objective": dict(recipe.objective)}


def preset_row(name: str) -> dict[str, Any]:
    """The raw table that `preset = name` stands for; small presets leave the training to the suite.

    Raises:
        UserError: no such preset.
    """
    known = presets()
    preset = known[one_of("preset", name, known)]
    return {"label": name, **setup_row(preset), **(recipe_row(preset.recipe) if preset.recipe else {})}


def with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    """The raw row with its `preset`, if it has one, filled in beneath what the row gives itself.

    Raises:
        UserError: no such preset.
    """
    if "preset" not in raw:
        return raw
    row = preset_row(raw["preset"])
    for key, value in raw.items():
        if key in TABLES and isinstance(value, dict):
            value = {**row.get(key, {}), **value}
        row[key] = value
    del row["preset"]
    return row
