# ruff: noqa: RUF005 - Triton adds tuples, and does not unpack them
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
"""Triton: depthwise convolution of stride 1, and the gradient of its weight, each in one pass over its tensors.

A program works on some strips: `TILE.lanes` pixels side by side, `TILE.columns` channels, over all rows of an image. It
walks down a strip; what a pixel of the input adds to the rows of the result around it is summed in a window of K rows
in registers, so that each pixel is loaded K times, once for each horizontal tap, and not K^2 times.

Maps (B, h, w, C) lie densely, channels beside each other; C and w are known when a kernel is compiled, so that most
addresses are offsets of a few. Tap t = K row + column.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channels_of(TILE: tl.constexpr):
    """This program's channels, (1, columns)."""
    return (tl.program_id(0) * TILE.columns + tl.arange(0, TILE.columns))[None, :]


@triton.jit
def strip(unit, height, channel, TILE: tl.constexpr):
    """A strip: offset of its image, its pixels of a row, and their offsets, (lanes, columns)."""
    STRIPS: tl.constexpr = (TILE.width + TILE.lanes - 1) // TILE.lanes
    pixel = unit % STRIPS * TILE.lanes + tl.arange(0, TILE.lanes)[:, None]
    image = tl.cast(unit // STRIPS, tl.int64) * height * (TILE.width * TILE.channels)
    return image, pixel, pixel * TILE.channels + channel


@triton.jit
def load_pixels(map, place, row, shift: tl.constexpr, height, kept, TILE: tl.constexpr):
    """A row's pixels of a strip, shifted sideways, in the map's type; 0 outside the image."""
    image, pixel, offsets = place
    column = pixel + shift
    inside = (column >= 0) & (column < TILE.width)
    if not TILE.full:
        inside = inside & kept & (row < height)
    at = map + (image + tl.cast(row, tl.int64) * (TILE.width * TILE.channels)) + offsets
    return tl.load(at + shift * TILE.channels, mask=inside, other=0.0)


@triton.jit
def load_rows(map, place, top, height, kept, TILE: tl.constexpr):
    """`TILE.rows` rows from `top`, each once for every horizontal tap, all of them under way at once."""
    K: tl.constexpr = TILE.kernel
    ROWS: tl.constexpr = TILE.rows
    values = ()
    for row in tl.static_range(ROWS):
        for column in tl.static_range(K):
            values = values + (load_pixels(map, place, top + row, column - K // 2, height, kept, TILE),)
    return values


@triton.jit
def zeros(NUMBER: tl.constexpr, TILE: tl.constexpr):
    """So many sums, (lanes, columns) each."""
    values = ()
    for _ in tl.static_range(NUMBER):
        values = values + (tl.full([TILE.lanes, TILE.columns], 0.0, tl.float32),)
    return values


@triton.jit
def load_taps(weight, channel, kept, TILE: tl.constexpr):
    """Each tap's weights of the program's channels, (1, columns) float32, from (K^2, C), turned around if asked for."""
    TAPS: tl.constexpr = TILE.kernel * TILE.kernel
    values = ()
    for tap in tl.static_range(TAPS):
        loaded = (tl.load(weight + tap * TILE.channels + channel, mask=kept, other=0.0).to(tl.float32),)
        values = loaded + values if TILE.turned else values + loaded
    return values


@triton.jit
def store_row(map, place, row, value, height, kept, TILE: tl.constexpr):
    """Write a row of a strip, if it is one of the image."""
    image, pixel, offsets = place
    inside = (pixel < TILE.width) & (row >= 0) & (row < height)
    if not TILE.full:
        inside = inside & kept
    at = map + (image + tl.cast(row, tl.int64) * (TILE.width * TILE.channels)) + offsets
    tl.store(at, value, mask=inside)


@triton.jit
def add_row(window, pixels, taps, row: tl.constexpr, TILE: tl.constexpr):
    """The window with what one row of the input adds to each of its rows, the uppermost by the lowest taps."""
    K: tl.constexpr = TILE.kernel
    values = ()
    for below in tl.static_range(K):
        value = window[below]
        for column in tl.static_range(K):
            value += pixels[row * K + column].to(tl.float32) * taps[(K - 1 - below) * K + column]
        values = values + (value,)
    return values


@triton.jit(do_not_specialize=["units", "steps", "height"])
def forward(x, y, weight, units, steps, height, TILE: tl.constexpr):
    """Write the convolution of x with taps (K^2, C): y of row r takes rows r - R .. r + R of x, R = K // 2."""
    K: tl.constexpr = TILE.kernel
    ROWS: tl.constexpr = TILE.rows
    RADIUS: tl.constexpr = K // 2
    channel = channels_of(TILE)
    kept = channel < TILE.channels
    taps = load_taps(weight, channel, kept, TILE)
    first = tl.program_id(1) * steps
    for unit in range(first, tl.minimum(first + steps, units)):
        place = strip(unit, height, channel, TILE)
        window = zeros(K, TILE)
        for top in range(0, height, ROWS):
            pixels = load_rows(x, place, top, height, kept, TILE)
            for row in tl.static_range(ROWS):
                window = add_row(window, pixels, taps, row, TILE)
                store_row(y, place, top + row - RADIUS, window[0], height, kept, TILE)
                window = window[1:] + zeros(1, TILE)
        bottom = tl.cdiv(height, ROWS) * ROWS - RADIUS
        for row in tl.static_range(RADIUS):
            store_row(y, place, bottom + row, window[row], height, kept, TILE)


@triton.jit
def load_column(map, place, top, height, kept, TILE: tl.constexpr, ROWS: tl.constexpr):
    """Rows from `top`, unshifted, float32; 0 below the image."""
    values = ()
    for row in tl.static_range(ROWS):
        image, pixel, offsets = place
        inside = (pixel < TILE.width) & (top + row < height)
        if not TILE.full:
            inside = inside & kept
        at = map + (image + tl.cast(top + row, tl.int64) * (TILE.width * TILE.channels)) + offsets
        values = values + (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
    return values


@triton.jit
def add_products(sums, window, pixels, row: tl.constexpr, TILE: tl.constexpr):
    """The sums of all taps with the products of one row of x and the rows of the gradient that it adds to."""
    K: tl.constexpr = TILE.kernel
    TAPS: tl.constexpr = K * K
    values = ()
    for tap in tl.static_range(TAPS):
        values = values + (sums[tap] + window[K - 1 - tap // K] * pixels[row * K + tap % K].to(tl.float32),)
    return values


@triton.jit(do_not_specialize=["units", "steps", "height"])
def weight_gradient(grad_y, x, parts, units, steps, height, TILE: tl.constexpr):
    """Write this program's part, (programs, K^2, C) float32, of the sums over pixels of grad_y times shifted x."""
    K: tl.constexpr = TILE.kernel
    ROWS: tl.constexpr = TILE.rows
    RADIUS: tl.constexpr = K // 2
    TAPS: tl.constexpr = K * K
    channel = channels_of(TILE)
    kept = channel < TILE.channels
    sums = zeros(TAPS, TILE)
    first = tl.program_id(1) * steps
    for unit in range(first, tl.minimum(first + steps, units)):
        place = strip(unit, height, channel, TILE)
        window = zeros(K - RADIUS, TILE) + load_column(grad_y, place, 0, height, kept, TILE, RADIUS)
        for top in range(0, height, ROWS):
            pixels = load_rows(x, place, top, height, kept, TILE)
            more = load_column(grad_y, place, top + RADIUS, height, kept, TILE, ROWS)
            for row in tl.static_range(ROWS):
                window = window[1:] + (more[row],)
                sums = add_products(sums, window, pixels, row, TILE)
    part = parts + tl.cast(tl.program_id(1), tl.int64) * (TAPS * TILE.channels)
    along = tl.program_id(0) * TILE.columns + tl.arange(0, TILE.columns)
    for tap in tl.static_range(TAPS):
        tl.store(part + tap * TILE.channels + along, tl.sum(sums[tap], 0), mask=along < TILE.channels)


@triton.jit(do_not_specialize=["programs"])
def merge(parts, gradient, programs, TILE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write the sum over the programs' parts (programs, K^2, C) as (C, K^2), one tap of some channels."""
    TAPS: tl.constexpr = TILE.kernel * TILE.kernel
    along = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, PARTS)
    tap = tl.program_id(1)
    mask = (part < programs)[:, None] & (along < TILE.channels)[None, :]
    at = parts + (part[:, None] * TAPS + tap) * TILE.channels + along[None, :]
    total = tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    tl.store(gradient + along * TAPS + tap, total, mask=along < TILE.channels)
