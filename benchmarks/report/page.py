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
from benchmarks.report import layout, published, tables
from benchmarks.report.pictures.saved import SavedImages, images_by_label
from benchmarks.report.tables import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } .published td, .published th { text-align: left; white-space: normal; }
ul { font-size: 13px; color: #444; } img { max-width: 100%; } p { max-width: 60rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure's title and the file a page shows."""

    title: str
    file: str


def build_report(
    out: Path,
    published_values: Path | None = None,
    show: Callable[[str], None] = lambda text: None,
    pages: bool = True,
) -> str:
    """The tables of the run in `out` as text for a terminal, after writing its report there.

    Writes table.md, table.csv, figures/, index.md and index.html; published values go to the pages only, in a block
    of their own. `show(text)` is called once the tables are written, before the figures are drawn; without
    `pages`, which take seconds, that is all.

    Raises:
        UserError: no record, a record that cannot be read, a bad file of published values, an unwritable folder.
    """
    trials = read_trials(out)
    parts = tables.sections(trials.values())
    images = [images_by_label(part.rows, trials) for part in parts]
    others = None if published_values is None else published.read(published_values)
    text = "\n".join(tables.markdown(part) for part in parts)
    try:
        write_text_atomically(out / "table.md", text)
        write_text_atomically(out / "table.csv", tables.csv(parts))
        gone = _shown(text, show)
        if pages:
            pictures = [draw(part, saved, out, _prefix(part, parts)) for part, saved in zip(parts, images, strict=True)]
            write_text_atomically(out / "index.md", _markdown_page(parts, pictures, others))
            write_text_atomically(out / "index.html", _html_page(parts, pictures, others))
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


def draw(part: Section, images: dict[str, SavedImages], out: Path, prefix: str = "") -> list[Picture]:
    """The figures of a section, written to `out`/figures: PNG all, SVG too for charts."""
    from benchmarks.report.pictures import charts, figures  # matplotlib: slow to import, and the tables need none

    refitted = figures.samples_prior_statistics(images) if images else None
    drawn: list[tuple[str, str, Figure | None, bool]] = [
        ("reconstructions", "Reconstructions", figures.reconstructions(images) if images else None, False),
        ("samples", "Samples", figures.samples(images) if images else None, False),
        ("samples_prior_statistics", "Samples with prior statistics", refitted, False),
        ("training", "Training curves", charts.training_curves(part.rows), True),
        ("rates", "KL per latent group", charts.rates_by_group(part.rows), True),
        ("rate_distortion", "Rate and distortion over beta", charts.rate_distortion(part.rows), True),
        ("quality_speed", "Quality against throughput", charts.quality_against_speed(part.rows), True),
    ]
    pictures = []
    for name, title, figure, is_chart in drawn:
        if figure is None:
            continue
        for kind in ("png", "svg") if is_chart else ("png",):
            figures.save(figure, out / "figures" / f"{prefix}{name}.{kind}")
        pictures.append(Picture(title, f"figures/{prefix}{name}.png"))
    return pictures


def _prefix(part: Section, parts: Sequence[Section]) -> str:
    """What tells the figures of several sections apart; nothing for a single one."""
    first = part.rows[0].records[0]
    return f"{as_component(f'{first.data}-{first.data_hash[:6]}')}-" if len(parts) > 1 else ""


def _markdown_page(parts: Sequence[Section], pictures: Sequence[list[Picture]], others: pd.DataFrame | None) -> str:
    """Tables, published values and figures of all sections as one markdown page."""
    blocks = []
    for part, shown in zip(parts, pictures, strict=True):
        blocks.append(tables.markdown(part))
        values = _values_beside(part, others)
        blocks += [published.markdown(values)] if values is not None else []
        blocks += [f"### {picture.title}\n\n![{picture.title}]({picture.file})\n" for picture in shown]
    return "\n".join(blocks)


def _html_page(parts: Sequence[Section], pictures: Sequence[list[Picture]], others: pd.DataFrame | None) -> str:
    """The same as one HTML page."""
    body: list[str] = []
    for part, shown in zip(parts, pictures, strict=True):
        body.append(f"<h1>{layout.in_html(part.title)}</h1>")
        body += [f"<p>{layout.in_html(text)}</p>" for text in part.caption]
        for table in part.tables:
            body += [f"<h2>{layout.in_html(table.title)}</h2>", _html_table(table.cells), _html_list(table.footnotes)]
        values = _values_beside(part, others)
        if values is not None:
            cells, references = published.block(values)
            body += [f"<h2>{published.TITLE}</h2>", f"<p>{layout.in_html(published.PREFACE)}</p>"]
            body += [_html_table(cells, "scroll published"), _html_list(references)]
        body += [f'<h2>{p.title}</h2><img src="{p.file}" alt="{p.title}">' for p in shown]
    title = layout.in_html(layout.join_words(part.title for part in parts))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _values_beside(part: Section, others: pd.DataFrame | None) -> pd.DataFrame | None:
    """The published values on the section's data, None where there are none."""
    values = None if others is None else published.for_data(others, part.rows[0].records[0].data)
    return values if values is not None and len(values) else None


def _html_table(cells: pd.DataFrame, kind: str = "scroll") -> str:
    """The table as HTML, bold cells marked so."""
    escaped = cells.map(_html_cell).rename(columns=layout.in_html)
    return f'<div class="{kind}">{escaped.to_html(index=False, border=0, escape=False)}</div>'


def _html_cell(cell: str) -> str:
    """The cell's text, bold where it is marked so."""
    number = layout.unmarked(cell)
    return layout.in_html(cell) if number is None else f"<b>{number}</b>"


def _html_list(lines: Sequence[str]) -> str:
    """The lines as a list."""
    return f"<ul>{''.join(f'<li>{layout.in_html(line)}</li>' for line in lines)}</ul>" if lines else ""
