"""What can be timed, by name: a trained model, a row of a suite, or a preset; with overrides of its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base.errors import UserError, unknown
from benchmarks.data import keyed_generator, load
from benchmarks.storage.weights import build_model, load_model
from benchmarks.suites.config import (
    TrialConfig,
    build_suite,
    read_suite,
    set_path,
    suite_names,
    to_dict,
    trial_from_dict,
)
from benchmarks.suites.presets import preset_row, recipe_row
from models.output import ImageShape, Model
from models.registry import MODELS, presets

TABLES = {
    "model": "model_config",
    "likelihood": "likelihood_spec",
    "training": "training",
    "objective": "objective",
    "evaluation": "evaluation",
}
"""First word of an override -> part of a trial."""
NOT_TIMED = (
    *(
        "images",
        "epochs",
        "seconds",
        "cpu_seconds",
        "warmup",
        "warmup_steps",
        "final_rate",
        "ema_batches",
        "validations",
    ),
    *("checkpoint_seconds", "hopeless_after"),
)
"""Fields of a training that say how long it is, or what is done beside its steps."""
TIMED_EVALUATION = ("iwae_samples",)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Target:
    """A model to time: its trial, its images' shape, and its weights if it has any yet.

    `source`, `row`, `overrides` and `hparams` say how to come by it again in another process.
    """

    source: str
    trial: TrialConfig
    image: ImageShape
    row: str | None = None
    overrides: tuple[str, ...] = ()
    weights: dict[str, Tensor] | None = None
    hparams: str | None = None

    @property
    def name(self) -> str:
        """The source; of a suite, its name and the row."""
        return f"{Path(self.source).stem}/{self.row}" if self.row else self.source

    def overridden(self, assignments: Sequence[str]) -> Target:
        """The target with parts of its trial replaced; raises UserError as `override_trial`."""
        trial = override_trial(self.trial, assignments)
        return dataclasses.replace(self, trial=trial, overrides=(*self.overrides, *assignments))

    def build(self, device: torch.device) -> Model:
        """The model on `device`, with its weights or freshly initialised from the trial's seed.

        Raises:
            UserError: an override under which the weights do not fit.
        """
        model = build_model(self.trial, self.image, device)
        if self.weights is not None:
            try:
                model.load_state_dict(self.weights)
            except RuntimeError as error:
                raise UserError(f"{self.name}: the weights do not fit the overrides: {str(error)[:200]}") from error
        return model

    def images(self, n: int) -> Tensor:
        """At least `n` uint8 images: the training split, repeated if it is smaller; keyed noise without a data set."""
        if self.trial.data:
            train = load(self.trial.data).train
            return train if n <= len(train) else train[torch.arange(n) % len(train)]
        gen = keyed_generator(self.trial.seed, "timed images")
        size = (n, self.image.channels, self.image.height, self.image.width)
        return torch.randint(256, size, dtype=torch.uint8, generator=gen)


def resolve(name: str, rows: Sequence[str] | None = None, hparams: str | None = None) -> list[Target]:
    """The targets that `name` stands for: the rows of a suite (only `rows` if given), or the one model it names.

    `hparams` is a file of settings for a published code's checkpoint that holds none; suites and presets need none.

    Raises:
        UserError: no such thing, with the nearest name; rows of what has none.
    """
    if hparams is not None and (name in (*suite_names(), *presets()) or name.endswith(".toml")):
        raise UserError(
            f"--hparams {hparams}: expected a checkpoint of a published code, got {name}; leave the flag out"
        )
    if name in suite_names() or name.endswith(".toml"):
        return _suite_targets(name, rows)
    if rows:
        raise UserError(f"--models: expected a suite to pick rows from, got '{name}'")
    if name in presets():
        return [preset_target(name)]
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) > 1:
        loaded = load_model(path, CPU, None if hparams is None else Path(hparams))
        return [Target(name, loaded.trial, loaded.model.image, weights=loaded.model.state_dict(), hparams=hparams)]
    raise unknown("target", name, [*suite_names(), *presets()])


def _suite_targets(name: str, rows: Sequence[str] | None) -> list[Target]:
    """The first seed of each row."""
    stem, table = read_suite(name)
    suite = build_suite(stem, {**table, "seeds": 1}, list(rows) if rows else None)
    image = load(suite.data).image
    return [Target(name, trial, image, trial.row) for trial in suite.trials]


def preset_target(name: str) -> Target:
    """A preset under the recipe that its model's published ones share, on data that it does not name."""
    preset = presets()[name]
    row = {**recipe_row(MODELS[preset.model].recipe), **preset_row(name)}
    trial = build_suite(name, {"data": "", "models": {name: row}}).trials[0]
    return Target(name, trial, preset.image)


def override_trial(trial: TrialConfig, assignments: Sequence[str]) -> TrialConfig:
    """The trial under `a.b=c` assignments, where a is one of `TABLES`; checked as strictly as a suite.

    Raises:
        UserError: unknown key, wrong type or impossible value; a setting that changes nothing that is timed.
    """
    if not assignments:
        return trial
    raw: dict[str, Any] = to_dict(trial)
    for assignment in assignments:
        table, dot, rest = assignment.partition(".")
        if not dot or "=" in table:
            raise UserError(f"--set expects TABLE.KEY=VALUE with TABLE one of {', '.join(TABLES)}, got '{assignment}'")
        if table not in TABLES:
            raise unknown("table of --set", table, TABLES)
        set_path(raw, f"{TABLES[table]}.{rest}")
    changed = trial_from_dict(raw)
    for assignment in assignments:
        _require_timed(assignment)
    return changed


def _require_timed(assignment: str) -> None:
    """Raise UserError where a setting plays no part in what is timed."""
    table, _, rest = assignment.partition(".")
    key = rest.partition("=")[0].strip()
    if (table == "training" and key in NOT_TIMED) or (table == "evaluation" and key not in TIMED_EVALUATION):
        raise UserError(f"--set {assignment} changes nothing that is timed: single steps and batches are; leave it out")
