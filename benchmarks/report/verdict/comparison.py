"""All comparisons of one call, as text for a terminal, markdown, JSON or LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.report import layout
from benchmarks.report.rows import Row
from benchmarks.report.verdict import contenders, differences, words
from benchmarks.report.verdict.conditions import Condition
from benchmarks.report.verdict.contenders import Commits, Pair
from benchmarks.report.verdict.differences import FACTS, Difference

LEFT = ("Metric", "Verdict")
SIGNS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "<": "$<$", r"(?<![\w-])-(?=\d)": "$-$"}
"""What LaTeX has commands for: signs and minus signs, as patterns."""
SMALLEST_P = 0.001
"""p-values below it are shown as such."""
CORRECTION = (
    "p: of no difference, two-sided, corrected for the {count} differences judged here (Holm); better: below 0.05. "
    "Intervals are of 95 % each."
)


@dataclass(frozen=True)
class Comparison:
    """Two rows, what differs between them and what must be known before their numbers are read."""

    pair: Pair
    found: list[Difference]
    warnings: list[str]

    @property
    def verdict(self) -> str:
        """The comparison in one sentence."""
        return words.verdict(self.pair, self.found)

    @property
    def title(self) -> str:
        """Which rows on which data."""
        base, other = self.pair
        record = base.row.records[0]
        return f"{other.label} - {base.label} ({record.suite}: {record.data})"

    def table(self) -> pd.DataFrame:
        """The differences as text, a line for every metric that both rows have a value of."""
        base, other = (one.label for one in self.pair)
        names = ["Metric", base, other, "Difference", "95 % interval", "p", "Verdict"]
        both = [d for d in self.found if d.change is not None]
        return pd.DataFrame([_cells(d, base, other) for d in both], columns=pd.Index(names))

    def notes(self) -> list[str]:
        """Why values are missing or not judged, with their metrics."""
        return _gathered((self._note(one), one) for one in self.found)

    def bases(self) -> list[str]:
        """What the intervals rest on, with their metrics."""
        return [f"basis of the interval: {said}" for said in _gathered((one.basis, one) for one in self.found)]

    def _note(self, one: Difference) -> str:
        """The note of a metric, which a missing value always has."""
        if one.note or one.change is not None:
            return one.note
        values = zip(self.pair, (one.a, one.b), strict=True)
        return f"no value of {layout.join_words(side.label for side, value in values if value is None)}"


def _gathered(said: Iterable[tuple[str, Difference]]) -> list[str]:
    """What is said of metrics, each once, with the names of the metrics it is said of."""
    places: dict[str, list[str]] = {}
    for text, one in said:
        if text:
            places.setdefault(text, []).append(words.name_of(one))
    return [f"{text} ({layout.join_words(names)})" for text, names in places.items()]


def compare(words_: Sequence[str], out: Path) -> list[Comparison]:
    """The comparisons of what the words name: the first with every other, or runs row by row.

    Raises:
        UserError: a word that names nothing, nothing to compare, rows on different data.
    """
    with Commits() as workplace:
        pairs = contenders.pairs(words_, out, workplace)
        found = differences.corrected([differences.differences(pair) for pair in pairs])
    return [
        Comparison(pair, one, differences.warnings(pair[0].row, pair[1].row))
        for pair, one in zip(pairs, found, strict=True)
    ]


def named_rows(comparisons: Sequence[Comparison]) -> dict[str, Row]:
    """The rows that were compared, by what conditions call them."""
    return {name: one.row for found in comparisons for one in found.pair for name in one.names}


def conditions(texts: Sequence[str], comparisons: Sequence[Comparison]) -> dict[str, bool]:
    """Whether each condition holds.

    Raises:
        UserError: no condition, an unknown name, a metric without a value.
    """
    rows = named_rows(comparisons)
    return {text: Condition(text, rows).holds() for text in texts}


def text(comparisons: Sequence[Comparison]) -> str:
    """For a terminal: what forbids a comparison, the verdict, the table, its notes."""
    return _all(comparisons, wide=False)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """As `text`, without breaks of lines, to be pasted into a page."""
    return _all(comparisons, wide=True)


def latex(comparisons: Sequence[Comparison]) -> str:
    """A table of each comparison with the rules of booktabs, the verdict as its caption."""
    return "\n".join(_latex(one) for one in comparisons)


def as_json(comparisons: Sequence[Comparison], held: dict[str, bool]) -> str:
    """All of it for programs."""
    found = {
        "comparisons": [_described(one) for one in comparisons],
        "conditions": [{"condition": text, "holds": holds} for text, holds in held.items()],
    }
    return json.dumps(found, indent=1)


def _all(comparisons: Sequence[Comparison], wide: bool) -> str:
    """The verdicts of several comparisons together, then each of them, then what holds of all."""
    verdicts = [_line(one.verdict, wide, "- ") for one in comparisons] if len(comparisons) > 1 else []
    count = sum(d.judged for one in comparisons for d in one.found)
    parts = ["\n".join(verdicts), *(_blocks(one, wide) for one in comparisons)]
    parts += [_line(CORRECTION.format(count=count), wide)] if count else []
    return "\n\n".join(part for part in parts if part)


def _line(said: str, wide: bool, bullet: str = "") -> str:
    """A paragraph or, with a bullet, a line of a list; broken to the terminal's width unless `wide`."""
    return f"{bullet}{layout.in_markdown(said)}" if wide else layout.wrapped(said, bullet)


def _blocks(one: Comparison, wide: bool) -> str:
    """Title, warnings, verdict, table and notes."""
    tables = [one.table()] if wide else layout.stack(one.table())
    parts = [
        layout.in_markdown(f"## {one.title}"),
        "\n".join(_line(warning, wide, "- ") for warning in one.warnings),
        _line(one.verdict, wide),
        *(layout.markdown(part, left=LEFT) for part in tables),
        "\n".join(_line(note, wide, "- ") for note in (*one.bases(), *one.notes())),
    ]
    return "\n\n".join(part for part in parts if part)


def _latex(one: Comparison) -> str:
    """The comparison as a LaTeX table."""
    cells = one.table()
    columns = "".join("l" if name in LEFT else "r" for name in cells.columns)
    caption = _escaped(" ".join([*one.warnings, one.verdict, "; ".join(one.bases())]).strip())
    made = cells.to_latex(index=False, escape=True, column_format=columns, caption=caption)
    for sign, command in SIGNS.items():
        made = re.sub(sign, lambda _, command=command: command, made)
    return made


def _escaped(line: str) -> str:
    """A line of text as LaTeX shows it."""
    made = pd.DataFrame([[line]]).to_latex(index=False, header=False, escape=True)
    return next(line for line in made.splitlines() if line.endswith(r" \\")).removesuffix(r" \\")


def _described(one: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    base, other = one.pair
    return {
        "base": base.label,
        "other": other.label,
        "names": [list(base.names), list(other.names)],
        "data": base.row.records[0].data,
        "verdict": one.verdict,
        "warnings": one.warnings,
        "metrics": [_plain(d) for d in one.found],
    }


def _plain(d: Difference) -> dict[str, Any]:
    """A difference as plain data."""
    quantity = d.column.quantity
    low, high = d.interval or (None, None)
    return {
        "metric": quantity.metric,
        "variant": quantity.variant,
        "better_is": d.column.spec.better,
        "base": d.a,
        "other": d.b,
        "difference": d.change,
        "low": low,
        "high": high,
        "p": d.p,
        "basis": d.basis,
        "judged": d.judged,
        "better": None if d.better is None else ("base", "other")[d.better],
        "note": d.note,
    }


def _cells(d: Difference, base: str, other: str) -> list[str]:
    """The line of one metric."""
    spec = d.column.spec
    values = [d.a, d.b, d.change, *(d.interval or (None, None))]
    scaled = [None if value is None else value / spec.scale for value in values]
    places = layout.decimals([v for v in scaled[:3] if v is not None], (), spec.digits)
    places = places if spec.places is None else spec.places
    a, b, change, low, high = (layout.DASH if v is None else layout.number(v, places) for v in scaled)
    interval = layout.DASH if d.interval is None else f"{low} to {high}"
    return [d.column.heading, a, b, change, interval, _p(d), _verdict(d, base, other)]


def _p(d: Difference) -> str:
    """The p-value of a metric that is judged."""
    if not d.judged or d.p is None:
        return layout.DASH
    return f"< {SMALLEST_P}" if d.p < SMALLEST_P else f"{d.p:.3f}"


def _verdict(d: Difference, base: str, other: str) -> str:
    """Which row is better, where chance does not explain it."""
    if d.change is None or d.column.spec.metric in FACTS:
        return ""
    if d.judged:
        return "not beyond chance" if d.better is None else f"{(base, other)[d.better]} better"
    if d.interval is None:
        return "not judged" if d.note else ""
    return "ranges apart" if d.interval.low > 0 or d.interval.high < 0 else "ranges overlap"
