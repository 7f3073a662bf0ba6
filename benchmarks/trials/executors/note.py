"""The note in a trial's folder of the job that it was handed to."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically

NOTE = ".job.json"


@dataclass(frozen=True)
class JobNote:
    """Which job of which cluster a trial was handed to, and why that came to nothing."""

    cluster: str
    job: str
    failed: str = ""

    def __str__(self) -> str:
        return f"{self.cluster} job {self.job}"

    def write(self, folder: Path) -> None:
        """Leave it in a trial's folder."""
        write_text_atomically(folder / NOTE, json.dumps(dataclasses.asdict(self)) + "\n")


def note_of(folder: Path) -> JobNote | None:
    """The note in a trial's folder; None without one that can be read."""
    try:
        return parse(JobNote, read_json(folder / NOTE), NOTE)
    except (OSError, ValueError, UserError):
        return None


def forget_note(folder: Path) -> None:
    """Remove a trial's note."""
    (folder / NOTE).unlink(missing_ok=True)
