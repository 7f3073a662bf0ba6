"""The growth suite's results as text: curves with their exponents and verdicts, and every point. Imports no torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report.layout import DASH, csv, frame, in_markdown, markdown, wrapped
from benchmarks.report.speed import significant
from benchmarks.speed.growth import fit
from benchmarks.speed.growth.plan import Point
from benchmarks.speed.spread import Spread

METHOD = (
    "Every point is a process of its own. Seconds are those of a call over its images (the batch, or n), by the clock: "
    "medians with the interquartile range in brackets; the calls before them that warm up are not counted.",
    "Arithmetic: multiply-accumulates of matrix products and convolutions for an image, counted on the meta device; of "
    "a training step 3 times those of a forward pass; of a distance by formula (benchmarks/speed/growth/verbs.py). "
    "Element-wise work, memory and the start of a call are not in it.",
    "Exponents are slopes of least-squares lines on log-log axes; residual: how far points lie from that line, as a "
    f"root mean square. Time grows as its arithmetic if its exponent is within {fit.TOLERANCE} of it, and no step from "
    f"one value to the next is steeper by more than {fit.STEP_TOLERANCE} with the quartiles nearest to each other.",
    "Memory: peak of the calls above what was held before the first.",
)


@dataclass(frozen=True)
class GrowthRow:
    """A point with what was measured of it: seconds and multiply-accumulates an image, MiB; or why nothing was.

    `other_cpu` is the share of the machine's cores that other processes used meanwhile.
    """

    point: Point
    seconds: Spread | None = None
    macs: float | None = None
    memory: float | None = None
    other_cpu: float | None = None
    note: str = ""

    def flat(self) -> dict[str, Any]:
        """The row as plain values."""
        names = (field.name for field in dataclasses.fields(Spread))
        taken = dataclasses.asdict(self.seconds) if self.seconds else dict.fromkeys(names)
        seconds = {"n" if name == "n" else f"seconds_{name}": value for name, value in taken.items()}
        point = dataclasses.asdict(self.point)
        images = point.pop("n")  # of a metric; n is the number of calls that were timed
        rest = {"macs": self.macs, "memory_mib": self.memory, "other_cpu": self.other_cpu, "note": self.note}
        return {**point, "images": images, **seconds, **rest}


@dataclass(frozen=True)
class Grown:
    """A curve that was measured at two points or more: one thing of one target over one axis."""

    rows: Sequence[GrowthRow]

    @property
    def point(self) -> Point:
        """Its first point."""
        return self.rows[0].point

    @property
    def x(self) -> list[float]:
        """Values of the axis."""
        return [row.point.value for row in self.rows]

    @property
    def seconds(self) -> list[Spread]:
        """Of an image, with quartiles."""
        return [row.seconds for row in self.rows if row.seconds is not None]

    @property
    def macs(self) -> list[float]:
        """Of an image."""
        return [row.macs for row in self.rows if row.macs is not None]

    @property
    def time(self) -> fit.Fit:
        """The power by which time grows."""
        return fit.fit(self.x, [one.median for one in self.seconds])

    @property
    def arithmetic(self) -> fit.Fit:
        """The power by which the multiply-accumulates grow."""
        return fit.fit(self.x, self.macs)

    @property
    def verdict(self) -> str:
        """How the one grows beside the other."""
        return fit.verdict(self.x, self.seconds, self.macs)

    @property
    def at_best_rate(self) -> list[float]:
        """Seconds that the arithmetic would take at the best rate which the curve reaches."""
        best = min(one.median / macs for one, macs in zip(self.seconds, self.macs, strict=True))
        return [best * macs for macs in self.macs]

    def flat(self) -> dict[str, Any]:
        """What is said of the curve, as plain values."""
        return {
            **{name: getattr(self.point, name) for name in ("curve", "axis", "what", "target", "row")},
            "values": self.x,
            "exponent": self.time.exponent,
            "residual": self.time.residual,
            "exponent_of_arithmetic": self.arithmetic.exponent,
            "residual_of_arithmetic": self.arithmetic.residual,
            "verdict": self.verdict,
        }


@dataclass
class GrowthTable:
    """The suite's results: the machine and a row for every point, in the order of the curves."""

    title: str
    environment: dict[str, Any]
    rows: list[GrowthRow] = field(default_factory=list)

    @property
    def curves(self) -> list[Grown]:
        """The curves of which two points or more were measured."""
        measured = [row for row in self.rows if row.seconds is not None]
        groups = itertools.groupby(measured, key=lambda row: _curve(row.point))
        grown = [Grown(list(rows)) for _, rows in groups]
        return [one for one in grown if len(one.rows) > 1]


def _curve(point: Point) -> tuple[str, str, str, str]:
    """What the points of one curve share."""
    return point.curve, point.what, point.target, point.row


def growth_json(table: GrowthTable) -> str:
    """The table as JSON."""
    whole = {"title": table.title, "environment": table.environment}
    rows = [dataclasses.asdict(row) for row in table.rows]
    curves = [one.flat() for one in table.curves]
    return json.dumps({"schema_version": 1, **whole, "curves": curves, "rows": rows}, indent=1)


def growth_csv(table: GrowthTable) -> str:
    """The points as CSV."""
    return csv(frame([row.flat() for row in table.rows]))


def growth_markdown(table: GrowthTable, figure: str | None = None) -> str:
    """The whole report: curves with verdicts, the figure of that name, every point, and how it was measured."""
    parts = [f"# {in_markdown(table.title)}", _conditions(table)]
    curves = [_curve_cells(one) for one in table.curves]
    parts += [markdown(frame(curves), ("curve", "target", "what", "verdict"))] if curves else []
    notes = [wrapped(f"{row.point.name}: {row.note}", "- ") for row in table.rows if row.note]
    parts += ["\n".join(notes)] if notes else []
    parts += [f"![seconds an image over what grows]({figure})"] if figure and curves else []
    parts += ["## Every point", markdown(frame([_point_cells(row) for row in table.rows]), ("curve", "what"))]
    return "\n\n".join([*parts, "## How it was measured", *map(wrapped, METHOD)])


def _conditions(table: GrowthTable) -> str:
    """Machine and software."""
    found = table.environment
    commit = (found.get("commit") or "unknown")[:10] + (" with changes" if found.get("dirty") else "")
    return wrapped(
        f"`{found['command']}` on {found['device_name']}, {found['cores']} cores, threads {found['threads']}; "
        f"operations: {found['operations']}; torch {found['torch']}, commit {commit}, {found['date']}."
    )


def _curve_cells(one: Grown) -> dict[str, str]:
    """A line of the table of curves."""
    first, last = one.rows[0], one.rows[-1]
    return {
        "curve": one.point.curve,
        "target": f"{one.point.target}/{one.point.row}" if one.point.row else one.point.target,
        "what": one.point.what,
        "values": f"{first.point.value:,} to {last.point.value:,}",
        "ms an image": f"{_milliseconds(first)} to {_milliseconds(last)}",
        "exponent of time": fit.number(one.time.exponent),
        "residual": f"{one.time.residual:.0%}",
        "of arithmetic": fit.number(one.arithmetic.exponent),
        "memory (MiB)": f"{_memory(first)} to {_memory(last)}",
        "verdict": one.verdict,
    }


def _point_cells(row: GrowthRow) -> dict[str, str]:
    """A line of the table of points."""
    taken = row.seconds
    rate = 2 * row.macs / taken.median / 1e9 if taken and row.macs else None
    return {
        "curve": row.point.curve,
        "what": row.point.what,
        "value": f"{row.point.value:,}",
        "ms an image": _milliseconds(row)
        + (f" [{significant(taken.low * 1e3)}, {significant(taken.high * 1e3)}]" if taken and taken.n > 1 else ""),
        "n": str(taken.n) if taken else DASH,
        "MMACs an image": DASH if row.macs is None else significant(row.macs / 1e6),
        "GFLOP/s": DASH if rate is None else significant(rate),
        "memory (MiB)": _memory(row),
        "others on the CPU": DASH if row.other_cpu is None else f"{row.other_cpu:.0%}",
    }


def _milliseconds(row: GrowthRow) -> str:
    """Of an image, the median."""
    return significant(row.seconds.median * 1e3) if row.seconds else DASH


def _memory(row: GrowthRow) -> str:
    """MiB, whole."""
    return DASH if row.memory is None else f"{row.memory:,.0f}"
