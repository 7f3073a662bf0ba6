"""Values that others published, as a block of their own: never in one table with measured rows."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from benchmarks.base.errors import UserError
from benchmarks.report import layout

COLUMNS = ["model", "data", "metric", "value", "source", "status", "note"]
MARKS = {"uncertain": " (?)", "secondary": " (secondary)"}
TITLE = "Published values"
PREFACE = (
    "Values printed by others, under their own protocols (data version, binarisation, augmentation, bound, extractor). "
    "Not measured here and not comparable with the rows above without reading the notes. "
    "(secondary): taken from a transcription, not from the paper itself; (?): uncertain."
)


def read(path: Path) -> pd.DataFrame:
    """The published values in the CSV file `path`, all as text.

    Raises:
        UserError: the file cannot be read or lacks columns.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"published values: expected a CSV file at {path}, got: {error}") from error
    frame = frame.rename(columns={"dataset": "data"})
    lacking = [name for name in COLUMNS if name not in frame.columns]
    if lacking:
        raise UserError(f"published values: expected the columns {', '.join(COLUMNS)} in {path}, missing: {lacking}")
    return frame.filter(items=COLUMNS)


def for_data(frame: pd.DataFrame, data: str) -> pd.DataFrame:
    """The rows on data of the same family as `data`: `mnist-5k` and `MNIST dynamic` both begin with "mnist"."""
    wanted = _plain(data)
    families = [_plain(name.split()[0]) if name.strip() else "?" for name in frame["data"]]
    return frame.take([i for i, family in enumerate(families) if wanted.startswith(family)])


def beside(frame: pd.DataFrame | None, data: str) -> pd.DataFrame | None:
    """The rows that stand beside measurements on `data`, None where there are none."""
    found = None if frame is None else for_data(frame, data)
    return None if found is None or found.empty else found


def block(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows as a table with marked values and numbered references, and the texts of the references."""
    references: dict[str, int] = {}
    cells = []
    for row in frame.to_dict("records"):
        text = "; ".join(filter(None, (row["source"], row["note"])))
        index = references.setdefault(text, len(references) + 1)
        value = f"{row['value']}{MARKS.get(row['status'], '')}"
        cells.append(
            {"Model": row["model"], "Data": row["data"], "Metric": row["metric"], "Value": value, "Ref.": index}
        )
    table = pd.DataFrame(cells, columns=["Model", "Data", "Metric", "Value", "Ref."]).astype(str)
    return table, [f"[{index}] {text}" for text, index in references.items()]


def markdown(frame: pd.DataFrame) -> str:
    """The block as markdown."""
    table, references = block(frame)
    lines = "\n".join(layout.wrapped(text, "- ") for text in references)
    parts = [
        f"### {TITLE}",
        layout.wrapped(PREFACE),
        layout.markdown(table, left=("Model", "Data", "Metric", "Value")),
        lines,
    ]
    return "\n\n".join(parts) + "\n"


def _plain(name: str) -> str:
    """Lower-case letters and digits of `name`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
