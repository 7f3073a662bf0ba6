"""Two rows of one run, metric by metric: both values, their difference, its interval, and whether that excludes 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.base.errors import UserError, unknown
from benchmarks.records.record import Measurement, RunRecord
from benchmarks.records.uncertainty import Interval, bootstrap_interval
from benchmarks.report import layout
from benchmarks.report.columns import SPECS, Column, columns_of
from benchmarks.report.page import read_trials
from benchmarks.report.pictures.saved import read_arrays
from benchmarks.report.rows import Row, gather, reach, under_one_ruler, with_known_data

PAIRED = "paired bootstrap 95%"
SPREADS = "sum of both spreads"
SEED = 0  # of the bootstrap's resampling
WATCHED = ("torch", "threads", "device", "device_name", "precision", "suite_version", "commit")
FACTS = ("parameters", "latents", "macs", "training_images")  # counts: they have no interval


@dataclass(frozen=True)
class Difference:
    """One metric of two rows: `change` is b - a, `interval` bounds it as `basis` says; None where unknown."""

    column: Column
    a: float | None
    b: float | None
    interval: Interval | None
    basis: str
    note: str = ""

    @property
    def change(self) -> float | None:
        """The value of b minus that of a, None where one is missing."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def beyond(self) -> bool:
        """Whether the interval of the change is known and excludes 0."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


def compare(out: Path, a: str, b: str) -> str:
    """The comparison of rows `a` and `b` of the run in `out` as text for a terminal.

    Raises:
        UserError: no such row, or rows on different data.
    """
    trials = read_trials(out)
    first, second = find_row(trials.values(), a), find_row(trials.values(), b)
    found = differences(first, second, trials)
    head = layout.in_markdown(f"## {second.label} - {first.label} ({first.records[0].suite}: {first.records[0].data})")
    table = layout.markdown(_table(first, second, found), left=("Metric", "Basis", "Verdict"))
    notes = dict.fromkeys([*warnings(first, second), *(d.note for d in found if d.note)])
    lines = [layout.wrapped(note, "- ") for note in notes]
    return "\n\n".join([head, table, *(["\n".join(lines)] if lines else [])]) + "\n"


def differences(first: Row, second: Row, trials: dict[Path, RunRecord]) -> list[Difference]:
    """The difference of every metric that one of the rows has, in the order of the tables.

    Per-image metrics of one seed each: paired bootstrap over the test images. Else the change plus and minus both
    spreads, so that it excludes 0 exactly where the intervals of the rows do not overlap.

    Raises:
        UserError: the rows were measured on different data.
    """
    data = [row.records[0] for row in (first, second)]
    if data[0].data_hash != data[1].data_hash:
        named = " and ".join(f"{r.label} on {r.data} ({r.data_hash[:8]})" for r in data)
        raise UserError(f"compare: expected two rows on the same data, got {named}; run both on one data set")
    arrays = [_per_image(row, trials) for row in (first, second)]
    columns = columns_of([first, second], SPECS)
    ruled = under_one_ruler([first, second])
    return [_difference(column, ruled, arrays) for column in columns]


def find_row(records: Iterable[RunRecord], name: str) -> Row:
    """The row of that key or label, upper and lower case alike.

    Raises:
        UserError: none, with the nearest name, or several.
    """
    rows = gather(with_known_data(records))
    found = [row for row in rows if name.lower() in (row.name.lower(), row.label.lower())]
    if not found:
        raise unknown("row", name, {row.name for row in rows})
    if len(found) > 1:
        labels = ", ".join(f"'{row.label}'" for row in found)
        raise UserError(f"compare: expected one row of the name '{name}', found {labels}; give one of these labels")
    return found[0]


def warnings(first: Row, second: Row) -> list[str]:
    """A line for every field of the environment in which the rows differ."""
    lines = []
    for name in WATCHED:
        a, b = (layout.join_words(str(getattr(r.environment, name)) for r in row.records) for row in (first, second))
        if a != b:
            lines.append(f"warning: {name} differs: {first.label} {a}, {second.label} {b}")
    return lines


def _difference(column: Column, rows: Sequence[Row], arrays: Sequence[dict[str, np.ndarray]]) -> Difference:
    """The difference in one column."""
    a, b = (row.get(column.quantity) for row in rows)
    if a is None or b is None or a.value is None or b.value is None:
        first, second = (None if m is None else m.value for m in (a, b))
        return Difference(column, first, second, None, "", _why(rows, (a, b)))
    if column.quantity.metric in FACTS:
        return Difference(column, a.value, b.value, None, "")
    interval, basis = _interval(column.quantity.metric, a, b, arrays)
    return Difference(column, a.value, b.value, interval, basis)


def _why(rows: Sequence[Row], found: Sequence[Measurement | None]) -> str:
    """The notes of the missing values; one that both rows share is said once."""
    notes = {row.label: m.note for row, m in zip(rows, found, strict=True) if m and m.note and m.value is None}
    if len(notes) > 1 and len(set(notes.values())) == 1:
        return next(iter(notes.values()))
    return "; ".join(f"{label}: {note}" for label, note in notes.items())


def _interval(
    metric: str, a: Measurement, b: Measurement, arrays: Sequence[dict[str, np.ndarray]]
) -> tuple[Interval | None, str]:
    """The interval of b - a and what it rests on."""
    first, second = (found.get(metric) for found in arrays)
    if first is not None and second is not None and len(first) == len(second) > 1:
        return bootstrap_interval(second - first, SEED), PAIRED
    halves = [reach(m) for m in (a, b)]
    if a.value is None or b.value is None or halves[0] is None or halves[1] is None:
        return None, ""
    change, both = b.value - a.value, halves[0] + halves[1]
    return Interval(change - both, change + both), SPREADS


def _per_image(row: Row, trials: dict[Path, RunRecord]) -> dict[str, np.ndarray]:
    """The row's per-image arrays by metric; empty where they are not saved or the row has several seeds."""
    folders = [folder for folder, record in trials.items() if any(record is other for other in row.records)]
    path = folders[0] / "per_image.npz" if len(folders) == 1 else None
    if path is None or not path.exists():
        return {}
    arrays = read_arrays(path)
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            found = f"{values.dtype} {values.shape}"
            raise UserError(f"{path}: expected finite numbers (N,) under '{name}', got {found}; remove that file")
    return {name: values.astype(np.float64) for name, values in arrays.items()}


def _table(first: Row, second: Row, found: Sequence[Difference]) -> pd.DataFrame:
    """The differences as text, a line a metric."""
    names = ["Metric", first.label, second.label, "Difference", "Interval of the difference", "Basis", "Verdict"]
    return pd.DataFrame([_cells(d, first.label, second.label) for d in found], columns=pd.Index(names))


def _cells(difference: Difference, first: str, second: str) -> list[str]:
    """The line of one metric."""
    spec = difference.column.spec
    values = [difference.a, difference.b, difference.change, *(difference.interval or (None, None))]
    scaled = [None if value is None else value / spec.scale for value in values]
    places = layout.decimals([v for v in scaled[:3] if v is not None], (), spec.digits)
    places = places if spec.places is None else spec.places
    a, b, change, low, high = (layout.DASH if v is None else layout.number(v, places) for v in scaled)
    interval = layout.DASH if difference.interval is None else f"{low} to {high}"
    return [difference.column.heading, a, b, change, interval, difference.basis, _verdict(difference, first, second)]


def _verdict(difference: Difference, first: str, second: str) -> str:
    """Which row is better, where that is beyond the spread."""
    if difference.change is None or difference.column.quantity.metric in FACTS:
        return ""
    if difference.interval is None:
        return "no interval"
    if not difference.beyond:
        return "within the spread"
    better = difference.column.spec.better
    if better is None:
        return "differs beyond the spread"
    return f"{second if (difference.change > 0) == (better == 'high') else first} better, beyond the spread"
