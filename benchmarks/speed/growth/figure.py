"""The figure of growth: a panel a curve, seconds an image on log axes beside what the arithmetic would take."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.report.pictures.charts import COLOURS, GRID_STYLE, MARKERS
from benchmarks.report.pictures.figures import new_figure
from benchmarks.report.pictures.words import drawn_text
from benchmarks.speed.growth import fit
from benchmarks.speed.growth.table import Grown, GrowthTable

COLUMNS = 3
CROWDED = 1000
"""Values from which on their texts are turned."""


def growth_figure(table: GrowthTable) -> Figure | None:
    """A panel for each name of a curve; None where nothing was measured at two points.

    Dashed: the arithmetic at the best rate that the curve reaches. Bars: quartiles.
    """
    panels: dict[str, list[Grown]] = {}
    for one in table.curves:
        panels.setdefault(one.point.curve, []).append(one)
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(3.8 * columns, 3.2 * lines + 0.4)
    for index, (name, curves) in enumerate(panels.items()):
        _draw(figure.add_subplot(lines, columns, index + 1), name, curves)
    figure.supylabel("seconds an image; dashed: its arithmetic at the curve's best rate", fontsize=9)
    return figure


def _draw(axis: Axes, name: str, curves: Sequence[Grown]) -> None:
    """The curves of one name, with the exponents of time and of arithmetic in the legend."""
    for index, one in enumerate(curves):
        colour, medians = COLOURS[index % len(COLOURS)], [taken.median for taken in one.seconds]
        arms = [
            [taken.median - taken.low for taken in one.seconds],
            [taken.high - taken.median for taken in one.seconds],
        ]
        exponents = f"{fit.number(one.time.exponent)} ({fit.number(one.arithmetic.exponent)})"
        label, marker = drawn_text(f"{one.point.what}: {exponents}"), MARKERS[index % len(MARKERS)]
        axis.errorbar(one.x, medians, yerr=arms, color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
        axis.plot(one.x, one.at_best_rate, color=colour, linestyle="--", linewidth=0.8)
    _dress(axis, curves[0].point.axis, name, sorted({x for one in curves for x in one.x}))


def _dress(axis: Axes, grows: str, name: str, values: Sequence[float]) -> None:
    """Log axes with plain numbers, the values that were measured below; the legend above."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(values, [f"{x:,}" for x in values], rotation=45 if max(values) >= CROWDED else 0)
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
    for side in (axis.xaxis, axis.yaxis):
        side.set_minor_locator(NullLocator())
    axis.set_xlabel(drawn_text(grows if name == grows else f"{grows} ({name})"), fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(True, **GRID_STYLE)
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "title_fontsize": 7}
    axis.legend(fontsize=7, frameon=False, title="exponent of time (of arithmetic)", **above)
