"""Tables as the page's template takes them: headings with explanations, cells with what lies behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.records.catalogue import METRICS
from benchmarks.records.record import Measurement
from benchmarks.report import layout
from benchmarks.report.columns import Column
from benchmarks.report.notes import SPREADS
from benchmarks.report.rows import Row, under_one_ruler
from benchmarks.report.tables import Table


@dataclass(frozen=True)
class Heading:
    """A column's heading, its explanation ("" where there is none) and which values are better."""

    text: str
    said: str = ""
    better: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell's text, whether it is bold, and its interval and n or why it is a dash."""

    text: str
    bold: bool = False
    said: str = ""


@dataclass(frozen=True)
class View:
    """A table: headings, lines of cells, and the lines that stay at its foot however it is sorted."""

    title: str
    headings: list[Heading]
    lines: list[list[Cell]]
    foot: list[list[Cell]]
    footnotes: Sequence[str]


def view(table: Table, rows: Sequence[Row]) -> View:
    """The table of a section with these rows."""
    columns = {column.heading: column for column in table.columns}
    names = [str(name) for name in table.cells.columns]
    ruled = under_one_ruler(list(rows)) if columns else []
    lines = []
    for index, texts in enumerate(table.cells.itertuples(index=False, name=None)):
        row = ruled[index] if index < len(ruled) else None
        lines.append([_cell(text, row, columns.get(name)) for name, text in zip(names, texts, strict=True)])
    measured = len(ruled) if columns else len(lines)
    headings = [_heading(name, columns.get(name)) for name in names]
    return View(table.title, headings, lines[:measured], lines[measured:], table.footnotes)


def _heading(name: str, column: Column | None) -> Heading:
    """What stands above a column."""
    if column is None:
        return Heading(name)
    metric = METRICS[column.spec.metric]
    better = {"high": "higher is better", "low": "lower is better", None: ""}[column.spec.better]
    unit = column.spec.unit or metric.unit
    said = "; ".join(filter(None, (metric.description, f"in {unit}" if unit else "", better)))
    return Heading(name, said, column.spec.better or "")


def _cell(text: str, row: Row | None, column: Column | None) -> Cell:
    """The cell of a row and a column; None where it is of neither."""
    found = row.get(column.quantity) if row is not None and column is not None else None
    said = "" if found is None or column is None else _said(found, column.spec.scale)
    number = layout.unmarked(text)
    return Cell(text, said=said) if number is None else Cell(number, bold=True, said=said)


def _said(measurement: Measurement, scale: float) -> str:
    """Interval, n and note of a measurement, or why it has no value."""
    parts = []
    if measurement.value is not None and measurement.low is not None and measurement.high is not None:
        kind = SPREADS.get(str(measurement.spread_kind), str(measurement.spread_kind))
        parts.append(f"{measurement.low / scale:,.5g} to {measurement.high / scale:,.5g} (±: {kind})")
    if measurement.value is not None and measurement.n:
        parts.append(f"n = {measurement.n:,}")
    return "; ".join([*parts, *filter(None, [measurement.note])])
