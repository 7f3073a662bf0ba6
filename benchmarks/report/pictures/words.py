"""Text in figures: matplotlib reads formulas between dollars, and hides what begins with an underscore."""

from __future__ import annotations

import re

from benchmarks.report.layout import plain

SERIES = re.compile(r"_(\d+) (.*)", re.DOTALL)


def drawn_text(text: str) -> str:
    """`text` as matplotlib draws it character by character."""
    line = plain(text).replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{line}" if line.startswith("_") else line


def read_text(drawn: str) -> str:
    """The text that `drawn_text` made ready, on one line."""
    return plain(drawn.replace(r"\$", "$").replace("\N{ZERO WIDTH SPACE}", "")).strip()


def series_label(index: int, text: str) -> str:
    """A label that no legend shows: of which entry of the legend a shape is, and what a page says of it."""
    return f"_{index} {plain(text)}"


def series_of(label: str) -> tuple[int, str] | None:
    """What `series_label` was given; None for any other label."""
    found = SERIES.fullmatch(label)
    return (int(found[1]), found[2]) if found else None
