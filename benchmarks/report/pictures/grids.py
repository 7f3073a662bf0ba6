"""Images side by side in one: grids, and the lines of reconstructions below their originals. No matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from benchmarks.report.pictures.saved import Images, SavedImages

SHOWN = 12  # images in a line of reconstructions
GRID = 8  # samples along a side of a grid
ORIGINALS = "Originals"


def tiled(images: Images, columns: int, rows: int) -> Images:
    """One picture (h, w, C) of the first images in a grid with thin grey lines, white where there are too few."""
    _, height, width, channels = images.shape
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index, image in enumerate(images[: columns * rows]):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        picture[top : top + height, left : left + width] = image
    return picture


def reconstruction_lines(images: Mapping[str, SavedImages]) -> list[tuple[str, Images]]:
    """Lines of `SHOWN` images by name: originals, then the reconstructions of every model.

    Originals are repeated where a model was shown other images.
    """
    lines: list[tuple[str, Images]] = []
    shown: Images | None = None
    for label, saved in images.items():
        if shown is None or not np.array_equal(shown, saved.originals[:SHOWN]):
            shown = saved.originals[:SHOWN]
            lines.append((ORIGINALS, shown))
        lines.append((label, saved.reconstructions[:SHOWN]))
    return lines


def pictures_of(images: SavedImages) -> dict[str, Images]:
    """The pictures (h, w, C) of one trial by name: originals above their reconstructions, and a grid of samples."""
    both = np.concatenate([images.originals[:SHOWN], images.reconstructions[:SHOWN]])
    found = {"reconstructions": tiled(both, len(both) // 2, 2)}
    if images.samples is not None:
        found["samples"] = tiled(images.samples, GRID, GRID)
    return found


def png(picture: Images) -> bytes:
    """`picture` (h, w, C) as a PNG file."""
    buffer = io.BytesIO()
    grey = picture.shape[-1] == 1
    Image.fromarray(picture[..., 0] if grey else picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(picture: Images) -> str:
    """`picture` (h, w, C) as a PNG inside an address."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
