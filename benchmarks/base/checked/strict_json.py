"""JSON from outside: files of a sane size, finite numbers, text that can be written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.base.files import MOST_TEXT, special
from models.fields import shown

LARGEST = 1e100
"""Size of a number that is written to a file or read from one; squares of it are finite still."""


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most `MOST_TEXT` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: no regular file, too large, or not JSON.
    """
    found = special(path)
    if found is None and path.stat().st_size > MOST_TEXT:
        found = f"one of {path.stat().st_size:,} bytes"
    if found is not None:
        raise ValueError(f"expected a JSON file of at most {MOST_TEXT:,} bytes, got {found}")
    return parse_json(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """What JSON stands for.

    Raises:
        ValueError: not JSON, nested beyond what Python can follow, or of numbers and text that `read_json` refuses.
    """
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
        _require_sound(raw, "")
    except RecursionError:
        raise ValueError("nested too deep") from None
    return raw


def sound_number(number: float) -> bool:
    """Whether a number is finite and no larger than `LARGEST`."""
    return -LARGEST <= number <= LARGEST


def _refuse_constant(name: str) -> None:
    raise ValueError(f"expected JSON, got the value {name}")


def _require_sound(value: Any, where: str) -> None:
    """Raise ValueError where a number or a text is one that nothing can be done with."""
    if isinstance(value, int | float) and not sound_number(value):
        raise ValueError(f"{where or 'value'}: expected a number of size <= {LARGEST:g}, got {shown(value)}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where or 'value'}: expected text, got half a character: {ascii(value)[:100]}") from None
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in children:
        if isinstance(key, int) and type(item) is float and sound_number(item):
            continue  # most of a record is curves, lists of numbers whose places need no names
        _require_sound(key, "key")
        _require_sound(item, f"{where}.{key}".lstrip("."))
