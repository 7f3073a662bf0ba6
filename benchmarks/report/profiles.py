"""What `throughput` and `profile` have left for the page: shares of training steps, kernels compiled and timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.records.record import Measurement, RunRecord
from benchmarks.report.rows import Row, trials_by_row

THROUGHPUT, PROFILE = "throughput.json", "profile.json"
"""Files of a run's folder, if they were made."""
SHARE = "_share"
T = TypeVar("T")


@dataclass(frozen=True)
class Shares:
    """Where a training step's time goes, by kind of operation (sum 1), and under which conditions that was found."""

    by_kind: Mapping[str, float]
    conditions: str


@dataclass(frozen=True)
class Compiled:
    """A kernel as compiled for one target: registers and spilled registers a thread, per element the rest."""

    kernel: str
    direction: str
    dtype: str
    target: str
    registers: int | None = None
    spills: int | None = None
    instructions_per_element: float | None = None
    bytes_per_element: float | None = None
    bytes_floor: float | None = None
    bytes_eager: float | None = None


@dataclass(frozen=True)
class Timed:
    """A kernel as timed on one device: quantiles in microseconds, speed-ups over plain PyTorch."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    ops: str
    p20_us: float
    p50_us: float
    p80_us: float
    gb_per_s: float | None = None
    speedup_over_eager: float | None = None
    speedup_over_compile: float | None = None


@dataclass(frozen=True)
class Kernels:
    """A profile of the kernels; `source` names the file."""

    compiled: Sequence[Compiled] = field(default_factory=list)
    timed: Sequence[Timed] = field(default_factory=list)
    source: str = ""


def shares_by_label(out: Path, rows: Sequence[Row], trials: Mapping[Path, RunRecord]) -> dict[str, Shares]:
    """Shares of each row's training step, by label, from `throughput FOLDER ... --json` in the run's folder.

    A row's are those of its first seed that was profiled, by the name of the trial's folder.

    Raises:
        UserError: a file that cannot be read.
    """
    path = out / THROUGHPUT
    if not path.exists():
        return {}
    by_folder: dict[str, list[Measurement]] = {}
    for one in _items(path):
        found = parse(Measurement, one, str(path))
        if found.metric.endswith(SHARE) and found.value is not None:
            by_folder.setdefault(Path(str(found.details.get("target"))).name, []).append(found)
    shares = {}
    for row, own in zip(rows, trials_by_row(rows, trials), strict=True):
        folders = [folder.name for folder in own if folder.name in by_folder]
        if folders:
            shares[row.label] = _shares(by_folder[folders[0]])
    return shares


def _shares(found: Sequence[Measurement]) -> Shares:
    """The shares of one training step."""
    details = found[0].details
    said = [f"{name} {details[name]}" for name in ("batch", "threads") if name in details]
    said += [str(details[name]) for name in ("precision", "operations") if name in details]
    return Shares({one.metric.removesuffix(SHARE): one.value or 0.0 for one in found}, ", ".join(said))


def kernels_of(out: Path, shipped: Path | None) -> Kernels | None:
    """The profile of the kernels in the run's folder, else the shipped one; None without either.

    Raises:
        UserError: a file that cannot be read.
    """
    path = out / PROFILE if (out / PROFILE).exists() else shipped
    if path is None:
        return None
    items = [(str(one.get("part")), one) for one in _items(path)]
    compiled = [_known(Compiled, one, path) for part, one in items if part == "static"]
    timed = [_known(Timed, one, path) for part, one in items if part == "timed"]
    return Kernels(compiled, timed, PROFILE if path.parent == out else "/".join(path.parts[-3:]))


def _items(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects.

    Raises:
        UserError: it is none.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; remove that file or make it again") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{path}: expected a list of measurements, got something else; remove it or make it again")
    return found


def _known(cls: type[T], item: dict[str, Any], path: Path) -> T:
    """`cls` from those keys of an item that it knows."""
    names = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return parse(cls, {name: item[name] for name in names if name in item}, str(path))
