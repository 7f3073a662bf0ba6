"""Names that become files, folders and lines of a table: one plain component of a path, one line of text."""

from __future__ import annotations

import re

from benchmarks.base.errors import UserError
from models.fields import shown

LONGEST_NAME = 100
"""Bytes: what a file system allows, less what is put before and behind a name."""
LONGEST_TEXT = 4096
PLAIN = re.compile(r"[^\W_][\w .+=()-]*(?<![ .])")
"""A letter or digit first; no slash, comma, colon or quote; no space or full stop at the end."""


def is_plain(name: object) -> bool:
    """Whether `name` is one component of a path on any system, and nothing that a shell, a pattern or a list reads."""
    fits = isinstance(name, str) and PLAIN.fullmatch(name) is not None and name.isprintable()
    return fits and len(str(name).encode()) <= LONGEST_NAME


def require_plain(name: object, where: str) -> None:
    """Hold a name to `is_plain`.

    Raises:
        UserError: it is not, with what a name may hold.
    """
    if not is_plain(name):
        raise UserError(
            f"{where}: expected the name of a folder (letters, digits and '-_.+=()', one of the first two in front, at "
            f"most {LONGEST_NAME} bytes), got {shown(name)}; rename it"
        )


def require_line(text: str, where: str, longest: int = LONGEST_TEXT) -> None:
    """Hold `text` to one line of printable characters.

    Raises:
        UserError: it is longer, or has other characters.
    """
    if not text.isprintable() or len(text) > longest:
        raise UserError(f"{where}: expected one line of at most {longest:,} printable characters, got {shown(text)}")


def as_component(text: str) -> str:
    """`text` as part of a file's name: what is no letter, digit, full stop or underscore becomes a hyphen."""
    return re.sub(r"[^\w.]", "-", text)
