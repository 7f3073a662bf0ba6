"""Types of command-line arguments: text that is some, names between commas, numbers within bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from models.fields import Bounds, shown


def text(value: str) -> str:
    """Text of which there is some."""
    if not value.strip() or "\0" in value:
        raise argparse.ArgumentTypeError(f"expected a value, got {shown(value)}; leave it out for the default")
    return value


def names(value: str) -> tuple[str, ...]:
    """Names between commas, at least one."""
    found = tuple(name.strip() for name in value.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names with a comma between two, got {shown(value)}")
    return found


def whole(bounds: Bounds) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def read(value: str) -> int:
        try:
            number = int(value) if value.isascii() else None
        except ValueError:
            number = None
        if number is None or number not in bounds:
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {shown(value)}")
        return number

    return read


def real(bounds: Bounds) -> Callable[[str], float]:
    """Reads a number within bounds."""

    def read(value: str) -> float:
        try:
            number = float(value) if value.isascii() else None
        except ValueError:
            number = None
        if number is None or number not in bounds:
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {shown(value)}")
        return number

    return read


def part(bounds: Bounds) -> Callable[[str], tuple[int, int]]:
    """Reads "i/N", the i-th of N parts counted from 1, N within bounds: (i - 1, N)."""

    def read(value: str) -> tuple[int, int]:
        index, slash, count = value.partition("/")
        digits = slash and all(word.isascii() and word.isdecimal() for word in (index, count))
        if not digits or not 1 <= int(index) <= int(count) or int(count) not in bounds:
            raise argparse.ArgumentTypeError(
                f"expected i/N, the i-th of N parts from 1/N to N/N, N {bounds}, got {shown(value)}"
            )
        return int(index) - 1, int(count)

    return read


def several(read: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    """Reads numbers between commas."""
    return lambda value: tuple(read(part) for part in value.split(","))


def folder(value: str) -> str:
    """A folder that there is, or that can be made: nothing on the way to it is a file.

    Whether it may be written, only writing shows.
    """
    path = Path(text(value))
    try:
        blocking = next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a folder, got {shown(value)}: {error.strerror}") from error
    if blocking is not None:
        raise argparse.ArgumentTypeError(f"expected a folder, got '{value}', and {blocking} is a file; choose another")
    return value


def file(value: str) -> str:
    """A file to write: no folder of that name, and nothing on the way to it is a file."""
    path = Path(text(value))
    folder(str(path.parent))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder '{value}'; name a file in it")
    return value
