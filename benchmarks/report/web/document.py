"""The page as a whole: what its template is given, and the file that comes out."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd
from markupsafe import Markup

from benchmarks.records.catalogue import COLLAPSED_RATE
from benchmarks.report import notes, published
from benchmarks.report.layout import join_words, plain
from benchmarks.report.pictures.gallery import Gallery
from benchmarks.report.pictures.saved import SavedImages
from benchmarks.report.profiles import Kernels, Shares
from benchmarks.report.rows import Row
from benchmarks.report.tables import Section, Table
from benchmarks.report.web.cells import View, view
from benchmarks.report.web.gallery import gallery_albums, without_gallery
from benchmarks.report.web.images import Album, albums
from benchmarks.report.web.speed import Block, kernel_block, time_block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.report.pictures.charts import Chart
    from benchmarks.report.pictures.inline import InlineChart

FOLDER = Path(__file__).parent
MARKERS = {
    "o": "M6 2a4 4 0 1 0 .01 0z",
    "s": "M2 2h8v8h-8z",
    "D": "M6 1l5 5-5 5-5-5z",
    "^": "M6 1l5 9h-10z",
    "v": "M6 11l5-9h-10z",
    "P": "M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M1 3l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
}
"""Markers of charts as paths in a square of 12."""

OF_TRIALS = ("command", "commit", "date", "dirty")
"""Fields of an environment that differ from trial to trial."""


@dataclass(frozen=True)
class Beside:
    """What a page shows of a section beside its tables: images, gallery and shares of each row by label, and charts."""

    images: Mapping[str, SavedImages] = field(default_factory=dict)
    galleries: Mapping[str, Gallery] = field(default_factory=dict)
    shares: Mapping[str, Shares] = field(default_factory=dict)
    charts: Sequence[tuple[Chart, Figure]] = ()


@dataclass(frozen=True)
class Graph:
    """A chart with its title and caption."""

    title: str
    said: str
    drawn: InlineChart


@dataclass(frozen=True)
class Part:
    """One section of the page, for its template."""

    name: str
    title: str
    lead: list[str]
    reading: list[str]
    protocol: list[str]
    tables: list[View]
    albums: list[Album]
    graphs: list[Graph]
    galleries: list[Album]
    without_gallery: str
    time: Block
    trials: View
    environment: dict[str, str]
    published: View | None


def page(
    parts: Sequence[Section],
    beside: Sequence[Beside],
    others: pd.DataFrame | None = None,
    kernels: Kernels | None = None,
) -> str:
    """One HTML file of all sections with their pictures; it loads nothing, and no script but its own runs in it.

    Args:
        parts: the sections.
        beside: theirs, in the same order; the charts are of no use afterwards.
        others: published values, None without.
        kernels: their profile, None without.
    """
    shown = [
        _part(f"part{index}", part, own, others)
        for index, (part, own) in enumerate(zip(parts, beside, strict=True), start=1)
    ]
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        title=join_words(part.title for part in parts),
        parts=shown,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
        markers=MARKERS,
        preface=published.PREFACE,
        kernels=kernel_block(kernels),
    )


@functools.cache
def _template() -> jinja2.Template:
    """The page's template: text is escaped, and is one line without control characters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html")


def _part(name: str, part: Section, beside: Beside, others: pd.DataFrame | None) -> Part:
    """A section for the template."""
    reading = [*notes.spread(part.rows), *notes.trade(part.rows)]
    return Part(
        name=name,
        title=part.title,
        lead=part.lead,
        reading=reading,
        protocol=[text for text in part.caption if text not in reading],
        tables=[view(table, part.rows) for table in part.tables],
        albums=albums(beside.images, part.drawn),
        graphs=_graphs(name, part.drawn, beside.charts),
        galleries=gallery_albums(beside.galleries, part.drawn),
        without_gallery=without_gallery(beside.galleries, part.drawn),
        time=time_block(part.rows, beside.shares),
        trials=_trials(part.rows),
        environment=_environment(part.rows),
        published=_published(published.beside(others, part.rows[0].records[0].data)),
    )


def _graphs(name: str, rows: Sequence[Row], charts: Sequence[tuple[Chart, Figure]]) -> list[Graph]:
    """The charts, with the seeds that they are of and, below rates, the models that use no latent."""
    if not charts:
        return []
    from benchmarks.report.pictures.inline import inline  # matplotlib: slow to import, and the tables need none

    seeds = f"Seeds: {join_words(str(record.seed) for row in rows for record in row.records)}."
    tested = join_words(f"{m.n:,}" for row in rows for name in ("elbo", "mse") for m in row.all(name) if m.n)
    graphs = []
    for chart, figure in charts:
        unused = [text for row in rows for text in _collapse(row)] if chart.name == "rates" else []
        images = [f"n = {tested} test images."] if chart.tested and tested else []
        said = " ".join([chart.said, *unused, *images, seeds])
        graphs.append(Graph(chart.title, said, inline(figure, f"{name}-{chart.name.replace('_', '-')}")))
    return graphs


def _collapse(row: Row) -> list[str]:
    """That the row's posterior has collapsed, in whole or in part."""
    rates = [group.rate for group in row.latent_groups if group.rate is not None]
    collapsed = sum(rate < COLLAPSED_RATE for rate in rates)
    if rates and collapsed == len(rates):
        return [f"{row.label} has collapsed: its images use no latent ({sum(rates):.2g} nats in all)."]
    return [f"{row.label}: {collapsed} of {len(rates)} groups have collapsed."] if collapsed else []


def _trials(rows: Sequence[Row]) -> View:
    """Where each row's numbers come from, a line a seed."""
    cells = [
        {
            "Model": row.label,
            "Seed": str(record.seed),
            "Status": record.status,
            "Images seen": f"{record.images_seen:,}",
            "Configuration": record.config_hash,
            "Commit": record.environment.shown_commit,
            "Date": record.environment.date[:10],
        }
        for row in rows
        for record in row.records
    ]
    return view(Table("Trials", pd.DataFrame(cells), []), rows)


def _environment(rows: Sequence[Row]) -> dict[str, str]:
    """The fields of the records' environments, but for those of single trials; several values where they differ."""
    found = [dataclasses.asdict(record.environment) for row in rows for record in row.records]
    shown = [name for name in found[0] if name not in OF_TRIALS]
    return {name.replace("_", " "): join_words(str(one[name] or "none") for one in found) for name in shown}


def _published(values: pd.DataFrame | None) -> View | None:
    """The published values on the section's data."""
    if values is None:
        return None
    cells, references = published.block(values)
    return view(Table(published.TITLE, cells, references), [])
