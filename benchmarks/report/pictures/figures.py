"""Figures of images: reconstructions beside originals, samples of each model beside real images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.base.files import write_bytes_atomically
from benchmarks.report.pictures.grids import GRID, SHOWN, reconstruction_lines, tiled
from benchmarks.report.pictures.saved import Images, SavedImages
from benchmarks.report.pictures.words import drawn_text

DPI = 150
TEXT = {"fontsize": 9}


def reconstructions(images: Mapping[str, SavedImages]) -> Figure:
    """A line of originals above a line of reconstructions for every model (`grids.reconstruction_lines`)."""
    lines = reconstruction_lines(images)
    height = 0.72
    figure = new_figure(1.6 + height * SHOWN, 0.5 + height * len(lines))
    axes = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for axis, (label, line) in zip(axes, lines, strict=True):
        show(axis, tiled(line, columns=SHOWN, rows=1))
        axis.set_ylabel(drawn_text(label), rotation=0, ha="right", va="center", **TEXT)
    axes[0].set_title("Test images and their reconstructions (z at the posterior mean)", fontsize=10)
    return figure


def samples(images: Mapping[str, SavedImages]) -> Figure | None:
    """A panel of samples for every model that has a prior, beside a panel of real images; None without samples."""
    panels = {label: saved.samples for label, saved in images.items() if saved.samples is not None}
    return _panels(images, panels, "Samples from the prior (mean of the likelihood, not selected)")


def samples_prior_statistics(images: Mapping[str, SavedImages]) -> Figure | None:
    """As `samples`, of the same latents with batch-norm statistics of images from the prior."""
    kept = {label: saved.samples_prior_statistics for label, saved in images.items()}
    panels = {label: panel for label, panel in kept.items() if panel is not None}
    return _panels(images, panels, "The same samples with batch-norm statistics of images from the prior")


def _panels(images: Mapping[str, SavedImages], panels: Mapping[str, Images], title: str) -> Figure | None:
    """A panel of real images and one a model; None where no model has any."""
    if not panels:
        return None
    real = next(iter(images.values())).originals
    across = {"Real test images": real, **panels}
    figure = new_figure(3.0 * len(across), 3.5)
    axes = figure.subplots(1, len(across), squeeze=False)[0]
    for axis, (label, panel) in zip(axes, across.items(), strict=True):
        show(axis, tiled(panel, columns=GRID, rows=GRID))
        axis.set_title(drawn_text(label), fontsize=10)
    figure.suptitle(title, fontsize=10)
    return figure


def show(axis: Axes, picture: Images) -> None:
    """Draw `picture` without smoothing and without a frame."""
    grey = picture.shape[-1] == 1
    shades = {"cmap": "gray", "vmin": 0, "vmax": 255} if grey else {}
    axis.imshow(picture[..., 0] if grey else picture, interpolation="nearest", **shades)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches that lays itself out; no global state."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix, atomically and without a date in it."""
    write_bytes_atomically(path, rendered(figure, path.suffix[1:]))


def rendered(figure: Figure, kind: str, pad: float = 0.08, letters: Literal["path", "none"] = "path") -> bytes:
    """The figure as a file of that format, cut to what is drawn with `pad` inches around it.

    `letters` of an SVG are paths, or text in whatever font the reader has. Nothing in it depends on the day or on
    chance: an unchanged chart is an unchanged file.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with rc_context({"svg.hashsalt": "vaebench", "svg.fonttype": letters}):
        figure.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=pad, metadata=metadata)
    return buffer.getvalue()
