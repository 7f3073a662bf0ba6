"""The report of a run: tables, figures and pages, rebuilt from its records and saved images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.base.checked.names import as_component
from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from benchmarks.records.record import RunRecord, load_trials
from benchmarks.report import published, tables
from benchmarks.report.pictures.gallery import galleries_by_label
from benchmarks.report.pictures.saved import SavedImages, images_by_label
from benchmarks.report.profiles import kernels_of, shares_by_label
from benchmarks.report.tables import Section
from benchmarks.report.web import document
from benchmarks.report.web.document import Beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.report.pictures.charts import Chart


@dataclass(frozen=True)
class Drawn:
    """The figures of a section: file below the run's folder by title, and its charts."""

    files: dict[str, str]
    charts: Sequence[tuple[Chart, Figure]]


def build_report(
    out: Path,
    published_values: Path | None = None,
    show: Callable[[str], None] = lambda text: None,
    pages: bool = True,
    kernels: Path | None = None,
) -> str:
    """The tables of the run in `out` as text for a terminal, after writing its report there.

    Writes table.md, table.csv, figures/, index.md and index.html, which holds all of its pictures itself; published
    values go to the pages only, in a block of their own. `show(text)` is called once the tables are written, before
    the figures are drawn; without `pages`, which take seconds, that is all. `kernels` is a file of `profile --json`,
    for a run that has none in its folder.

    Raises:
        UserError: no record, a record or another file that cannot be read, an unwritable folder.
    """
    trials = read_trials(out)
    parts = tables.sections(trials.values())
    images = [images_by_label(part.drawn, trials) for part in parts]
    galleries = [galleries_by_label(part.drawn, trials) for part in parts]
    shares = [shares_by_label(out, part.rows, trials) for part in parts]
    compiled = kernels_of(out, kernels)
    others = None if published_values is None else published.read(published_values)
    text = "\n".join(tables.markdown(part) for part in parts)
    try:
        write_text_atomically(out / "table.md", text)
        write_text_atomically(out / "table.csv", tables.csv(parts))
        gone = _shown(text, show)
        if pages:
            drawn = [draw(part, saved, out, _prefix(part, parts)) for part, saved in zip(parts, images, strict=True)]
            write_text_atomically(out / "index.md", _markdown_page(parts, drawn, others))
            charts = [own.charts for own in drawn]
            shown = [Beside(*found) for found in zip(images, galleries, shares, charts, strict=True)]
            write_text_atomically(out / "index.html", document.page(parts, shown, others, compiled))
    except OSError as error:
        raise UserError(f"report: cannot write below {out}: {error.strerror or error}") from error
    if gone is not None:
        raise gone
    return text


def _shown(text: str, show: Callable[[str], None]) -> OSError | None:
    """Show the tables; the error of a reader that has gone away, which does not keep pages from being written."""
    try:
        show(text)
    except OSError as error:
        return error
    return None


def read_trials(out: Path) -> dict[Path, RunRecord]:
    """The records in `out` by trial folder.

    Raises:
        UserError: none is there, or one cannot be read.
    """
    try:
        trials = load_trials(out)
    except (ValueError, OSError) as error:
        raise UserError(f"{error}; remove or repair that file") from error
    if not trials:
        raise UserError(f"{out}: expected the folder of a run with records, found none; run a suite first")
    return trials


def draw(part: Section, images: dict[str, SavedImages], out: Path, prefix: str = "") -> Drawn:
    """The figures of a section, written to `out`/figures: PNG all, SVG too for charts."""
    from benchmarks.report.pictures import charts, figures  # matplotlib: slow to import, and the tables need none

    grids = {
        ("reconstructions", "Reconstructions"): figures.reconstructions(images) if images else None,
        ("samples", "Samples"): figures.samples(images) if images else None,
        ("samples_prior_statistics", "Samples with prior statistics"): (
            figures.samples_prior_statistics(images) if images else None
        ),
    }
    found = [(chart, figure) for chart in charts.CHARTS if (figure := chart.draw(part.drawn)) is not None]
    shown = [(name, title, figure, ("png",)) for (name, title), figure in grids.items() if figure is not None]
    shown += [(chart.name, chart.title, figure, ("png", "svg")) for chart, figure in found]
    for name, _, figure, kinds in shown:
        for kind in kinds:
            figures.save(figure, out / "figures" / f"{prefix}{name}.{kind}")
    files = {title: f"figures/{prefix}{name}.png" for name, title, *_ in shown}
    return Drawn(files, found)


def _prefix(part: Section, parts: Sequence[Section]) -> str:
    """What tells the figures of several sections apart; nothing for a single one."""
    first = part.rows[0].records[0]
    return f"{as_component(f'{first.data}-{first.data_hash[:6]}')}-" if len(parts) > 1 else ""


def _markdown_page(parts: Sequence[Section], drawn: Sequence[Drawn], others: pd.DataFrame | None) -> str:
    """Tables, published values and figures of all sections as one markdown page."""
    blocks = []
    for part, own in zip(parts, drawn, strict=True):
        blocks.append(tables.markdown(part))
        values = published.beside(others, part.rows[0].records[0].data)
        blocks += [published.markdown(values)] if values is not None else []
        blocks += [f"### {title}\n\n![{title}]({file})\n" for title, file in own.files.items()]
    return "\n".join(blocks)
