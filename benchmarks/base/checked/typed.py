"""Tables from outside (TOML, JSON) as frozen dataclasses: every key known, every value of its type and in bounds."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from benchmarks.base.checked.strict_json import sound_number
from benchmarks.base.errors import UserError, unknown
from models.fields import bounds_of, shown

T = TypeVar("T")


def parse(cls: type[T], table: Any, where: str, extra: tuple[str, ...] = ()) -> T:
    """A `cls` instance from a table whose keys must be its fields; `extra` are names also offered as hints.

    Raises:
        UserError: unknown or missing key, wrong type, impossible value; names the key and the nearest right one.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where}: expected a table, got {shown(table)}")
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise unknown(f"key in {where}", str(key), [*fields, *extra])
    values = {key: _checked(value, hints[key], f"{where}.{key}") for key, value in table.items()}
    for name, field in fields.items():
        if name in values:
            _require_bounds(values[name], field, f"{where}.{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{name}: expected {_readable(hints[name])}, got none; add that key")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def one_of(kind: str, name: object, options: Iterable[str]) -> str:
    """`name`, which is one of `options`.

    Raises:
        UserError: it is none, with the nearest.
    """
    known = list(options)
    if not isinstance(name, str) or name not in known:
        raise unknown(kind, name if isinstance(name, str) else shown(name), known)
    return name


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotated types of a dataclass's fields."""
    return typing.get_type_hints(cls)


@functools.cache
def _form(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Origin and arguments of an annotated type."""
    return typing.get_origin(hint), typing.get_args(hint)


def _require_bounds(value: Any, field: dataclasses.Field[Any], where: str) -> None:
    """Raise UserError where a number, or one in a tuple, is out of its field's bounds."""
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, int | float) and item not in bounds_of(field):
            raise UserError(f"{where}: expected a value {bounds_of(field)}, got {shown(item)}")


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, or a UserError."""
    if hint is float and type(value) is float and sound_number(value):
        return value  # most of a record is curves
    origin, arguments = _form(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of_types(value, hint, where)
    if origin is Literal:
        if isinstance(value, str) and value not in arguments:
            raise unknown(f"value of {where}", value, [str(a) for a in arguments])
        if value in arguments:
            return value
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        return origin(_checked(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {key: _checked(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _as_float(value, where)
    elif (
        (hint is int and isinstance(value, int) and not isinstance(value, bool))
        or (hint in (str, bool) and isinstance(value, hint))
        or (hint is type(None) and value is None)
    ):
        return value
    elif isinstance(hint, type) and dataclasses.is_dataclass(value) and isinstance(value, hint):
        return value  # parsed before
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse(hint, value, where)
    raise UserError(f"{where}: expected {_readable(hint)}, got {shown(value)}")


def _one_of_types(value: Any, hint: Any, where: str) -> Any:
    """`value` as the first type of a union that it fits; the error of the only one that is not None."""
    arguments = _form(hint)[1]
    options = [option for option in arguments if option is not type(None)]
    if value is None and len(options) < len(arguments):
        return None
    if len(options) == 1:
        return _checked(value, options[0], where)
    for option in options:
        try:
            return _checked(value, option, where)
        except UserError:
            continue
    raise UserError(f"{where}: expected {_readable(hint)}, got {shown(value)}")


def _as_float(value: float, where: str) -> float:
    """`value` as a float; integers are so in TOML and JSON where their fraction is zero."""
    if not sound_number(value):  # whole numbers beyond what a float holds as well
        raise UserError(f"{where}: expected a finite number, got {shown(value)}")
    return float(value)


def _readable(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")  # type: ignore[return-value]
