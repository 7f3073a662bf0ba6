"""Text of tables: numbers with a column's digits, markdown, stacks that fit a terminal, CSV."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

WIDTH = 160  # characters of a terminal line that tables and captions stay within
DASH = "-"
STRONG = re.compile(r"\*\*([-\d,.]+(?: ± [\d,.]+)?)\*\*")
MARKUP = re.compile(r"<(?=[A-Za-z/!?])|(?<=\])[(\[]")
"""Where a tag begins, or the target of a link."""
FORMULA = "=+-@"
"""What a cell begins with that spreadsheets evaluate."""
Style = Literal["aligned", "closed", "bare"]
"""How markdown looks as text: columns aligned; aligned, with a rule that touches the bars; not aligned."""


def decimals(values: Iterable[float], halves: Iterable[float] = (), digits: int = 4) -> int:
    """How many decimals a column prints, one number for all its rows.

    Enough for `digits` significant digits of the largest value, two of the smallest and one of the median spread,
    and never more than two beyond the first.
    """
    sizes = [abs(v) for v in values if v]
    if not sizes:
        return 2
    base = digits - 1 - _exponent(max(sizes))
    spreads = [h for h in halves if h > 0]
    wanted = max(base, 1 - _exponent(min(sizes)))
    if spreads:
        wanted = max(wanted, -_exponent(statistics.median_high(spreads)))
    return max(0, min(wanted, base + 2))


def number(value: float, places: int, half: float | None = None) -> str:
    """`value` with `places` decimals and thousands separators, with ± `half` where that is above 0."""
    text = f"{value:,.{places}f}"
    return f"{text} ± {half:,.{places}f}" if half else text


def stack(table: pd.DataFrame, width: int = WIDTH) -> list[pd.DataFrame]:
    """`table` cut into tables of at most `width` characters a line, each with the first column."""
    widths = [_width([name, *table.iloc[:, i]]) for i, name in enumerate(table.columns)]
    blocks: list[list[int]] = [[]]
    used = start = widths[0] + 4
    for i, needed in enumerate(widths[1:], start=1):
        if blocks[-1] and used + needed + 3 > width:
            blocks.append([])
            used = start
        blocks[-1].append(i)
        used += needed + 3
    return [table.iloc[:, [0, *block]] for block in blocks]


def markdown(table: pd.DataFrame, left: Iterable[str] | None = None, style: Style = "aligned") -> str:
    """`table`, whose cells are text, as a markdown table.

    Args:
        table: the cells; its column names are the headings.
        left: columns that are flush left (default: the first alone); the others are numbers, to the right.
        style: how it looks as text; markdown's readers see no difference.
    """
    names = list(table.columns)
    flush = set(names[:1] if left is None else left)
    columns = [(_width([name, *table.iloc[:, i]]), name in flush) for i, name in enumerate(names)]
    rule = [_rule(width, left, style) for width, left in columns]
    lines = [[escape(cell) for cell in cells] for cells in (names, *table.itertuples(index=False, name=None))]
    if style != "bare":
        lines = [[_fit(text, *column) for text, column in zip(line, columns, strict=True)] for line in lines]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{'|'.join(rule)}|", *body])


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A line a row, a column for every key that one has; whole numbers stay whole, nested values become JSON."""
    return pd.DataFrame([{key: _csv_cell(value) for key, value in row.items()} for row in rows], dtype=object)


def csv(table: pd.DataFrame) -> str:
    """`table` as CSV; what is missing is empty, and no text is a formula."""
    columns = {
        i: pd.Series([in_csv(value) for value in column], dtype=column.dtype)
        for i, (_, column) in enumerate(table.items())
    }
    headings = [in_csv(name) for name in table.columns]
    return pd.DataFrame(columns).to_csv(index=False, header=headings, lineterminator="\n")


def wrapped(text: str, bullet: str = "") -> str:
    """`text` broken to the table's width, lines after the first indented under `bullet`."""
    return textwrap.fill(
        in_markdown(text), WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False
    )


def join_words(words: Iterable[str]) -> str:
    """The words without repetition, in order, separated by commas."""
    return ", ".join(dict.fromkeys(words))


def strong(text: str) -> str:
    """`text`, a number with its spread, as the best of its column."""
    return f"**{text}**"


def unmarked(cell: str) -> str | None:
    """The number that `strong` marked; None where the cell is anything else, whatever it looks like."""
    found = STRONG.fullmatch(cell)
    return found[1] if found else None


def plain(text: object) -> str:
    """`text` on one line, without what a terminal, a page or an encoder takes for more than a character."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def in_markdown(text: object) -> str:
    """`text` as markdown shows it: no tags, links or emphasis of its own; what tables are made of is let pass."""
    line = MARKUP.sub(r"\\\g<0>", plain(text))
    return line if unmarked(line) else line.replace("**", r"\*\*")


def in_csv(value: Any) -> Any:
    """`value`, text behind an apostrophe where a spreadsheet would take it for a formula."""
    if not isinstance(value, str):
        return value
    line = plain(value)
    return f"'{line}" if line[:1] in FORMULA and len(line) > 1 else line


def escape(cell: object) -> str:
    """`cell` as text of a markdown table."""
    return in_markdown(cell).replace("|", "\\|")


def _csv_cell(value: Any) -> Any:
    """`value`, as JSON if it is nested."""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value


def _exponent(size: float) -> int:
    """The power of ten of the leading digit of `size`."""
    return math.floor(math.log10(size))


def _width(cells: Iterable[object]) -> int:
    """Characters of the widest text in a column, its heading included, at least three."""
    return max(3, *(len(escape(cell)) for cell in cells))


def _fit(text: str, width: int, left: bool) -> str:
    """`text` filled with spaces to `width`."""
    return text.ljust(width) if left else text.rjust(width)


def _rule(width: int, left: bool, style: Style) -> str:
    """What stands between two bars under the heading of a column of `width` characters; a colon: to the right."""
    end = "-" if left else ":"
    if style == "aligned":
        return f" {'-' * (width - 1)}{end} "
    if style == "closed":
        return f"-{'-' * width}{end}"
    return "---" if left else "---:"
