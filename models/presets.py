"""Named setups: what builds a model, how the published ones were trained, and how large they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.likelihoods import ConfiguredLikelihood
from models.output import ImageShape

Setting = float | int | str | bool | tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """How a model was trained, as plain data: entries of the `training` and `objective` tables of a suite."""

    training: Mapping[str, Setting] = field(default_factory=dict)
    objective: Mapping[str, Setting] = field(default_factory=dict)

    def with_training(self, **settings: Setting) -> Recipe:
        """The recipe with entries of `training` added or replaced."""
        return dataclasses.replace(self, training={**self.training, **settings})


@dataclass(frozen=True)
class ModelSetup:
    """All that builds a model: its name in the registry, configuration, the images it is for, likelihood."""

    model: str
    config: Any
    image: ImageShape
    likelihood: ConfiguredLikelihood


@dataclass(frozen=True)
class Preset(ModelSetup):
    """A setup to be had by name.

    `recipe` is how it was trained; None leaves the training to the suite. `parameters` is the number of trainable
    values, so that listing presets builds none; None where it was not counted.
    """

    recipe: Recipe | None = None
    parameters: int | None = None
