"""Runs the growth suite: every point in a process of its own, the results written as they come and kept."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from benchmarks.machine.environment import collect
from benchmarks.speed.growth.plan import Choice, GrowthSuite, Point, points
from benchmarks.speed.growth.point import Measured, measure
from benchmarks.speed.growth.table import GrowthRow, GrowthTable, growth_csv, growth_json, growth_markdown

KEPT, FIGURE = "growth.json", "growth.png"
LIKE = ("python", "torch", "device_name", "cores", "operations", "commit", "dirty", "instruction_set")
"""Of the environment: where one of these differs, points are measured again."""


@dataclass
class Done:
    """A finished suite, and what failed."""

    table: GrowthTable
    failed: list[str] = field(default_factory=list)


def run(suite: GrowthSuite, choice: Choice, out: Path, measured: Callable[[Point], Measured] | None = None) -> Done:
    """Run the suite, writing growth.json, growth.csv and growth.md into `out` after every point, the figure at the end.

    Points that `out` holds already, of the same commit and machine, are not measured again. `measured` takes the place
    of processes.

    Raises:
        UserError: an unknown curve; a growth.json in `out` that is none.
    """
    chosen = points(suite, choice)
    threads = choice.threads or suite.threads
    environment = dataclasses.asdict(collect(torch.device(choice.device), threads, "float32"))
    done, kept = Done(GrowthTable(suite.title, environment)), kept_rows(out / KEPT, environment)
    for index, point in enumerate(chosen):
        place = f"{index + 1} of {len(chosen)}: {point.name}"
        row = next((row for row in kept if row.point == point), None)
        print(f"{place}{'' if row is None else ', measured before'}", file=sys.stderr, flush=True)
        if row is None:
            row = row_of(point, measured or measure)
        if row.note:
            done.failed.append(f"{point.name}: {row.note}")
        done.table.rows.append(row)
        write(dataclasses.replace(done.table, rows=[*done.table.rows, *_later(kept, chosen[index + 1 :])]), out)
    draw(done.table, out)
    return done


def _later(kept: list[GrowthRow], points: list[Point]) -> list[GrowthRow]:
    """The rows of points that are still to come, which a run that is stopped does not lose."""
    return [row for row in kept if row.point in points]


def row_of(point: Point, measured: Callable[[Point], Measured]) -> GrowthRow:
    """The row of a point, with a note in place of values where it failed."""
    try:
        found = measured(point)
    except UserError as error:
        return GrowthRow(point, note=str(error))
    return GrowthRow(point, found.seconds, found.macs, found.memory / 2**20, found.other_cpu)


def kept_rows(path: Path, environment: dict[str, Any]) -> list[GrowthRow]:
    """The rows of an earlier run, if it was of this commit and machine; without those that failed.

    Raises:
        UserError: the file is something else.
    """
    if not path.exists():
        return []
    try:
        found = read_json(path)
        before = {name: found["environment"].get(name) for name in LIKE}
        rows = [parse(GrowthRow, row, str(path)) for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path}: expected results of the growth suite, got {error}; move that file away") from error
    same = before == {name: environment.get(name) for name in LIKE}
    return [row for row in rows if same and row.seconds is not None]


def write(table: GrowthTable, out: Path) -> None:
    """Write the table's files."""
    write_text_atomically(out / "growth.md", growth_markdown(table, FIGURE) + "\n")
    write_text_atomically(out / "growth.csv", growth_csv(table))
    write_text_atomically(out / KEPT, growth_json(table) + "\n")


def draw(table: GrowthTable, out: Path) -> None:
    """Write the figure, if there is a curve to draw."""
    from benchmarks.report.pictures.figures import save  # matplotlib: slow to import
    from benchmarks.speed.growth.figure import growth_figure

    figure = growth_figure(table)
    if figure is not None:
        save(figure, out / FIGURE)
