"""What a step found: a row a case, on disk as soon as it is known. Imports torch only where there is a GPU."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base.files import write_text_atomically

BROKEN = 75
"""Exit code of a process whose GPU answers no more; another one goes on behind the case that did it."""
MESSAGE_LINES, LINE = 6, 300
"""Lines of an error that are kept, and characters of each."""
MARGIN_SECONDS = 2.0
"""Between a step's own end and the limit at which it is killed."""

Fields = Mapping[str, Any]
Columns = Sequence[tuple[str, str]]
"""Key and heading of every column of a step's table."""


def described(error: BaseException) -> str:
    """Kind and first lines of an error."""
    lines = [line.rstrip()[:LINE] for line in str(error).splitlines() if line.strip()]
    return "\n".join([f"{type(error).__name__}: {lines[0] if lines else ''}", *lines[1:MESSAGE_LINES]])


def plain(value: Any) -> Any:
    """The value as strict JSON takes it: what is not finite becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class Findings:
    """The rows of one step, written after each case.

    Args:
        path: the step's JSON file; rows that it holds already are kept, and their cases not repeated.
        device: "cuda" or "cpu"; on a CPU the step is a dry run.
        until: when the step has to be over, seconds since the epoch.
    """

    def __init__(self, path: Path, device: str, until: float) -> None:
        self.path, self.device, self.until = path, device, until
        stored = read(path)
        self.rows: list[dict[str, Any]] = stored.get("rows", [])
        self.facts: dict[str, Any] = stored.get("facts", {})
        self.notes: list[str] = stored.get("notes", [])
        self.left_out: list[str] = []
        self.columns: list[tuple[str, str]] = []
        self.running: dict[str, Any] | None = None
        self.finished = False

    @property
    def dry(self) -> bool:
        """Whether this is a dry run, with tiny shapes on a CPU."""
        return self.device == "cpu"

    def left(self) -> float:
        """Seconds that the step has left."""
        return self.until - MARGIN_SECONDS - time.time()

    def known(self, name: str) -> bool:
        """Whether the case has its row."""
        return any(row["case"] == name for row in self.rows)

    def show(self, columns: Columns) -> None:
        """Say which keys of the rows the summary shows."""
        self.columns = list(columns)

    def note(self, text: str) -> None:
        """Add a line for the summary, once."""
        if text not in self.notes:
            self.notes.append(text)

    def case(self, name: str, call: Callable[[], Fields], needs: float = 1.0) -> dict[str, Any] | None:
        """Run a case and write its row, with `passed`, `seconds` and, where it failed, `message`.

        A case that raises has failed. One that is known from before is not repeated; one that `needs` more seconds
        than are left is left out. Returns the row of a case that was run.
        """
        if self.known(name):
            return None
        if self.left() < needs:
            self.left_out.append(name)
            self.write()
            return None
        self.running = {"case": name, "since": time.time()}
        self.write()
        started = time.perf_counter()
        try:
            row: dict[str, Any] = {"case": name, "passed": True, **call()}
            self._synchronise()
        except Exception as error:
            traceback.print_exc()
            row = {"case": name, "passed": False, "message": described(error)}
        row["seconds"] = round(time.perf_counter() - started, 3)
        self.rows.append(row)
        self.running = None
        self.write()
        print(f"{row['seconds']:8.2f} s  {_said(row)}  {name}", flush=True)
        if row["passed"] is False:
            self._recover()
        return row

    def finish(self) -> None:
        """Say that the step came to its end."""
        self.finished = True
        self.write()

    def write(self) -> None:
        """Write all that is known."""
        names = ("rows", "facts", "notes", "left_out", "columns", "running", "finished")
        found = {name: getattr(self, name) for name in names}
        write_text_atomically(self.path, json.dumps(plain(found), indent=1) + "\n")

    def _synchronise(self) -> None:
        """Wait for the GPU, so that what went wrong there belongs to the case that did it."""
        if not self.dry:
            import torch

            torch.cuda.synchronize()

    def _recover(self) -> None:
        """Free what a failed case held; where the GPU answers no more, end the process.

        A graph whose capture failed may leave the random numbers unusable.
        """
        gc.collect()
        try:
            self._synchronise()
            if not self.dry:
                import torch

                torch.cuda.empty_cache()
                float(torch.randn((), device="cuda"))
        except Exception as error:
            print(f"the GPU answers no more: {error}", file=sys.stderr, flush=True)
            os._exit(BROKEN)  # the driver's own tidying up may hang


def _said(row: Fields) -> str:
    return {True: "passed", False: "FAILED", None: "-"}[row["passed"]]


def read(path: Path) -> dict[str, Any]:
    """What a step has written so far; empty where there is nothing to read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
