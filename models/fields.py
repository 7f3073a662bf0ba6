"""Fields of configurations: the numbers that they take, and which of them came after the first runs were named."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_ADDED_LATER = "added_later"
_BOUNDS = "bounds"


@dataclass(frozen=True)
class Bounds:
    """The numbers from `least` to `most`, or above `above`; infinities and NaN are never among them."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and number > self.above and abs(number) < math.inf

    def __str__(self) -> str:
        low = [f"> {_short(self.above)}"] if self.above > -math.inf else []
        low += [f">= {_short(self.least)}"] if self.least > -math.inf else []
        ends = " and ".join([*low, *([f"<= {_short(self.most)}"] if self.most < math.inf else [])])
        return ends or "that is finite"


FINITE = Bounds()
POSITIVE = Bounds(above=0, most=1e30)
SHARE = Bounds(0, 1)
WEIGHT = Bounds(0, 1e30)
"""Of a term of the loss."""
WIDTH = Bounds(1, 1_000_000)
"""Channels of a feature map, units of a layer."""
MOST_HALVINGS = 16
"""Of an image's sides."""
PAD = Bounds(0, 2**MOST_HALVINGS)
"""Pixels on each side."""


def bounded(default: T, bounds: Bounds) -> T:
    """A dataclass field whose number, or numbers, `require_bounds` holds within the bounds."""
    return dataclasses.field(default=default, metadata={_BOUNDS: bounds})


def added_later(default: T, bounds: Bounds = FINITE) -> T:
    """A dataclass field that a run's hash leaves out while it equals `default`: older runs keep their names.

    `default` is what the code did before the field came. It never changes, nor does a subclass replace it, for either
    would give an older run's name to another computation.
    """
    return dataclasses.field(default=default, metadata={_ADDED_LATER: True, _BOUNDS: bounds})


def bounds_of(field: dataclasses.Field[Any]) -> Bounds:
    """The numbers that a field takes."""
    return field.metadata.get(_BOUNDS, FINITE)


def require_bounds(config: Any) -> None:
    """Hold every number of a frozen dataclass, in tuples too, within its field's bounds; None and text are let pass.

    Raises:
        ValueError: one is not; "batch_size: expected a value >= 1 and <= 1,000,000, got 0".
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and item not in bounds_of(field):
                raise ValueError(f"{field.name}: expected a value {bounds_of(field)}, got {shown(value)}")


def shown(value: object) -> str:
    """A value as a message has it, cut where it is long."""
    try:
        text = f"{value:g}" if isinstance(value, float) else repr(value)
    except ValueError:  # thousands of digits, which Python does not write out
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."


def named_fields(config: Any) -> dict[str, Any]:
    """What names a run, of a frozen dataclass: as `dataclasses.asdict`, without later fields at their default."""
    return {
        field.name: _named(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if not (field.metadata.get(_ADDED_LATER) and getattr(config, field.name) == field.default)
    }


def _named(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return named_fields(value)
    return [_named(item) for item in value] if isinstance(value, (tuple, list)) else value


def _short(end: float) -> str:
    """An end of a range: 1,000,000 in full, larger ones as a power."""
    return f"{end:,}" if isinstance(end, int) and abs(end) < 10**9 else f"{end:g}"
