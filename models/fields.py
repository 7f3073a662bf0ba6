"""Fields of configurations that came after the first runs were named."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")
_ADDED_LATER = "added_later"


def added_later(default: T) -> T:
    """A dataclass field that a run's hash leaves out while it equals `default`: older runs keep their names.

    `default` is what the code did before the field came. It never changes, nor does a subclass replace it, for either
    would give an older run's name to another computation.
    """
    return dataclasses.field(default=default, metadata={_ADDED_LATER: True})


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
