"""The columns of the tables: which there are, how they are headed, what a cell says, which cell is bold."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from benchmarks.records.catalogue import METRICS
from benchmarks.records.record import Measurement
from benchmarks.report import layout
from benchmarks.report.rows import Quantity, Row, differ_in_beta, half_width, reach

MODEL = "Model"
FLOOR = "real images"
OF_SAMPLES = ("sample_fid", "sample_fid_prior_statistics")
DISTANCES = (*OF_SAMPLES, "reconstruction_fid", "kid", "precision", "recall", "inception_score")
SHORT_UNITS = {"nats/image": "nats", "images/s": "img/s", "image/s": "img/s", "images": "", "units": "", "count": ""}


@dataclass(frozen=True)
class Spec:
    """How a metric is shown.

    `name` may hold `{variant}`, which `terse` ones say only where there are several; `ranked` columns may have a bold
    cell, and `spread` ones print ±; `optional` columns are left out where no row has a value; `places` fixes the
    decimals; values are divided by `scale`, which `unit` names. `given` replaces the metric's own direction.
    """

    metric: str
    name: str
    ranked: bool = True
    spread: bool = True
    terse: bool = False
    optional: bool = False
    places: int | None = None
    digits: int = 4
    scale: float = 1.0
    unit: str | None = None
    given: Literal["high", "low"] | None = None

    @property
    def better(self) -> Literal["high", "low"] | None:
        """Which values are better; None where neither are."""
        own = {True: "high", False: "low", None: None}[METRICS[self.metric].higher_is_better]
        return self.given or own  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    spec: Spec
    quantity: Quantity
    heading: str


QUALITY = [
    Spec("elbo", "ELBO"),
    Spec("bits_per_dim", "bits/dim", spread=False, optional=True),
    Spec("iwae_bound", "IWAE({variant})"),
    Spec("mse", "MSE"),
    Spec("rate", "Rate", ranked=False),
    Spec("active_units", "Active units", places=0, ranked=False),
    Spec("sample_fid", "FID[{variant}]"),
    Spec("reconstruction_fid", "rFID[{variant}]"),
]
MORE_QUALITY = [
    Spec("psnr", "PSNR"),
    Spec("latents", "Latents", places=0, ranked=False),
    Spec("kid", "KID[{variant}]"),
    Spec("sample_fid_prior_statistics", "FID (prior BN)[{variant}]", terse=True, optional=True),
    Spec("precision", "precision[{variant}]", terse=True, places=3),
    Spec("recall", "recall[{variant}]", terse=True, places=3),
    Spec("inception_score", "IS[{variant}]", terse=True),
]
COST = [
    Spec("parameters", "Params", places=0, ranked=False),
    Spec("macs", "MMACs/img", ranked=False, digits=3, scale=1e6, unit="MMACs/img"),
    Spec("training_images", "Images seen", places=0, ranked=False),
    Spec("training_seconds", "Train", ranked=False, digits=3),
    Spec("training_cpu_seconds", "Train", ranked=False, optional=True, digits=3),
    Spec("train_throughput", "Train", ranked=False, digits=3),
    Spec("encode_throughput", "Encode", ranked=False, digits=3),
    Spec("reconstruct_throughput", "Recon.", ranked=False, digits=3),
    Spec("sample_throughput", "Sample", ranked=False, digits=3),
    Spec("peak_memory", "Peak", ranked=False, digits=3),
]


def all_specs() -> list[Spec]:
    """Those of all tables, in their order."""
    return QUALITY + MORE_QUALITY + COST


def columns_of(rows: Sequence[Row], specs: Sequence[Spec]) -> list[Column]:
    """One column for every variant of a metric that some row has a value of.

    A metric without any value has one that is `empty`, unless it is optional or no row mentions it.
    """
    columns = []
    for spec in specs:
        mentioned = {q: m for row in rows for q, m in row.measurements.items() if q.metric == spec.metric}
        valued = sorted({q for row in rows for q, m in row.measurements.items() if _valued(q, m, spec)})
        if not mentioned or (spec.optional and not valued):
            continue
        for quantity in valued or [Quantity(spec.metric)]:
            unit = spec.unit or _unit(mentioned.values())
            columns.append(Column(spec, quantity, _heading(spec, quantity, valued, unit)))
    return columns


def empty(rows: Sequence[Row], column: Column) -> bool:
    """Whether no row has a value in the column."""
    return not any(m.value is not None for row in rows if (m := row.get(column.quantity)))


def text_table(rows: Sequence[Row], columns: Sequence[Column]) -> pd.DataFrame:
    """The table as text: a row a model, bold where a value is best beyond the spread, the floors in the last row."""
    texts = {MODEL: [label_of(row) for row in rows]}
    for column in columns:
        texts[column.heading] = _cells(rows, column)
    floors = {column.heading: _floor_cell(rows, column) for column in columns}
    table = pd.DataFrame(texts)
    if any(floors.values()):
        blank = {heading: text or layout.DASH for heading, text in floors.items()}
        table = pd.concat([table, pd.DataFrame([{MODEL: FLOOR} | blank])], ignore_index=True)
    return table


def label_of(row: Row) -> str:
    """The row's label, with its state where not every seed finished."""
    states = layout.join_words(r.status for r in row.records if r.status in ("failed", "interrupted"))
    return f"{row.label} ({states})" if states else row.label


def winner(rows: Sequence[Row], column: Column) -> int | None:
    """The index of the best row if its interval overlaps with no other row's, else None.

    Every value needs an interval: older records' distances of one seed have none and never win. Distances over
    different numbers of images have different biases and are not ranked, nor are rows trained under different beta.
    """
    found = {i: m for i, row in enumerate(rows) if (m := row.get(column.quantity)) and m.value is not None}
    sizes = {m.n for m in found.values()}
    if not column.spec.ranked or column.spec.better is None or len(found) < 2 or differ_in_beta(rows):
        return None
    if column.spec.metric in DISTANCES and len(sizes) > 1:
        return None
    sign = 1 if column.spec.better == "high" else -1
    best = max(found, key=lambda i: sign * (found[i].value or 0.0))
    rivals = [m for i, m in found.items() if i != best]
    return best if all(_apart(found[best], rival) for rival in rivals) else None


def short_name(metric: str) -> str:
    """The metric's name in a sentence, without variant."""
    name = next((spec.name for spec in all_specs() if spec.metric == metric), metric)
    return _bare(name)


def _bare(name: str) -> str:
    """A spec's name without its variant."""
    return name.replace("[{variant}]", "").replace("({variant})", "")


def _apart(a: Measurement, b: Measurement) -> bool:
    """Whether the intervals of both, over images or seeds, are known and do not overlap."""
    if reach(a) is None or reach(b) is None:
        return False
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or a.high < b.low


def _cells(rows: Sequence[Row], column: Column) -> list[str]:
    """The texts of one column, all with the same number of decimals."""
    found = [row.get(column.quantity) for row in rows]
    best = winner(rows, column)
    places = _places(rows, column)
    texts = [_cell(m, column.spec, places) for m in found]
    return [layout.strong(text) if i == best else text for i, text in enumerate(texts)]


def _places(rows: Sequence[Row], column: Column) -> int:
    """The decimals of the column, its floor included."""
    spec = column.spec
    if spec.places is not None:
        return spec.places
    found = [m for row in rows if (m := row.get(column.quantity)) is not None and m.value is not None]
    values = [m.value / spec.scale for m in found if m.value is not None]
    halves = [half / spec.scale for m in found if (half := half_width(m)) is not None]
    floor = _floor(rows, column.quantity)
    shown = halves if spec.ranked and spec.spread else ()
    return layout.decimals(values if floor is None else [*values, floor], shown, spec.digits)


def _cell(measurement: Measurement | None, spec: Spec, places: int) -> str:
    """One cell; a dash where there is no value."""
    if measurement is None or measurement.value is None:
        return layout.DASH
    half = half_width(measurement) if spec.spread else None
    return layout.number(measurement.value / spec.scale, places, None if half is None else half / spec.scale)


def _floor_cell(rows: Sequence[Row], column: Column) -> str:
    """What real images score in the column: the measured floor of samples, 0 for paired reconstructions."""
    if empty(rows, column):
        return ""
    if column.quantity.metric == "reconstruction_fid":
        return "0 (paired)"
    floor = _floor(rows, column.quantity)
    return "" if floor is None else layout.number(floor, _places(rows, column))


def _floor(rows: Sequence[Row], quantity: Quantity) -> float | None:
    """The distance of real images under the same extractor, averaged over rows; None for other quantities."""
    if quantity.metric not in OF_SAMPLES:
        return None
    floor = Quantity("fid_floor", quantity.variant, quantity.weights)
    values = [m.value for row in rows if (m := row.measurements.get(floor)) and m.value is not None]
    return statistics.fmean(values) if values else None


def _valued(quantity: Quantity, measurement: Measurement, spec: Spec) -> bool:
    """Whether this is a value of the spec's metric."""
    return quantity.metric == spec.metric and measurement.value is not None


def _heading(spec: Spec, quantity: Quantity, others: Sequence[Quantity], unit: str) -> str:
    """Name with variant, arrow and unit; `others` are all quantities of the metric that have a column.

    A distance under Inception's features is the only one without its extractor's name; without any there is no value.
    """
    variant = quantity.variant
    if sum(q.variant == quantity.variant for q in others) > 1:
        variant = f"{variant}@{quantity.weights}"
    bare = variant in ("", "inception") or (spec.terse and len(others) < 2)
    name = _bare(spec.name) if bare else spec.name.format(variant=variant)
    arrow = {"high": " ↑", "low": " ↓", None: ""}[spec.better]
    return f"{name}{arrow} ({unit})" if unit and unit != name else f"{name}{arrow}"


def _unit(measurements: Iterable[Measurement]) -> str:
    """The unit of the measurements in its short form."""
    unit = next((m.unit for m in measurements if m.unit), "").strip("()")
    return SHORT_UNITS.get(unit, unit)
