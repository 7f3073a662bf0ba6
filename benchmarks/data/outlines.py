"""Glyphs drawn from their outlines, to the same bytes with every version of every library.

FreeType's pixels differ between its versions, those of Pillow and matplotlib with them. Here fontTools reads the
outlines as they are in the file, without hints, and the area that they cover is summed in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from benchmarks.base.errors import UserError

SCANLINES = 16  # a pixel row's, at which coverage along x is exact
CURVE_PIECES = 8  # lines in place of a curve: at 24 pixels within 0.1 pixel of it
GLYPHS_AT_ONCE = 500  # bounds the memory


@dataclass(frozen=True)
class Outlines:
    """Closed outlines of glyphs as line pieces, in units of the em (y upwards).

    Args:
        code_points: (N,), ascending.
        glyph: index into `code_points` of each piece.
        start, end: (P, 2), the piece's ends.
    """

    code_points: Int64[np.ndarray, " N"]
    glyph: Int64[np.ndarray, " P"]
    start: Float64[np.ndarray, "P 2"]
    end: Float64[np.ndarray, "P 2"]

    def box(self) -> tuple[Float64[np.ndarray, "N 2"], Float64[np.ndarray, "N 2"]]:
        """Lower and upper corner of each glyph."""
        first = np.searchsorted(self.glyph, np.arange(len(self.code_points)))
        return np.minimum.reduceat(self.start, first), np.maximum.reduceat(self.start, first)


def read_outlines(path: Path, code_points: set[int]) -> Outlines:
    """The outlines of those `code_points` that the TrueType font at `path` draws.

    Raises:
        UserError: no TrueType font.
    """
    from fontTools.ttLib import TTFont, TTLibError  # slow to import: only when used

    try:
        with TTFont(path) as font:
            names, table, em = font.getBestCmap() or {}, font["glyf"], font["head"].unitsPerEm  # pyright: ignore
            shapes = {code: table[names[code]].getCoordinates(table) for code in sorted(code_points & names.keys())}
    except (OSError, TTLibError, KeyError) as error:
        raise UserError(f"{path}: expected a TrueType font, got {error}; install matplotlib again") from error
    shapes = {code: shape for code, shape in shapes.items() if len(shape[0])}  # spaces draw nothing
    pieces = [_pieces(*shape) for shape in shapes.values()]
    glyph = np.repeat(np.arange(len(pieces)), [len(start) for start, _ in pieces])
    start, end = (np.concatenate(side) / em for side in zip(*pieces, strict=True))
    return Outlines(np.array(list(shapes)), glyph, start, end)


def draw(outlines: Outlines, size: int, em: int, longest: int) -> UInt8[np.ndarray, "N size size"]:
    """The glyphs white on black, centred by their boxes; `em` pixels an em, less where a box exceeds `longest`."""
    low, high = outlines.box()
    scale = np.minimum(em, longest / (high - low).max(axis=1))
    shift = size / 2 - scale[:, None] * (low + high) / 2
    start, end = (scale[outlines.glyph, None] * ends + shift[outlines.glyph] for ends in (outlines.start, outlines.end))
    cuts = [*range(0, len(outlines.code_points), GLYPHS_AT_ONCE), len(outlines.code_points)]
    edges = np.searchsorted(outlines.glyph, cuts)
    parts = [
        _coverage(outlines.glyph[a:b] - first, start[a:b], end[a:b], last - first, size)
        for first, last, a, b in zip(cuts, cuts[1:], edges, edges[1:], strict=False)
    ]
    return np.rint(255 * np.concatenate(parts)[:, ::-1]).astype(np.uint8)  # row 0 is the top


def _pieces(coordinates: Any, contour_ends: Any, flags: Any) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (P, 2) of the line pieces of one glyph's contours of lines and quadratic curves."""
    points, on = np.array(coordinates, dtype=np.float64), (np.array(list(flags)) & 1).astype(bool)
    last = np.array(contour_ends)
    first = np.concatenate([[0], last[:-1] + 1])
    before, after = np.arange(len(points)) - 1, np.arange(len(points)) + 1
    before[first], after[last] = last, first
    line = on & on[after]
    curve = ~on
    from_ = np.where(on[before, None], points[before], (points[before] + points) / 2)[curve]
    to = np.where(on[after, None], points[after], (points + points[after]) / 2)[curve]
    t = np.arange(CURVE_PIECES + 1)[:, None, None] / CURVE_PIECES
    bent = (1 - t) * (1 - t) * from_ + 2 * t * (1 - t) * points[curve] + t * t * to
    start = np.concatenate([points[line], bent[:-1].reshape(-1, 2)])
    return start, np.concatenate([points[after][line], bent[1:].reshape(-1, 2)])


def _coverage(glyph: np.ndarray, start: np.ndarray, end: np.ndarray, n: int, size: int) -> np.ndarray:
    """Share of each pixel inside the outlines by the non-zero rule: (n, size, size), row 0 at the bottom.

    Where a scanline crosses a piece, everything to the right of the crossing gains or loses one winding.
    """
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.ceil(low * SCANLINES - 0.5).astype(np.int64)  # scanline k lies at y = (k + 0.5) / SCANLINES
    count = np.ceil(high * SCANLINES - 0.5).astype(np.int64) - first
    piece = np.repeat(np.arange(len(glyph)), count)
    scanline = np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count) + first[piece]
    (x0, y0), (x1, y1) = start[piece].T, end[piece].T
    x = x0 + (x1 - x0) * (((scanline + 0.5) / SCANLINES - y0) / (y1 - y0))
    column = np.floor(x).astype(np.int64)
    cell = (glyph[piece] * size + scanline // SCANLINES) * (size + 1) + column
    winding = np.sign(y1 - y0) / SCANLINES
    length = n * size * (size + 1)
    inside = x - column
    change = np.bincount(cell, winding * (1 - inside), length) + np.bincount(cell + 1, winding * inside, length)
    return np.abs(np.cumsum(change.reshape(n, size, size + 1), axis=2)[..., :size]).clip(max=1)
