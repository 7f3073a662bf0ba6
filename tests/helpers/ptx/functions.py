"""Approximate functions of PTX: the exact value, or one as far off as the documentation allows.

Bounds are those of the PTX ISA 9.1, "Floating Point Instructions" and "Half Precision Floating Point Instructions":
ulps for `ex2`, `rcp` and `div`, relative errors for roots and `tanh`, absolute ones for `sin`, `cos`, 16-bit `tanh`
and, between 1/2 and 2, `lg2`. Special values (zeros, infinities, NaN) are those of the tables there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from ptx.errors import UnsupportedError

Rounding = Literal["nearest", "up", "down", "scattered"]
"""Which value an approximate function gives: the nearest to the exact one, the largest or the smallest that is within
the documented error, or one of these two by the bits of the argument."""
Lanes = NDArray[Any]

ULP = 2.0**-23
"""Distance of neighbouring float32 in [1, 2)."""
SMALLEST = 2.0**-126
"""Smallest normal float32."""


@dataclass(frozen=True)
class Approximation:
    """A function in float64 and the absolute error that is documented, from argument and value."""

    function: Callable[[Lanes], Lanes]
    error: Callable[[Lanes, Lanes], Lanes]


def relative(bound: float) -> Callable[[Lanes, Lanes], Lanes]:
    """An error relative to the value."""
    return lambda x, value: np.abs(value) * bound


def absolute(bound: float) -> Callable[[Lanes, Lanes], Lanes]:
    """The same error everywhere."""
    return lambda x, value: np.full_like(value, bound)


def ulps(count: float) -> Callable[[Lanes, Lanes], Lanes]:
    """An error in units of the last place of the value."""
    return lambda x, value: count * ULP * np.exp2(np.floor(np.log2(np.maximum(np.abs(value), SMALLEST))))


def of_angle(x: Lanes, value: Lanes) -> Lanes:
    """Error of sine and cosine; farther out none is assumed than up to 100 pi."""
    return np.where(np.abs(x) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7)


def of_logarithm(x: Lanes, value: Lanes) -> Lanes:
    """Error of the logarithm: absolute around 1, else relative."""
    return np.where((x >= 0.5) & (x <= 2), 2.0**-22, np.abs(value) * 2.0**-22)


APPROXIMATIONS = {
    ("ex2", "f32"): Approximation(np.exp2, ulps(2.5)),  # 2 from the correctly rounded
    ("ex2", "f16"): Approximation(np.exp2, relative(2.0**-9.9)),
    ("ex2", "bf16"): Approximation(np.exp2, relative(2.0**-7)),
    ("lg2", "f32"): Approximation(np.log2, of_logarithm),
    ("rcp", "f32"): Approximation(np.reciprocal, ulps(1)),
    ("sqrt", "f32"): Approximation(np.sqrt, relative(2.0**-23)),
    ("rsqrt", "f32"): Approximation(lambda x: 1 / np.sqrt(x), relative(2.0**-22.9)),
    ("sin", "f32"): Approximation(np.sin, of_angle),
    ("cos", "f32"): Approximation(np.cos, of_angle),
    ("tanh", "f32"): Approximation(np.tanh, relative(2.0**-11)),
    ("tanh", "f16"): Approximation(np.tanh, absolute(2.0**-10.987)),
    ("tanh", "bf16"): Approximation(np.tanh, absolute(2.0**-8)),
}
DIVISION_ULPS = 2
"""Of `div.approx.f32` and `div.full.f32`."""


def flushed(x: Lanes) -> Lanes:
    """Subnormal float32 as zeros of their sign (modifier `.ftz`)."""
    return np.where(np.abs(x) < SMALLEST, np.copysign(np.float32(0), x), x)


def upwards(x: Lanes, rounding: Rounding) -> Lanes:
    """Whether each lane takes the largest value within the error, from the rounding or from the argument's bits."""
    if rounding != "scattered":
        return np.full(x.shape, rounding == "up")
    words = np.frombuffer(np.ascontiguousarray(x, np.float32).tobytes(), np.uint32).reshape(x.shape)
    return (words * np.uint32(zlib.crc32(b"scattered") | 1) >> np.uint32(31)) == 1


def within(value: Lanes, error: Lanes, up: Lanes) -> Lanes:
    """The float32 farthest up, or down, that is within the error of a float64 value; the nearest if none is."""
    nearest = value.astype(np.float32)
    limit = np.where(up, value + error, value - error)
    bound = limit.astype(np.float32)
    over = np.where(up, bound > limit, bound < limit)
    bound = np.where(over, np.nextafter(bound, np.where(up, -np.inf, np.inf).astype(np.float32)), bound)
    inside = (np.abs(bound - value) <= error) & np.isfinite(value) & np.isfinite(bound)
    return np.where(inside, bound, nearest)


def approximate(name: str, kind: str, x: Lanes, rounding: Rounding, ftz: bool) -> Lanes:
    """The function of float32 lanes, as float32; 16-bit types are rounded by the caller.

    Raises:
        UnsupportedError: no error of this function is recorded here.
    """
    found = APPROXIMATIONS.get((name, kind))
    if found is None:
        raise UnsupportedError(f"{name}.approx.{kind}")
    x = flushed(x) if ftz or name in ("sin", "cos") else x
    wide = x.astype(np.float64)
    value = found.function(wide)
    special = (x == 0) | ~np.isfinite(x)
    error = np.where(special, 0, found.error(wide, value))
    result = value.astype(np.float32) if rounding == "nearest" else within(value, error, upwards(x, rounding))
    return flushed(result) if ftz else result


def divide(a: Lanes, b: Lanes, rounding: Rounding, ftz: bool) -> Lanes:
    """`div.full.f32`, `div.approx.f32`."""
    a, b = (flushed(a), flushed(b)) if ftz else (a, b)
    value = np.divide(a.astype(np.float64), b.astype(np.float64))
    if rounding == "nearest":
        result = value.astype(np.float32)
    else:
        special = (value == 0) | ~np.isfinite(value)
        error = np.where(special, 0, ulps(DIVISION_ULPS)(value, value))
        result = within(value, error, upwards(value.astype(np.float32), rounding))
    return flushed(result) if ftz else result
