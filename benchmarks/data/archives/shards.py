"""The files that an archive consists of: itself, or all of its kind below a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def shards(place: Path, suffix: str) -> Sequence[Path]:
    """The file, or those below the folder whose names end so, in their order."""
    return sorted(place.rglob(f"*{suffix}")) if place.is_dir() else [place]
