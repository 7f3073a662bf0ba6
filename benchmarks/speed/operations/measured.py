"""Measures the operations of targets: which of them matter, then those side by side in turns."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.base.errors import UserError, first_line
from benchmarks.base.files import write_text_atomically
from benchmarks.machine.environment import collect
from benchmarks.machine.process import keep_freed_memory
from benchmarks.speed.clock import interleave
from benchmarks.speed.machine import measure_limits
from benchmarks.speed.operations.named import flops_of, kind_of, shape_of
from benchmarks.speed.operations.sides import COMPILED, OURS, STOCK, Prepared, prepared
from benchmarks.speed.operations.table import (
    OperationRow,
    OperationTable,
    Share,
    better,
    limit_of,
    operations_csv,
    operations_json,
    operations_markdown,
)
from benchmarks.speed.operations.traced import TRAINING, Operation, operations_of
from benchmarks.speed.plan import OPERATIONS
from benchmarks.speed.spread import paired_ratio, spread
from benchmarks.speed.target import Target, resolve
from benchmarks.suites.config import suite_names
from kernels.cpu import library

TARGETS = ("nvae-mnist-small", "nvae-color-small", "vdvae-color-small", "quick/nvae", "quick/vdvae")
LIMIT_SECONDS = 0.5
MOST = 3
TRIES = 3
"""Calls by which an operation's part in the whole is judged, after one that warms up."""


@dataclass(frozen=True)
class Plan:
    """What is measured: targets at batches (none: as trained) and numbers of threads.

    `most` shapes of each kind in each phase, the ones that take most time; `seconds` for each side and direction.
    """

    targets: tuple[str, ...] = TARGETS
    batches: Sequence[int | None] = (None,)
    threads: Sequence[int] = (1,)
    seconds: float = 0.8
    most: int = MOST
    compiled: bool = False


def measure(plan: Plan, out: Path) -> OperationTable:
    """Measure, writing operations.json, .csv and .md into `out` after every operation.

    Raises:
        UserError: there are no C kernels here; unknown targets.
    """
    missing = library.why_missing()
    if missing is not None:
        raise UserError(
            f"--suite {OPERATIONS} compares the C kernels with others: expected them here, got none: {missing}"
        )
    targets = [_target(name) for name in plan.targets]
    keep_freed_memory()
    device = torch.device("cpu")
    limits = [measure_limits(count, device, LIMIT_SECONDS) for count in plan.threads]
    environment = collect(device, max(plan.threads), "float32")
    table = OperationTable(dataclasses.asdict(environment), list(map(dataclasses.asdict, limits)), plan.compiled)
    before = torch.get_num_threads()
    try:
        for index, count in enumerate(plan.threads):
            torch.set_num_threads(count)
            for target in targets:
                for batch in plan.batches:
                    sized = target.overridden([f"training.batch_size={batch}"] if batch else [])
                    _Measuring(plan, sized, table.limits[index], table, out).run()
    finally:
        torch.set_num_threads(before)
    return table


def _target(name: str) -> Target:
    """The one model of that name, a row of a suite as SUITE/ROW.

    Raises:
        UserError: there is none, or it is a suite of several.
    """
    suite, _, row = name.rpartition("/")
    found = resolve(suite, [row]) if suite in suite_names() or suite.endswith(".toml") else resolve(name)
    if len(found) != 1:
        raise UserError(f"--models {name}: expected one model, got a suite of {len(found)}; name a row, {name}/ROW")
    return found[0]


@dataclass
class _Measuring:
    """One target at one batch and number of threads."""

    plan: Plan
    target: Target
    limits: dict[str, float]
    table: OperationTable
    out: Path

    def run(self) -> None:
        """Measure all phases."""
        print(f"{self.target.name}: which operations it runs", file=sys.stderr, flush=True)
        for phase, counts in operations_of(self.target).items():
            by_kind: dict[str, list[tuple[float, Operation]]] = defaultdict(list)
            for operation, count in counts.items():
                by_kind[kind_of(operation)].append((count * rough_seconds(operation, phase == TRAINING), operation))
            whole = sum(seconds for found in by_kind.values() for seconds, _ in found)
            for kind, found in by_kind.items():
                found.sort(key=lambda one: -one[0])
                self._kind(phase, kind, found, whole, counts)

    def _kind(
        self, phase: str, kind: str, found: list[tuple[float, Operation]], whole: float, counts: dict[Operation, int]
    ) -> None:
        """The shapes of a kind that take most time, side by side."""
        own, chosen = sum(seconds for seconds, _ in found), found[: self.plan.most]
        place = (self.target.name, self.target.trial.training.batch_size, torch.get_num_threads(), phase, kind)
        covered = sum(seconds for seconds, _ in chosen) / own
        self.table.shares.append(Share(*place, shapes=len(found), of_phase=own / whole, measured=covered))
        for _, operation in chosen:
            print(f"{self.target.name}, {phase}: {kind}, {shape_of(operation)}", file=sys.stderr, flush=True)
            self.table.rows += self._rows(place, operation, counts[operation])
            write(self.table, self.out)

    def _rows(self, place: tuple[str, int, int, str, str], operation: Operation, count: int) -> list[OperationRow]:
        """The directions of an operation, its sides in turns."""
        sides, note = self._sides(operation, place[3] == TRAINING)
        rows: list[OperationRow] = []
        for direction in sides[OURS].calls:
            times = interleave({name: one.calls[direction] for name, one in sides.items()}, self.plan.seconds)
            moved, flops = sides[OURS].bytes_of(direction), flops_of(operation, direction)
            limit = limit_of(flops, moved, self.limits)
            others = better([one.wall for name, one in times.items() if name != OURS])
            rows.append(
                OperationRow(
                    *place,
                    shape_of(operation),
                    direction,
                    count,
                    ours=spread(times[OURS].wall),
                    stock=spread(times[STOCK].wall),
                    compiled=spread(times[COMPILED].wall) if COMPILED in times else None,
                    over_others=paired_ratio(others, times[OURS].wall),
                    flops=flops,
                    bytes=moved,
                    limit=limit,
                    note=note,
                )
            )
        return rows

    def _sides(self, operation: Operation, gradients: bool) -> tuple[dict[str, Prepared], str]:
        """The sides of an operation, and why one is missing: torch.compile fails in many ways, the others go on."""
        sides = {name: prepared(operation, name, gradients) for name in (OURS, STOCK)}
        if not self.plan.compiled:
            return sides, ""
        try:
            return sides | {COMPILED: prepared(operation, COMPILED, gradients)}, ""
        except Exception as error:
            return sides, f"torch.compile: {first_line(error)}"


def rough_seconds(operation: Operation, gradients: bool) -> float:
    """Seconds of the operation in C, all directions together, by a few calls."""
    found = 0.0
    for call in prepared(operation, OURS, gradients).calls.values():
        call()
        started = time.perf_counter()
        for _ in range(TRIES):
            call()
        found += (time.perf_counter() - started) / TRIES
    return found


def write(table: OperationTable, out: Path) -> None:
    """Write the three files."""
    write_text_atomically(out / "operations.json", operations_json(table) + "\n")
    write_text_atomically(out / "operations.csv", operations_csv(table))
    write_text_atomically(out / "operations.md", operations_markdown(table) + "\n")
