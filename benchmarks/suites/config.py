"""Suites and trials as frozen dataclasses, read strictly from TOML and written to JSON.

A suite is one table: a data set, a likelihood, training and evaluation settings, and one `[models.ROW]` table a row.
A trial is one row with one seed, everything resolved; the hash of its training names its folder, so that a label or an
evaluation setting trains nothing again. A field that a configuration gains after runs have been named is declared by
`models.fields.added_later`: the hash leaves it out while it is at its default, and stored configurations that lack it
still read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.base.checked import bounds
from benchmarks.base.checked.names import require_line, require_plain
from benchmarks.base.checked.typed import one_of, parse
from benchmarks.base.errors import UserError, unknown
from benchmarks.suites.presets import with_preset
from models.elbo import Objective
from models.fields import POSITIVE, SHARE, WEIGHT, Bounds, added_later, bounded, named_fields, require_bounds, shown
from models.likelihoods import LIKELIHOODS, ConfiguredLikelihood
from models.registry import MODELS

SUITES = Path(__file__).parent
_OF_TRAINING = ("model", "model_config", "likelihood", "likelihood_spec", "objective", "seed", "device", "threads")
_BESIDE_WEIGHTS = ("checkpoint_seconds", "hopeless_after")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Length: `images` (steps x batch), or `epochs` in its place, or `seconds` of training (the number of steps, and with
    it the schedule, is planned from the speed so far), or `cpu_seconds` of processor time, all threads together, which
    neighbours on a busy machine lengthen less. Learning rate: linear warm-up over `warmup`, or from 0 over
    `warmup_steps` in its place, then cosine to `final_rate` x learning_rate. `betas` are Adam's. `ema` is the decay of
    averaged weights (0: none), warmed as min(ema, (1 + t) / (10 + t)), or constant from the initial weights on without
    `ema_warmup`; `ema_batches` training batches re-estimate batch-norm statistics under them. `clip_norm` 0 means no
    clipping. `precision` bfloat16 is autocast around the model; `compile` on runs its forward and backward pass through
    torch.compile, graph replays whole steps as CUDA graphs, which compiles nothing. A step whose loss or gradient is
    not finite is not taken, nor one whose gradient's norm before clipping reaches `skip_threshold` (0: none). After
    `hopeless_after` of them in a row the training returns to its last good state at half the rate, up to `back_offs`
    times; then it is given up.
    """

    images: int = bounded(32_000, bounds.IMAGES)
    epochs: float | None = bounded(None, bounds.EPOCHS)
    seconds: float | None = bounded(None, bounds.SECONDS)
    batch_size: int = bounded(32, bounds.BATCH)
    optimizer: Literal["adam", "adamw", "adamax"] = "adamw"
    learning_rate: float = bounded(3e-3, POSITIVE)
    weight_decay: float = bounded(1e-4, Bounds(0, 1e6))
    epsilon: float = bounded(1e-8, POSITIVE)
    warmup: float = bounded(0.05, SHARE)
    final_rate: float = bounded(0.01, SHARE)
    clip_norm: float = bounded(200.0, WEIGHT)
    ema: float = bounded(0.0, SHARE)
    ema_batches: int = bounded(50, bounds.BATCHES)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "on", "graph"] = "off"
    flip: bool = False
    validations: int = bounded(4, bounds.or_zero(bounds.BATCHES))
    checkpoint_seconds: float = bounded(30.0, bounds.SECONDS)
    hopeless_after: int = added_later(100, bounds.BATCHES)
    cpu_seconds: float | None = added_later(None, bounds.SECONDS)
    warmup_steps: int = added_later(0, bounds.or_zero(bounds.IMAGES))
    betas: tuple[float, ...] = added_later((0.9, 0.999), SHARE)
    skip_threshold: float = added_later(0.0, WEIGHT)
    ema_warmup: bool = added_later(True)
    back_offs: int = added_later(2, bounds.or_zero(bounds.BATCHES))

    def __post_init__(self) -> None:
        require_bounds(self)
        if len(self.betas) != 2 or max(self.betas) == 1:
            raise ValueError(f"training.betas: expected two values in [0, 1), got {list(self.betas)}")
        if self.seconds is not None and self.cpu_seconds is not None:
            raise ValueError("training.cpu_seconds: expected without training.seconds; give one of them")

    @property
    def budget(self) -> float | None:
        """Seconds of the clock or of the processor that the training may take; None where images or epochs count."""
        return self.seconds if self.cpu_seconds is None else self.cpu_seconds


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the test split.

    `iwae_samples`: K of the importance-weighted bound. `samples`: number of images drawn from the prior for sample
    quality (0: as many as test images). `images`: first test images used (0: all). `extractor`: feature extractor
    (empty: the data set's own), and `extractor_weights` its weights where they do not ship. `temperature` of the
    prior when sampling. `prior_batches`: sample quality also with batch-norm statistics of so many batches of images
    from the prior (0: not measured). `reference_split`: what samples are compared with, the test split, or up to 50,000
    of the other images, as most published FIDs have it.
    """

    iwae_samples: int = bounded(20, bounds.DRAWS)
    samples: int = bounded(0, bounds.or_zero(bounds.SAMPLES))
    images: int = bounded(0, bounds.or_zero(bounds.SAMPLES))
    batch_size: int = bounded(100, bounds.BATCH)
    extractor: str = ""
    extractor_weights: str = ""
    temperature: float = bounded(1.0, bounds.TEMPERATURE)
    prior_batches: int = added_later(0, bounds.or_zero(bounds.BATCHES))
    reference_split: Literal["test", "train"] = added_later("test")

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True)
class TrialConfig:
    """One row of a suite with one seed: everything that a number depends on besides the machine."""

    suite: str
    row: str
    label: str
    model: str
    model_config: Any
    data: str
    likelihood: str
    likelihood_spec: ConfiguredLikelihood
    training: TrainingConfig
    objective: Objective
    evaluation: EvaluationConfig
    seed: int = bounded(0, bounds.SEED)
    device: str = "cpu"
    threads: int = bounded(1, bounds.THREADS)

    @property
    def bits(self) -> int:
        """Bits of a pixel value under the likelihood."""
        return self.likelihood_spec.bits

    @property
    def binary(self) -> bool:
        """Whether the model sees binarised images."""
        return self.likelihood_spec.binary

    def identity(self, data_hash: str, versions: str) -> str:
        """Hash that names the trial's folder: 12 hex digits over what its training depends on, data and versions.

        Neither suite, row, label and name of the data count, nor how it is evaluated, nor how often its state is saved.
        Fields of the config that were added later count only where they are not at their default.
        """
        named = named_fields(self)
        training = {name: value for name, value in named["training"].items() if name not in _BESIDE_WEIGHTS}
        depends = {name: named[name] for name in _OF_TRAINING} | {"training": training}
        return _hash([depends, data_hash, versions])

    def first_identity(self, data_hash: str, versions: str) -> str:
        """Hash that named the trial's folder in early runs: over the whole config, data and versions."""
        return _hash([named_fields(self), data_hash, versions])


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Suite:
    """One table: its trials in row order, seed by seed."""

    name: str
    title: str
    data: str
    trials: tuple[TrialConfig, ...]


@dataclass(frozen=True)
class _Head:
    """Top-level keys of a suite file besides its tables."""

    title: str = ""
    data: str = "mnist-5k"
    seeds: int = bounded(1, bounds.SEEDS)
    first_seed: int = bounded(0, bounds.SEED)
    threads: int = bounded(1, bounds.THREADS)

    def __post_init__(self) -> None:
        require_line(self.title, "title", LONGEST_LABEL)
        require_line(self.data, "data")


_TABLES = ("likelihood", "training", "objective", "evaluation", "models")
LONGEST_LABEL = 200
"""Characters of a row's label, and of a suite's title."""
STORED = "stored config"
"""How messages name the configuration of an earlier run."""
_ROW_KEYS = ("name", "preset", "label", "likelihood", "training", "objective")


def suite_names() -> list[str]:
    """Names of the suites that ship."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def read_suite(source: str) -> tuple[str, dict[str, Any]]:
    """Name and raw table of a suite, by shipped name or by path of a TOML file."""
    path = Path(source)
    if path.suffix != ".toml":
        if source not in suite_names():
            raise unknown("suite", source, suite_names())
        path = SUITES / f"{source}.toml"
    try:
        return path.stem, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read suite {path}: {error.strerror}; give a TOML file or a name of `list suites`"
        ) from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a number of thousands of digits
        raise UserError(f"suite {path}: expected TOML, got a syntax error: {error}") from error


def set_path(table: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=c` to a raw suite table; c is read as a TOML value, else as a string."""
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set expects a.b=value, got '{assignment}'")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        value = text.strip()
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {assignment}: '{key}' is a value, not a table")
    table[keys[-1]] = value


def table_at(table: dict[str, Any], key: str) -> dict[str, Any]:
    """The table within a raw table, {} where there is none.

    Raises:
        UserError: something else stands there.
    """
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise UserError(f"{key}: expected a table, got {shown(found)}")
    return found


def build_suite(name: str, table: dict[str, Any], rows: list[str] | None = None) -> Suite:
    """The suite of a raw table, restricted to `rows` if given.

    Raises:
        UserError: unknown key, wrong type, missing or impossible value; names the key and the nearest right one.
    """
    head = parse(_Head, {k: v for k, v in table.items() if k not in _TABLES}, name, extra=_TABLES)
    models = table.get("models")
    if not isinstance(models, dict) or not models:
        raise UserError(f"{name}: expected at least one [models.ROW] table, got none")
    require_plain(name, "name of the suite")
    for row in models:
        require_plain(row, f"row of {name}.models")
    for row in rows or ():
        one_of("model row", row, models)
    seeds = range(head.first_seed, head.first_seed + head.seeds)
    chosen = [row for row in models if rows is None or row in rows]
    trials = tuple(_trial(name, head, table, row, seed) for row in chosen for seed in seeds)
    return Suite(name, head.title or name, head.data, trials)


def _trial(name: str, head: _Head, table: dict[str, Any], row: str, seed: int) -> TrialConfig:
    """The trial of one row and seed: row tables merged over its preset's, and those over the suite's."""
    raw = table["models"][row]
    if not isinstance(raw, dict):
        raise UserError(f"{name}.models.{row}: expected a table, got {shown(raw)}")
    raw = with_preset(raw)
    model = one_of("model", raw.get("name", row), MODELS)
    where = f"{name}.models.{row}"
    fields = {key: value for key, value in raw.items() if key not in _ROW_KEYS}
    likelihood, spec = _likelihood(raw.get("likelihood", table.get("likelihood", {})), where)

    def merged(key: str) -> dict[str, Any]:
        own, shared = raw.get(key, {}), table.get(key, {})
        if not (isinstance(own, dict) and isinstance(shared, dict)):
            raise UserError(f"{where}.{key}: expected a table")
        return {**shared, **own}

    return TrialConfig(
        suite=name,
        row=row,
        label=_label(raw.get("label", row), f"{where}.label"),
        model=model,
        model_config=parse(MODELS[model].config, fields, where, extra=_ROW_KEYS),
        data=head.data,
        likelihood=likelihood,
        likelihood_spec=spec,
        training=parse(TrainingConfig, merged("training"), f"{where}.training"),
        objective=parse(Objective, merged("objective"), f"{where}.objective"),
        evaluation=parse(EvaluationConfig, table.get("evaluation", {}), f"{name}.evaluation"),
        seed=seed,
        threads=head.threads,
    )


def _label(label: Any, where: str) -> str:
    """A row's label: one line of text."""
    if not isinstance(label, str) or not label.strip():
        raise UserError(f"{where}: expected text, got {shown(label)}")
    require_line(label, where, LONGEST_LABEL)
    return label


def _likelihood(raw: Any, where: str) -> tuple[str, ConfiguredLikelihood]:
    if not isinstance(raw, dict) or "name" not in raw:
        raise UserError(f"{where}: expected a [likelihood] table with a name, one of {', '.join(LIKELIHOODS)}")
    name = one_of("likelihood", raw["name"], LIKELIHOODS)
    fields = {key: value for key, value in raw.items() if key != "name"}
    return name, parse(LIKELIHOODS[name], fields, f"{where}.likelihood", extra=("name",))


def to_dict(trial: TrialConfig) -> dict[str, Any]:
    """The trial as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(trial)))


def trial_from_dict(raw: Any) -> TrialConfig:
    """The trial of `to_dict`'s output, checked as strictly as a suite file.

    Raises:
        UserError: a key or value that does not fit.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{STORED}: expected a table, got {shown(raw)}")
    model = one_of("model", raw.get("model"), MODELS)
    likelihood = one_of("likelihood", raw.get("likelihood"), LIKELIHOODS)
    parsed = {
        "model_config": parse(MODELS[model].config, raw.get("model_config"), f"{STORED}.model_config"),
        "likelihood_spec": parse(LIKELIHOODS[likelihood], raw.get("likelihood_spec"), f"{STORED}.likelihood_spec"),
    }
    trial = parse(TrialConfig, {**raw, **parsed}, STORED)
    require_plain(trial.row, f"{STORED}.row")
    for name in ("suite", "label", "data"):
        require_line(getattr(trial, name), f"{STORED}.{name}")
    return trial


def with_overrides(
    suite: Suite, *, device: str, threads: int | None = None, training: dict[str, Any] | None = None
) -> Suite:
    """The suite with device, threads and training fields replaced in every trial."""
    trials = []
    for trial in suite.trials:
        new = dataclasses.replace(trial.training, **training) if training else trial.training
        trials.append(dataclasses.replace(trial, device=device, threads=threads or trial.threads, training=new))
    return dataclasses.replace(suite, trials=tuple(trials))
