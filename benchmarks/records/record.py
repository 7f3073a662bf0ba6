"""What was measured, as data: no torch import, so that reports are rebuilt on any machine.

One `RunRecord` is one trial of a table: one model row and one seed. It is written atomically as
`record.json` in the trial's folder, beside `images.npz`, `gallery.npz` (arrays for figures and page) and the weights.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from benchmarks.base.checked.names import is_plain
from benchmarks.base.checked.strict_json import parse_json, read_json, sound_number
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from models.fields import shown

SCHEMA_VERSION = 1
RECORD = "record.json"
RUN = "run.json"
GALLERY = "gallery.npz"
"""Pictures for the page, beside a trial's record; where they are missing, a run makes them from the weights."""
T = TypeVar("T")

SpreadKind = Literal["bootstrap 95%", "jackknife 95%", "std over seeds", "IQR", "std over subsets", "standard error"]


@dataclass(frozen=True)
class Measurement:
    """One measured value.

    `value` None means not applicable or not available; `note` then says why ("no prior", "needs
    --inception-weights PATH"). `low`/`high` bound the spread named by `spread_kind`. `n` is the number of images
    (or of timed repeats for throughput).
    """

    metric: str
    value: float | None
    unit: str
    higher_is_better: bool | None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    spread_kind: SpreadKind | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """Machine and software of a run; every field can change a number.

    `instruction_set`: what the C kernels were built for, None where there are none, or in a record from before.
    """

    python: str
    torch: str
    torchvision: str
    triton: str | None
    torch_fidelity: str | None
    cuda: str | None
    device: str
    device_name: str
    cpu: str
    cores: int
    threads: int
    precision: str
    operations: str
    platform: str
    suite_version: str
    commit: str | None
    dirty: bool | None
    command: str
    date: str
    instruction_set: str | None = None

    @property
    def shown_commit(self) -> str:
        """The commit in short, and whether the code was changed after it."""
        return (self.commit or "unknown")[:10] + ("+dirty" if self.dirty else "")


@dataclass(frozen=True)
class LatentGroupInfo:
    """Shape and usage of one latent group, coarse -> fine."""

    channels: int
    height: int
    width: int
    rate: float | None = None
    active_units: int | None = None
    units: int | None = None


@dataclass(frozen=True)
class Curve:
    """A quantity over training: x in training images seen; a value that was not finite is None."""

    name: str
    unit: str
    images: list[float]
    values: list[float] | list[float | None]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.values):
            found = f"{len(self.images)} and {len(self.values)}"
            raise ValueError(f"curve {self.name!r}: expected as many values as images, got {found}")


@dataclass(frozen=True)
class RunRecord:
    """One trial. `row` is the model's row in the table (the suite's key), `model` its registry name."""

    suite: str
    row: str
    label: str
    model: str
    data: str
    data_hash: str
    seed: int
    config_hash: str
    config: dict[str, Any]
    environment: Environment
    status: Literal["trained", "done", "failed", "interrupted"]
    parameters: int
    macs_per_image: int | None
    latent_groups: list[LatentGroupInfo]
    images_seen: int
    steps: int
    training_seconds: float
    skipped_steps: int = 0
    measurements: list[Measurement] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    data_note: str = ""
    """Where the images came from, how they were cut and what was changed on the way."""
    training_cpu_seconds: float | None = None
    """Processor time of the training steps, all threads together; None in older records."""
    ranks: int = 1
    """Processes that took the training steps together, since it was last continued."""
    schema_version: int = SCHEMA_VERSION

    def get(self, metric: str) -> Measurement | None:
        """The measurement of that name, if there is one."""
        return next((m for m in self.measurements if m.metric == metric), None)

    def with_measurements(self, new: list[Measurement]) -> RunRecord:
        """A copy in which `new` replace measurements of the same names."""
        names = {m.metric for m in new}
        kept = [m for m in self.measurements if m.metric not in names]
        return dataclasses.replace(self, measurements=kept + new)


def to_json(record: RunRecord) -> str:
    """The record as JSON text; NaN, infinities and what else `parse_json` refuses become null."""
    return json.dumps(_clean(dataclasses.asdict(record)), indent=1, sort_keys=False, allow_nan=False) + "\n"


def from_json(text: str) -> RunRecord:
    """The record in JSON `text`.

    Raises:
        ValueError: not a record, or of another schema version.
    """
    raw = parse_json(text)
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        found = raw.get("schema_version") if isinstance(raw, dict) else type(raw).__name__
        newer = "; a newer version wrote it: update" if isinstance(found, int) and found > SCHEMA_VERSION else ""
        raise ValueError(f"expected a run record of schema version {SCHEMA_VERSION}, found {found}{newer}")
    for name in ("measurements", "curves"):
        if name not in raw:
            raise ValueError(f"record.{name}: expected a list, got none")
    try:
        record = parse(RunRecord, raw, "record")
        _require_readable(record)
    except UserError as error:
        raise ValueError(str(error)) from error
    return record


@dataclass(frozen=True)
class _ReadConfig:
    """What reports read of a configuration."""

    training: dict[str, Any] | None = None
    objective: dict[str, Any] | None = None
    likelihood_spec: dict[str, Any] | None = None


@dataclass(frozen=True)
class _ReadObjective:
    """What reports read of a configuration's objective."""

    beta: float | None = None


@dataclass(frozen=True)
class _ReadDetails:
    """What reports reckon with of a measurement's details; the rest is text to them."""

    load: float | None = None
    n_reference: int | None = None


def _require_readable(record: RunRecord) -> None:
    """Raise UserError where a free table holds, under a key that reports read, what they cannot."""
    config = _parse_known(_ReadConfig, record.config, "record.config")
    _parse_known(_ReadObjective, config.objective or {}, "record.config.objective")
    for one in record.measurements:
        _parse_known(_ReadDetails, one.details, f"details of {one.metric}")


def _parse_known(cls: type[T], table: dict[str, Any], where: str) -> T:
    """`cls` from those keys of a table that it knows."""
    known = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return parse(cls, {key: table[key] for key in known if key in table}, where)


def save_record(record: RunRecord, folder: Path) -> None:
    """Write `folder/record.json` atomically."""
    write_text_atomically(folder / RECORD, to_json(record))


def save_run(out: Path, folders: list[str]) -> None:
    """Write `out/run.json`: the trial folders of the latest run, in table order."""
    write_text_atomically(out / RUN, json.dumps({"schema_version": SCHEMA_VERSION, "cells": folders}, indent=1) + "\n")


def run_folders(out: Path) -> list[Path]:
    """Trial folders of the latest run in `out` that hold a record, in table order; all of them without `run.json`.

    Raises:
        ValueError: a `run.json` that cannot be read.
    """
    if not (out / RUN).exists():
        return [path.parent for path in sorted(out.glob(f"*/{RECORD}"))]
    return [out / name for name in listed(out) if (out / name / RECORD).exists()]


def listed(out: Path) -> list[str]:
    """The trial folders in `out/run.json`, in table order; none without it.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        trials = read_json(out / RUN)["cells"]
        wrong = [name for name in trials if not is_plain(name)]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out / RUN}: expected the list of a run's trials: {error}") from error
    if wrong:
        raise ValueError(f"{out / RUN}: expected names of folders beside it, got {shown(wrong[0])}")
    return list(trials)


def load_record(folder: Path) -> RunRecord:
    """The record in a trial's folder.

    Raises:
        ValueError: a record that cannot be read, with its path.
    """
    path = folder / RECORD
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_trials(out: Path) -> dict[Path, RunRecord]:
    """Records of the latest run in `out` by trial folder, in table order.

    Raises:
        ValueError: a file that cannot be read, with its path.
    """
    return {folder: load_record(folder) for folder in run_folders(out)}


def load_records(out: Path) -> list[RunRecord]:
    """Records of the latest run in `out`, in table order; raises as `load_trials`."""
    return list(load_trials(out).values())


def _clean(value: Any) -> Any:
    """`value` with floats that are not finite, or too large to be read again, replaced by None, for strict JSON."""
    if isinstance(value, float):
        return value if sound_number(value) else None
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
