"""Figure of the static profile: which of a GPU's three peaks bounds each kernel."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.report.pictures.charts import COLOURS, GRID_STYLE
from benchmarks.report.pictures.figures import new_figure
from kernels.readback.static_profile import Gpu, StaticProfile

MARKERS = {("fp32", "forward"): "o", ("fp32", "backward"): "s", ("bf16", "forward"): "^", ("bf16", "backward"): "v"}
INTENSITIES = (0.5, 64)
"""Range of the axis, instructions per byte."""


def roofline(rows: Sequence[StaticProfile], gpus: Sequence[Gpu]) -> Figure:
    """A panel for each GPU: instructions per byte against the rate of instructions that its peaks allow.

    A point on the line is bound by memory or issue; below it, by special functions.
    """
    panels = [gpu for gpu in gpus if any(row.target == gpu.target for row in rows)]
    columns = min(3, max(1, len(panels)))
    lines = -(-len(panels) // columns)
    figure = new_figure(3.6 * columns, 3.2 * max(1, lines) + 0.8)
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    for index, gpu in enumerate(panels):
        axis = figure.add_subplot(lines, columns, index + 1)
        draw_panel(axis, gpu, [row for row in rows if row.target == gpu.target], kernels)
    figure.supylabel("instructions a second at the kernel's own bound (10^12 lanes)", fontsize=9)
    figure.legend(handles=legend(kernels), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def legend(kernels: Sequence[str]) -> list[Line2D]:
    """Colours of the kernels and markers of type and direction."""
    colours = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="o", linestyle="", label=kernel)
        for i, kernel in enumerate(kernels)
    ]
    markers = [
        Line2D([], [], color="#666666", marker=marker, linestyle="", label=f"{dtype} {direction}")
        for (dtype, direction), marker in MARKERS.items()
    ]
    return [*colours, *markers]


def draw_panel(axis: Axes, gpu: Gpu, rows: Sequence[StaticProfile], kernels: Sequence[str]) -> None:
    """The roofline of one GPU with a point for each kernel."""
    line = [INTENSITIES[0], gpu.issue / gpu.memory_tb_per_s, INTENSITIES[1]]
    axis.loglog(line, [min(gpu.issue, gpu.memory_tb_per_s * x) for x in line], color="#000000", linewidth=1)
    for row in rows:
        microseconds = max(row.estimate_us_per_million[gpu.gpu].values())
        marker = MARKERS.get((row.dtype, row.direction), "D")
        colour = COLOURS[kernels.index(row.kernel) % len(COLOURS)]
        x = row.instructions_per_element / row.bytes_per_element
        axis.plot(x, row.instructions_per_element / microseconds, marker, color=colour, markersize=4)
    axis.set_xlabel("instructions per byte", fontsize=8)
    axis.set_title(f"{gpu.gpu} ({gpu.target}), estimates", fontsize=9)
    axis.set_ylim(gpu.issue / 32, gpu.issue * 1.3)
    axis.tick_params(labelsize=7, which="both")
    axis.grid(True, **GRID_STYLE)
