"""What all steps found, as one page and one file. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from benchmarks.base.files import write_text_atomically
from benchmarks.gpu import findings
from benchmarks.report import layout

State = Literal["passed", "failed", "crashed", "stopped", "left out"]
"""Passed: nothing failed, though cases may be left out. Crashed: ended outside a case. Stopped: killed at its limit."""
DRY = "Dry run on a CPU: the same code on tiny shapes, with the CPU's operations. No number here is one of a GPU."
MOST_FAILURES, MOST_ROWS = 40, 400
WIDEST = 120
"""Characters of a cell."""


@dataclass(frozen=True)
class Outcome:
    """How a step went: numbers of cases, and the first lines of its first errors; times in seconds."""

    name: str
    state: State
    seconds: float = 0.0
    limit: float = 0.0
    passed: int = 0
    failed: int = 0
    unjudged: int = 0
    left_out: int = 0
    message: str = ""
    failures: list[dict[str, str]] = field(default_factory=list)

    def line(self) -> str:
        """The outcome in a line."""
        counts = f"{self.passed} passed, {self.failed} failed, {self.unjudged} unjudged, {self.left_out} left out"
        said = f"{self.name}: {self.state} in {self.seconds:.0f} of {self.limit:.0f} s ({counts})"
        return f"{said}; {self.message.splitlines()[0]}" if self.message else said


def left_out(name: str, why: str) -> Outcome:
    """A step that was not run."""
    return Outcome(name, "left out", message=why)


def outcome_of(
    name: str, found: Mapping[str, Any], seconds: float, limit: float, message: str, crashed: bool
) -> Outcome:
    """The outcome of a step from what it wrote, and from what its end was said to be."""
    rows = found.get("rows", [])
    count = {kind: sum(row["passed"] is kind for row in rows) for kind in (True, False, None)}
    failures = [{"case": row["case"], "message": row.get("message", "")} for row in rows if row["passed"] is False]
    state: State = "failed" if failures else "passed"
    if message:
        state = "crashed" if crashed else "stopped"
    return Outcome(
        name,
        state,
        round(seconds, 1),
        round(limit, 1),
        count[True],
        count[False],
        count[None],
        len(found.get("left_out", [])),
        message,
        failures,
    )


@dataclass
class Run:
    """One call of the command; `started` in seconds since the epoch."""

    out: Path
    device: str
    minutes: float
    started: float
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float | None = None
    interrupted: bool = False

    def left(self) -> float:
        """Seconds until the end of the command's time."""
        return self.started + 60 * self.minutes - time.time()

    def has(self, name: str) -> bool:
        """Whether the step has its outcome."""
        return any(outcome.name == name for outcome in self.outcomes)

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return all(outcome.state in ("passed", "left out") for outcome in self.outcomes)

    def write(self) -> None:
        """Write summary.json and summary.md."""
        kept = {
            "device": self.device,
            "dry_run": self.device == "cpu",
            "minutes": self.minutes,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started if self.seconds is None else self.seconds, 1),
            "finished": self.seconds is not None,
            "interrupted": self.interrupted,
            "steps": [dataclasses.asdict(outcome) for outcome in self.outcomes],
        }
        write_text_atomically(self.out / "summary.json", json.dumps(findings.plain(kept), indent=1) + "\n")
        write_text_atomically(self.out / "summary.md", page(self))


STEP_COLUMNS = ("step", "state", "seconds", "limit (s)", "passed", "failed", "unjudged", "left out", "")


def page(run: Run) -> str:
    """The summary as markdown."""
    parts = ["# What was found on this machine", *([DRY] if run.device == "cpu" else [])]
    spent = time.time() - run.started if run.seconds is None else run.seconds
    still = "" if run.seconds is not None else " It still runs, or was ended before its end."
    parts.append(f"{spent:.0f} s of {60 * run.minutes:.0f} s were spent.{still}")
    lines = [
        (o.name, o.state, o.seconds, o.limit, o.passed, o.failed, o.unjudged, o.left_out, o.message)
        for o in run.outcomes
    ]
    parts += [table(STEP_COLUMNS, lines)] if lines else []
    parts += _failures(run.outcomes)
    for outcome in run.outcomes:
        parts += section(outcome.name, findings.read(run.out / f"{outcome.name}.json"))
    return "\n\n".join(parts) + "\n"


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    """The failed cases of all steps, and the steps that ended outside a case, with their first lines."""
    ended = {one.name: {"case": one.state, "message": one.message} for one in outcomes if one.state == "crashed"}
    rows = list(ended.items())
    rows += [(one.name, failure) for one in outcomes for failure in one.failures]
    if not rows:
        return []
    lines = []
    for step, failure in rows[:MOST_FAILURES]:
        said = "".join(f"\n    {line}" for line in failure["message"].splitlines()[: findings.MESSAGE_LINES])
        lines.append(f"* {step}, {failure['case']}{said}")
    more = [f"and {len(rows) - MOST_FAILURES} more in the files"] if len(rows) > MOST_FAILURES else []
    return ["## Failed", "\n".join(lines), *more]


def section(name: str, found: Mapping[str, Any]) -> list[str]:
    """Facts, notes and the table of one step."""
    parts = [f"## {name}"]
    if found.get("facts"):
        parts.append("\n".join(f"* {key}: {cell(value)}" for key, value in found["facts"].items()))
    if found.get("notes"):
        parts.append("\n".join(f"* {note}" for note in found["notes"]))
    rows, columns = found.get("rows", [])[:MOST_ROWS], found.get("columns") or []
    if rows and columns:
        cells = [[row["case"], *(row.get(key) for key, _ in columns)] for row in rows]
        parts.append(table(["case", *(heading for _, heading in columns)], cells))
    if found.get("left_out"):
        parts.append("Left out, for the time was over: " + ", ".join(found["left_out"]))
    return parts if len(parts) > 1 else []


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table."""
    cells = pd.DataFrame([[cell(value) for value in row] for row in rows], columns=list(headings))
    return layout.markdown(cells)


def cell(value: Any) -> str:
    """A value of a table."""
    if value is None:
        return layout.DASH
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return " ".join(str(value).split())[:WIDEST]
