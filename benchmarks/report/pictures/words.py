"""Text in figures: matplotlib reads formulas between dollars, and hides what begins with an underscore."""

from __future__ import annotations

from benchmarks.report.layout import plain


def drawn_text(text: str) -> str:
    """`text` as matplotlib draws it character by character."""
    line = plain(text).replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{line}" if line.startswith("_") else line
