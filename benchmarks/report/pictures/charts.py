"""Charts: training curves, rate of each latent group, quality against speed, rate against distortion.

A row has one look in the first three; in the last, a line is a model over beta.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.records.catalogue import COLLAPSED_RATE
from benchmarks.records.record import Curve, Measurement
from benchmarks.report import layout
from benchmarks.report.columns import QUALITY, Column, columns_of
from benchmarks.report.equal_rate import families
from benchmarks.report.pictures.figures import new_figure
from benchmarks.report.pictures.words import drawn_text, series_label
from benchmarks.report.rows import Row, half_width, under_one_ruler

# Okabe and Ito's palette (2008), distinguishable with every common kind of colour blindness; yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LineStyle = Literal["-", "--", ":", "-."]
LINES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")  # the next one for every turn through the colours
LEGEND_COLUMNS = 5
GRID_STYLE = {"color": "#DDDDDD", "linewidth": 0.6}
FRONT = {"color": "#888888", "linewidth": 1.0, "linestyle": ":", "drawstyle": "steps-pre", "zorder": 0.5}
EQUAL_ELBO = {"color": "#BBBBBB", "linewidth": 0.7, "linestyle": "--", "zorder": 0.5}
WHITE = {"facecolor": "white", "lw": 0, "pad": 0.5}
EQUAL_TEXT = {
    "color": "#888888",
    "fontsize": 7,
    "va": "center",
    "bbox": WHITE,
    "zorder": 0.6,
}  # below the models' lines
SKIPPED_SHARE = 0.05  # of the training, at its start, that does not set the range of a curve's axis
CROWDED = 8  # latent groups beyond which the texts of bars are turned
PAIRS = (
    ("mse", "reconstruct_throughput"),
    ("elbo", "train_throughput"),
    ("sample_fid", "sample_throughput"),
)


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of one row."""

    colour: str
    marker: str
    line: LineStyle


@dataclass(frozen=True)
class RowPoint:
    """One row's rate and quality, with its place in the legend."""

    series: int
    label: str
    speed: Measurement
    quality: Measurement

    def beats(self, other: RowPoint, better: Literal["high", "low"] | None) -> bool:
        """Whether it is at least as fast and as good, and more of one; intervals are not looked at."""
        sign = -1 if better == "low" else 1
        mine = (self.speed.value or 0.0, sign * (self.quality.value or 0.0))
        its = (other.speed.value or 0.0, sign * (other.quality.value or 0.0))
        return mine != its and mine[0] >= its[0] and mine[1] >= its[1]


@dataclass(frozen=True)
class Ruler:
    """What curves must share to share a panel."""

    likelihood: str
    has_latents: bool


@dataclass(frozen=True)
class TradePoint:
    """Rate and distortion of one row, trained under `beta`."""

    beta: float
    rate: Measurement
    distortion: Measurement


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """The look of each row, by label; different for up to 28 rows."""
    return {row.label: _look(index) for index, row in enumerate(rows)}


def _look(index: int) -> Look:
    """The look of the row at that place."""
    turn, colour = divmod(index, len(COLOURS))
    return Look(COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)], LINES[turn % len(LINES)])


def training_curves(rows: Sequence[Row]) -> Figure | None:
    """A panel for every recorded curve, a line a seed, against training images seen; None without curves.

    Rows under different likelihoods, or without an ELBO, do not share a panel.
    """
    curves = [c for row in rows for r in row.records for c in r.curves if len(c.images) > 1]
    if not curves:
        return None
    kinds = list(dict.fromkeys((c.name, c.unit) for c in curves))
    rulers = list(dict.fromkeys(_ruler(row) for row in rows))
    figure = new_figure(5.2 * len(kinds), 0.3 + 3.0 * len(rulers))
    axes = figure.subplots(len(rulers), len(kinds), squeeze=False)
    for line, ruler in zip(axes, rulers, strict=True):
        sharing = [row for row in rows if _ruler(row) == ruler]
        for axis, (name, unit) in zip(line, kinds, strict=True):
            _draw_curves(axis, sharing, name, unit, rows)
            _dress(axis, "Training images seen", drawn_text(f"{_curve_name(name, ruler)} ({unit})"))
            axis.set_title(drawn_text(f"Likelihood: {ruler.likelihood}") if len(rulers) > 1 else "", fontsize=9)
    _legend(figure, rows)
    return figure


def rates_by_group(rows: Sequence[Row]) -> Figure | None:
    """A panel of bars for each model with latents: nats of every group, coarse to fine; None without rates."""
    used = [row for row in rows if any(g.rate is not None for g in row.latent_groups)]
    if not used:
        return None
    spans = [len(row.latent_groups) + 0.5 for row in used]
    figure = new_figure(1.2 + sum(spans) * min(0.75, 14 / sum(spans)), 3.4)
    axes = figure.subplots(1, len(used), squeeze=False, sharey=True, width_ratios=spans)[0]
    for index, (axis, row) in enumerate(zip(axes, used, strict=True)):
        _draw_rates(axis, row, index, looks(rows)[row.label])
    axes[0].set_ylabel("KL(posterior, prior) (nats/image)", fontsize=9)
    figure.supxlabel("Resolution of the latent groups, coarse to fine", fontsize=9)
    return figure


def quality_against_speed(rows: Sequence[Row]) -> Figure | None:
    """A panel for each pair of quality and rate that was measured, rate on a log axis; None without any.

    Rows that no other beats in both are on the Pareto front, a line of steps.
    """
    rows = under_one_ruler(list(rows))
    columns = {c.spec.metric: c for c in columns_of(rows, QUALITY)}
    pairs = [(columns[q], speed) for q, speed in PAIRS if q in columns and _points(rows, columns[q], speed)]
    if not pairs:
        return None
    figure = new_figure(4.4 * len(pairs), 3.8)
    for axis, (column, speed) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        points = _points(rows, column, speed)
        front = pareto_front(points, column.spec.better)
        for point in points:
            marked = "; on the Pareto front" if point in front else ""
            said = f"{point.label}: {_said(point.quality)}, {_said(point.speed)}{marked}"
            _draw_point(axis, looks(rows)[point.label], point.speed, point.quality, series_label(point.series, said))
        axis.plot([p.speed.value for p in front], [p.quality.value for p in front], **FRONT)
        _log_axis(axis)
        verb = speed.removesuffix("_throughput")
        _dress(axis, f"{verb.capitalize()} (images/s, log scale) →", drawn_text(column.heading))
    _legend(figure, rows, markers=True)
    return figure


def pareto_front(points: Sequence[RowPoint], better: Literal["high", "low"] | None) -> list[RowPoint]:
    """The points that no other beats in both rate and quality, in the order of rate."""
    front = [point for point in points if not any(other.beats(point, better) for other in points)]
    return sorted(front, key=lambda point: point.speed.value or 0.0)


def rate_distortion(rows: Sequence[Row]) -> Figure | None:
    """Distortion against rate, a line a family over beta, with lines of equal ELBO; None without such a line.

    A family (`equal_rate.families`) has a line where at least two beta of it have both values.
    ELBO = -(rate + distortion), so that its lines fall with slope -1: the nearer to the origin, the better (Alemi et
    al. 2018).
    """
    lines = _trade_lines(under_one_ruler(list(rows)))
    if not lines:
        return None
    figure = new_figure(5.6, 4.4)
    axis = figure.subplots()
    for index, (name, points) in enumerate(lines.items()):
        _draw_trade(axis, name, points, index)
    _draw_equal_elbo(axis)
    _dress(axis, "Rate (nats/image)", "Distortion (nats/image)")
    handles, names = axis.get_legend_handles_labels()
    names = [f"{name} (numbers: beta)" for name in names]  # drawn text already
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(lines), 2), frameon=False, fontsize=9)
    return figure


def _trade_lines(rows: Sequence[Row]) -> dict[str, list[TradePoint]]:
    """The points of every family, in the order of beta."""
    lines = {family.name: [point for row in family.rows for point in _trade_point(row)] for family in families(rows)}
    return {name: points for name, points in lines.items() if len({p.beta for p in points}) > 1}


def _trade_point(row: Row) -> list[TradePoint]:
    """The row's point, if it has both values."""
    rate, distortion = row.first("rate"), row.first("distortion")
    if row.beta is None or not rate or not distortion or None in (rate.value, distortion.value):
        return []
    return [TradePoint(row.beta, rate, distortion)]


def _draw_trade(axis: Axes, name: str, points: Sequence[TradePoint], index: int) -> None:
    """One family's line with its intervals and the beta of every point."""
    look = _look(index)
    across, up = [p.rate.value or 0.0 for p in points], [p.distortion.value or 0.0 for p in points]
    axis.plot(across, up, color=look.colour, linewidth=1.4, label=drawn_text(name))
    for point, x, y in zip(points, across, up, strict=True):
        said = f"{name}, beta {point.beta:g}: rate {_said(point.rate)}, distortion {_said(point.distortion)}"
        _draw_point(axis, look, point.rate, point.distortion, series_label(index, said))
        axis.annotate(f"{point.beta:g}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8)


def _draw_equal_elbo(axis: Axes) -> None:
    """Grey lines rate + distortion = -ELBO through the drawn range, with the ELBO at their upper ends."""
    axis.margins(0.12)
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for total in MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]).tick_values(left + bottom, right + top):
        start, end = max(left, total - top), min(right, total - bottom)
        if start >= end:
            continue
        axis.plot([start, end], [total - start, total - end], **EQUAL_ELBO)
        axis.annotate(
            f"ELBO {0 - total:g}", (start, total - start), xytext=(6, -6), textcoords="offset points", **EQUAL_TEXT
        )
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def _ruler(row: Row) -> Ruler:
    """Under what the row was trained."""
    return Ruler(str(row.records[0].config.get("likelihood", "not stated")), bool(row.latent_groups))


def _curve_name(name: str, ruler: Ruler) -> str:
    """The curve's name for an axis; without latents there is no ELBO, only the distortion."""
    word = "ELBO" if ruler.has_latents else "-distortion"
    words = name.replace("_", " ")
    return (words[:1].upper() + words[1:]).replace("elbo", word)


def _draw_curves(axis: Axes, rows: Sequence[Row], name: str, unit: str, known: Sequence[Row]) -> None:
    """The curves of that name, `known` being the chart's rows; the steep start does not set the range of the axis."""
    tails: list[float] = []
    shown = looks(known)
    seeds = [(row, record) for row in rows for record in row.records]
    for row, record in seeds:
        for curve in (c for c in record.curves if (c.name, c.unit) == (name, unit)):
            images, values = _finite(curve)
            look = shown[row.label]
            end = f"; at the end {values[-1]:,.4g} {unit}" if len(values) else ""
            label = series_label(list(shown).index(row.label), f"{row.label}, seed {record.seed}{end}")
            axis.plot(images, values, color=look.colour, linestyle=look.line, linewidth=1.4, alpha=0.9, label=label)
            tails += list(values[images >= SKIPPED_SHARE * images.max()]) if len(images) else []
    if tails and min(tails) < max(tails):
        margin = 0.05 * (max(tails) - min(tails))
        axis.set_ylim(min(tails) - margin, max(tails) + margin)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Images and values of the curve's finite points; a value that was not finite is None in the record."""
    values = np.array([np.nan if v is None else v for v in curve.values], float)
    kept = np.isfinite(values)
    return np.array(curve.images, float)[kept], values[kept]


def _draw_rates(axis: Axes, row: Row, index: int, look: Look) -> None:
    """The bars of one model with their values; collapsed groups are named so."""
    groups = row.latent_groups
    rates = [group.rate or 0.0 for group in groups]
    bars = axis.bar(range(len(groups)), rates, color=look.colour, width=0.7)
    texts = [f"{rate:.3g}" if rate >= COLLAPSED_RATE else "collapsed" for rate in rates]
    crowded = len(groups) > CROWDED or "collapsed" in texts
    for place, (bar, group, rate) in enumerate(zip(bars, groups, rates, strict=True), start=1):
        state = "" if rate >= COLLAPSED_RATE else ", collapsed"
        said = f"group {place} of {len(groups)} ({group.height}×{group.width}): {rate:.3g} nats{state}"
        bar.set_label(series_label(index, said))
    axis.bar_label(bars, texts, fontsize=7, padding=2, rotation=90 if crowded else 0)
    ticks = [f"{g.height}×{g.width}" for g in groups]
    axis.set_xticks(range(len(groups)), ticks, fontsize=7, rotation=90 if len(groups) > CROWDED else 0)
    axis.set_xlim(-0.75, len(groups) - 0.25)
    axis.set_title(textwrap.fill(drawn_text(row.label), 12 + 4 * len(groups)), fontsize=9)
    axis.margins(y=0.15)
    _clean(axis)


def _points(rows: Sequence[Row], column: Column, speed: str) -> list[RowPoint]:
    """Every row that has both."""
    found = []
    for index, row in enumerate(rows):
        across, up = row.first(speed), row.get(column.quantity)
        if across is not None and up is not None and across.value is not None and up.value is not None:
            found.append(RowPoint(index, row.label, across, up))
    return found


def _said(measurement: Measurement) -> str:
    """The value with its spread and unit, in words for a page."""
    value, half = measurement.value or 0.0, half_width(measurement)
    places = layout.decimals([value], [half] if half else [])
    unit = "" if measurement.unit[:1].isdigit() else measurement.unit  # a range, as that of pixels
    return f"{layout.number(value, places, half)} {unit}".strip()


def _draw_point(axis: Axes, look: Look, across: Measurement, up: Measurement, label: str) -> None:
    """One row as a marker with both its intervals, all of that label."""
    shapes = axis.errorbar(
        across.value or 0.0,
        up.value or 0.0,
        xerr=_arms(across),
        yerr=_arms(up),
        fmt=look.marker,
        color=look.colour,
        markersize=7,
        elinewidth=1,
    )
    _label(shapes.get_children(), label)


def _label(shapes: Iterable[Artist], label: str) -> None:
    """Give all shapes the label."""
    for shape in shapes:
        shape.set_label(label)


def _arms(measurement: Measurement) -> list[list[float]] | None:
    """Lengths of the error bar below and above the value."""
    value, low, high = measurement.value, measurement.low, measurement.high
    if value is None or low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _log_axis(axis: Axes) -> None:
    """A logarithmic x axis over at least a decade, with a handful of plain numbers."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    middle = (low * high) ** 0.5
    axis.set_xlim(min(low, middle / 10**0.5), max(high, middle * 10**0.5))
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:.3g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def _dress(axis: Axes, x: str, y: str) -> None:
    """Axis labels and a light grid."""
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    _clean(axis)


def _clean(axis: Axes) -> None:
    """A light grid behind the data and no box around it."""
    axis.grid(True, axis="y", **GRID_STYLE)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure: Figure, rows: Sequence[Row], markers: bool = False) -> None:
    """One legend above all panels."""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker if markers else "", linestyle="" if markers else look.line)
        for look in looks(rows).values()
    ]
    columns = min(len(rows), LEGEND_COLUMNS)
    figure.legend(
        handles,
        [drawn_text(label) for label in looks(rows)],
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


@dataclass(frozen=True)
class Chart:
    """A chart of a report: its file's name, its title, what a page says below it, and how it is drawn of rows.

    `tested`: what it shows was measured on the test images.
    """

    name: str
    title: str
    said: str
    draw: Callable[[Sequence[Row]], Figure | None]
    tested: bool = True


CHARTS = (
    Chart(
        "quality_speed",
        "Quality against throughput",
        "Bars: the spread of both. Dotted steps: the Pareto front, the rows that no other beats in both; spreads are "
        "not counted.",
        quality_against_speed,
    ),
    Chart(
        "rate_distortion",
        "Rate and distortion over beta",
        "A line a model under several beta. Dashed: equal ELBO; the nearer to the origin, the better.",
        rate_distortion,
    ),
    Chart(
        "rates",
        "KL per latent group",
        "KL(posterior, prior) in nats per image: bars from the coarsest group (left) to the finest, by resolution; "
        f"mean over test images and seeds. Collapsed: below {COLLAPSED_RATE} nats.",
        rates_by_group,
    ),
    Chart(
        "training",
        "Training curves",
        "A line a seed, against training images seen; the first values are off the axis.",
        training_curves,
        tested=False,
    ),
)
"""The charts of a report, in the order of its page."""
