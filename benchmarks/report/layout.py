"""Text of tables: numbers with a column's digits, aligned markdown, stacks that fit a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd

WIDTH = 160  # characters of a terminal line that tables and captions stay within
DASH = "-"


def decimals(values: Iterable[float], halves: Iterable[float] = (), digits: int = 4) -> int:
    """How many decimals a column prints, one number for all its rows.

    Enough for `digits` significant digits of the largest value, two of the smallest and one of the median spread,
    and never more than two beyond the first.
    """
    sizes = [abs(v) for v in values if v]
    if not sizes:
        return 2
    base = digits - 1 - _exponent(max(sizes))
    spreads = sorted(h for h in halves if h > 0)
    wanted = max(base, 1 - _exponent(min(sizes)))
    if spreads:
        wanted = max(wanted, -_exponent(spreads[len(spreads) // 2]))
    return max(0, min(wanted, base + 2))


def number(value: float, places: int, half: float | None = None) -> str:
    """`value` with `places` decimals and thousands separators, with ± `half` where that is above 0."""
    text = f"{value:,.{places}f}"
    return f"{text} ± {half:,.{places}f}" if half else text


def stack(table: pd.DataFrame, width: int = WIDTH) -> list[pd.DataFrame]:
    """`table` cut into tables of at most `width` characters a line, each with the first column."""
    first, *rest = list(table.columns)
    blocks: list[list[str]] = [[]]
    used = start = _column_width(table, first) + 4
    for name in rest:
        needed = _column_width(table, name) + 3
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = start
        blocks[-1].append(name)
        used += needed
    return [table.filter(items=[first, *block]) for block in blocks]


def markdown(table: pd.DataFrame, left: Sequence[str] = ()) -> str:
    """`table`, whose cells are text, as an aligned markdown table; numbers to the right, `left` and the first not."""
    names = list(table.columns)
    widths = {name: _column_width(table, name) for name in names}
    flush = {names[0], *left}
    rule = [("-" * widths[name]) if name in flush else "-" * (widths[name] - 1) + ":" for name in names]
    lines = [_line([_fit(name, widths[name], name in flush) for name in names]), _line(rule)]
    for cells in table.itertuples(index=False):
        texts = dict(zip(names, map(escape, cells), strict=True))
        lines.append(_line([_fit(texts[name], widths[name], name in flush) for name in names]))
    return "\n".join(lines)


def wrapped(text: str, bullet: str = "") -> str:
    """`text` broken to the table's width, lines after the first indented under `bullet`."""
    return textwrap.fill(
        text, WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False
    )


def join_words(words: Iterable[str]) -> str:
    """The words without repetition, in order, separated by commas."""
    return ", ".join(dict.fromkeys(words))


def escape(cell: object) -> str:
    """`cell` as text that does not break a markdown table."""
    return str(cell).replace("|", "\\|").replace("\n", " ")


def _exponent(size: float) -> int:
    """The power of ten of the leading digit of `size`."""
    return math.floor(math.log10(size))


def _column_width(table: pd.DataFrame, name: str) -> int:
    """Characters of the widest text in the column, its heading included, at least three."""
    return max(3, len(name), *(len(escape(cell)) for cell in table[name]))


def _fit(text: str, width: int, left: bool) -> str:
    """`text` filled with spaces to `width`."""
    return text.ljust(width) if left else text.rjust(width)


def _line(cells: list[str]) -> str:
    """One line of a markdown table."""
    return f"| {' | '.join(cells)} |"
