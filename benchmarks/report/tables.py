"""The tables of a run: records -> data frame -> markdown for people, CSV for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.records.record import Measurement, RunRecord
from benchmarks.report import columns, layout, notes
from benchmarks.report.columns import Column, Spec, all_specs
from benchmarks.report.equal_rate import notes_at_equal_rate, tables_at_equal_rate
from benchmarks.report.rows import Quantity, Row, gather, likelihoods, under_one_ruler, with_known_data

MOST_DRAWN = 28
"""Rows that charts and pictures show at most: as many as have a look of their own (`pictures.charts.looks`)."""
SPREAD_COLUMN = r"(?: low| high| spread| n)(?: \(|$)"  # left out of the CSV where no row has one


@dataclass(frozen=True)
class Table:
    """One table as text, with its title and footnotes; `columns` are those of the section's rows, if its cells are."""

    title: str
    cells: pd.DataFrame
    footnotes: list[str]
    columns: Sequence[Column] = ()


@dataclass(frozen=True)
class Section:
    """All that is said about the rows of one suite on one data set; `lead` comes before `caption`."""

    title: str
    lead: list[str]
    caption: list[str]
    tables: list[Table]
    rows: list[Row]

    @property
    def drawn(self) -> list[Row]:
        """The rows that charts and pictures show: the first ones where there are many."""
        return self.rows[:MOST_DRAWN]


def sections(records: Iterable[RunRecord]) -> list[Section]:
    """One section for each suite and content of a data set: rows on different data never share a table."""
    groups: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in with_known_data(records):
        groups.setdefault((record.suite, record.data, record.data_hash), []).append(record)
    return [section(group) for group in groups.values()]


def section(records: Sequence[RunRecord]) -> Section:
    """The section of `records`, which share suite and data."""
    rows = gather(records)
    found = [quality_table(rows), detail_table(rows), *equal_rate_tables(rows), throughput_table(rows)]
    *tables, last = (table for table in found if table is not None)
    last = dataclasses.replace(last, footnotes=[*last.footnotes, *notes.row_notes(rows)])
    title = f"{records[0].suite}: {records[0].data}"
    shown = [column for table in (*tables, last) for column in table.columns]
    lead = notes.lead(under_one_ruler(rows), shown)
    return Section(title, lead, [*notes.caption(rows), *_few_drawn(rows)], [*tables, last], rows)


def _few_drawn(rows: Sequence[Row]) -> list[str]:
    """That charts and pictures leave rows out, where they do."""
    if len(rows) <= MOST_DRAWN:
        return []
    return [
        f"Charts and pictures show the first {MOST_DRAWN} of {len(rows):,} rows; run fewer into a folder for others."
    ]


def quality_table(rows: Sequence[Row]) -> Table | None:
    """Likelihood, reconstruction error beside its rate, and feature distances; None where nothing was measured."""
    return _table("Quality", rows, columns.QUALITY)


def detail_table(rows: Sequence[Row]) -> Table | None:
    """The further quality metrics, None where there are none."""
    return _table("Quality, continued", rows, columns.MORE_QUALITY)


def equal_rate_tables(rows: Sequence[Row]) -> list[Table]:
    """Error and distortion of the rows beside what a model under several beta has at their rates, if there is one."""
    found = tables_at_equal_rate(under_one_ruler(list(rows)))
    return [Table(title, cells, notes_at_equal_rate(rows)) for title, cells in found]


def throughput_table(rows: Sequence[Row]) -> Table | None:
    """Size, training cost, rates and memory."""
    return _table("Cost", rows, columns.COST)


def markdown(part: Section) -> str:
    """The section as markdown that reads well in a terminal."""
    blocks = [f"## {layout.in_markdown(part.title)}", *(layout.wrapped(text) for text in (*part.lead, *part.caption))]
    for table in part.tables:
        blocks.append(f"### {layout.in_markdown(table.title)}")
        blocks.extend(layout.markdown(piece) for piece in layout.stack(table.cells))
        if table.footnotes:
            blocks.append("\n".join(layout.wrapped(text, "- ") for text in table.footnotes))
    return "\n\n".join(blocks) + "\n"


def numbers(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as numbers: for every quantity its value, low, high and kind of spread, named with the unit."""
    ruled = under_one_ruler(list(rows))
    units = {q: m.unit for row in ruled for q, m in row.measurements.items()}
    found, table = _columns(ruled), []
    for row in ruled:
        cells = _identity(row)
        for quantity in found:
            cells |= _numeric_cells(quantity, units[quantity], row.get(quantity))
        table.append(cells)
    frame = pd.DataFrame(table)
    spreads = frame.columns[frame.columns.str.contains(SPREAD_COLUMN) & frame.isna().all()]
    return frame.drop(columns=list(spreads))


def csv(parts: Sequence[Section]) -> str:
    """All sections as CSV text, a line a model row."""
    return layout.csv(pd.concat([numbers(part.rows) for part in parts], ignore_index=True))


def _table(title: str, rows: Sequence[Row], specs: Sequence[Spec]) -> Table | None:
    """The table of the columns in `specs` that the rows fill, with notes on those that they do not."""
    found = columns.columns_of(rows, specs)
    if not found:
        return None
    ruled = under_one_ruler(list(rows))
    shown = [column for column in found if not columns.empty(ruled, column)]
    footnotes = [*notes.left_out(ruled, found), *notes.footnotes(ruled, found)]
    return Table(title, columns.text_table(ruled, shown), footnotes, shown)


def _columns(rows: Sequence[Row]) -> list[Quantity]:
    """The quantities of the CSV, in the order of the tables, unknown metrics last; without those of no value."""
    valued = {q for row in rows for q, m in row.measurements.items() if m.value is not None}
    covered = {q.metric for q in valued}
    found = valued | {q for row in rows for q in row.measurements if q.metric not in covered}
    order = [spec.metric for spec in all_specs()]
    return sorted(found, key=lambda q: (order.index(q.metric) if q.metric in order else len(order), q))


def _identity(row: Row) -> dict[str, object]:
    """What a line of the CSV is about and where it was measured."""
    first = row.records[0]
    env = first.environment
    return {
        "suite": first.suite,
        "data": first.data,
        "data_hash": first.data_hash,
        "row": first.row,
        "label": row.label,
        "model": first.model,
        "status": layout.join_words(r.status for r in row.records),
        "seeds": " ".join(str(r.seed) for r in row.records),
        "likelihood": " / ".join(sorted(likelihoods(row))) or None,
        "device": env.device,
        "device_name": env.device_name,
        "threads": env.threads,
        "precision": env.precision,
        "torch": env.torch,
        "commit": env.commit,
        "dirty": env.dirty,
        "date": env.date,
    }


def _numeric_cells(quantity: Quantity, unit: str, measurement: Measurement | None) -> dict[str, object]:
    """The cells of one quantity in one line of the CSV."""
    setting = "@".join(filter(None, (quantity.variant, quantity.weights)))
    name = f"{quantity.metric}[{setting}]" if setting else quantity.metric
    suffix = f" ({unit.strip('()')})" if unit else ""
    value, low, high, kind, n = (
        (measurement.value, measurement.low, measurement.high, measurement.spread_kind, measurement.n)
        if measurement
        else (None,) * 5
    )
    return {
        f"{name}{suffix}": value,
        f"{name} low{suffix}": low,
        f"{name} high{suffix}": high,
        f"{name} spread": kind,
        f"{name} n": n,
    }
