"""The table of measured operations: a row for each shape and direction, a verdict for each kind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report.layout import DASH, csv, frame, in_markdown, markdown, wrapped
from benchmarks.report.speed import significant
from benchmarks.speed.spread import Spread

WORTH = 1.3
"""Times as fast as the better of the others at which C is kept."""
KEPT, GOES = "kept", "goes"
TEXT = ("target", "phase", "kind", "on", "direction", "verdict")
METHOD = (
    "Each row is one operation on one shape in one direction, as often as a training step or an evaluation (a batch "
    "scored and one sampled) runs it. Sides take turns; times are medians over rounds, in microseconds, with the "
    "interquartile range in brackets. C: this suite's kernels. Stock: the same layer by layer in plain PyTorch, "
    "channels-last, as without a compiler, but for noise, which comes from torch's own generator. Compiled: that "
    "through torch.compile with static shapes, in evaluation with weights frozen; its guards are part of every call.",
    "Limit: the time in which the machine's own matrix product would do the multiplications and additions, or its "
    "copy would move inputs and outputs once, whichever is longer. Lost: what C takes beyond that, times the "
    "occurrences; it sorts the table. A number at a rate is C's.",
    f"Over the others: the time of the better of the others over C's. Of a kind: all its measured shapes and "
    f"directions as often as they occur. C is kept where that is at least {WORTH:g}.",
)


@dataclass(frozen=True)
class OperationRow:
    """One operation in one direction: seconds of each side, and what the machine's limits would allow.

    `count` occurrences in the phase; `flops` of products, `bytes` of inputs and outputs; `note` says why a side is
    missing.
    """

    target: str
    batch: int
    threads: int
    phase: str
    kind: str
    shape: str
    direction: str
    count: int
    ours: Spread
    stock: Spread
    compiled: Spread | None
    over_others: Spread
    flops: float
    bytes: int
    limit: float
    note: str = ""

    @property
    def lost(self) -> float:
        """Seconds of a phase that C takes beyond the limit."""
        return self.count * (self.ours.median - self.limit)

    @property
    def seconds(self) -> float:
        """Seconds of a phase that C takes."""
        return self.count * self.ours.median

    @property
    def gflops(self) -> float:
        """GFLOP/s in products."""
        return self.flops / self.ours.median / 1e9

    @property
    def gb_per_s(self) -> float:
        """GB/s of inputs and outputs."""
        return self.bytes / self.ours.median / 1e9

    def flat(self) -> dict[str, Any]:
        """The row as plain values, with what is derived."""
        found = dataclasses.asdict(self)
        spreads = {name: found.pop(name) or {} for name in ("ours", "stock", "compiled", "over_others")}
        ends = {f"{name}_{end}": one.get(end) for name, one in spreads.items() for end in ("low", "median", "high")}
        derived = {name: getattr(self, name) for name in ("seconds", "lost", "gflops", "gb_per_s")}
        return found | ends | {"rounds": self.ours.n} | derived


@dataclass(frozen=True)
class Share:
    """A kind's part in the time that the operations of a phase take in C, and how much of it was measured in turns."""

    target: str
    batch: int
    threads: int
    phase: str
    kind: str
    shapes: int
    of_phase: float
    measured: float


@dataclass
class OperationTable:
    """All that was measured, where, and the machine's limits there."""

    environment: dict[str, Any]
    limits: list[dict[str, Any]]
    compiled: bool
    rows: list[OperationRow] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)

    def of(self, share: Share) -> list[OperationRow]:
        """The rows of a kind."""
        place = (share.target, share.batch, share.threads, share.phase, share.kind)
        return [row for row in self.rows if (row.target, row.batch, row.threads, row.phase, row.kind) == place]


def over_others(rows: Iterable[OperationRow]) -> float | None:
    """Time of the better of the others over C's, for all rows as often as they occur; None without rows."""
    rows = list(rows)
    ours = sum(row.seconds for row in rows)
    sides = [[row.stock for row in rows], [row.compiled for row in rows]]
    whole = [
        sum(row.count * one.median for row, one in zip(rows, side, strict=True) if one is not None)
        for side in sides
        if all(one is not None for one in side)
    ]
    return min(whole) / ours if ours else None


def verdict(ratio: float | None) -> str:
    """Whether C is kept."""
    return DASH if ratio is None else KEPT if ratio >= WORTH else GOES


def operations_json(table: OperationTable) -> str:
    """The table as JSON."""
    head = {"schema_version": 1, "environment": table.environment, "limits": table.limits, "compiled": table.compiled}
    rows = [row.flat() for row in table.rows]
    return json.dumps({**head, "rows": rows, "kinds": [_kind(table, one) for one in table.shares]}, indent=1)


def operations_csv(table: OperationTable) -> str:
    """The rows as CSV."""
    return csv(frame([row.flat() for row in table.rows]))


def operations_markdown(table: OperationTable) -> str:
    """The whole report."""
    found, rows = table.environment, sorted(table.rows, key=lambda row: -row.lost)
    where = f"`{found['command']}` on {found['device_name']}, {found['cores']} cores, {found['instruction_set']}"
    limits = [
        f"{one['threads']} threads: matrix product {significant(one['gemm_gflops'])} GFLOP/s, "
        f"copy {significant(one['copy_gb_per_s'])} GB/s"
        for one in table.limits
    ]
    kinds = sorted((_kind(table, one) for one in table.shares), key=lambda one: -one["of_phase"])
    parts = ["# Single operations: C against stock PyTorch and torch.compile"]
    parts += [wrapped(f"{where}; torch {found['torch']}, {found['date']}. Limits, {'; '.join(limits)}.")]
    parts += ["## Kinds", markdown(frame([_kind_cells(one) for one in kinds]), TEXT)]
    parts += ["## Shapes, by lost time", markdown(frame([_cells(row) for row in rows]), TEXT)]
    notes = dict.fromkeys(f"- {in_markdown(f'{row.kind}, {row.shape}: {row.note}')}" for row in rows if row.note)
    parts += ["\n".join(notes)] if notes else []
    return "\n\n".join([*parts, "## How it was measured", *map(wrapped, METHOD)])


def _kind(table: OperationTable, share: Share) -> dict[str, Any]:
    """A kind with its verdict."""
    ratio = over_others(table.of(share))
    return dataclasses.asdict(share) | {"over_others": ratio, "verdict": verdict(ratio)}


def _kind_cells(one: dict[str, Any]) -> dict[str, str]:
    ratio = one["over_others"]
    return {
        "target": one["target"],
        "batch": str(one["batch"]),
        "threads": str(one["threads"]),
        "phase": one["phase"],
        "kind": one["kind"],
        "of the operations' time": f"{one['of_phase']:.1%}",
        "shapes": str(one["shapes"]),
        "measured": f"{one['measured']:.0%}",
        "over the others": DASH if ratio is None else f"{ratio:.2f}",
        "verdict": one["verdict"],
    }


def _cells(row: OperationRow) -> dict[str, str]:
    ratio = row.over_others
    return {
        "target": row.target,
        "batch": str(row.batch),
        "threads": str(row.threads),
        "kind": row.kind,
        "on": row.shape,
        "direction": row.direction,
        "times": str(row.count),
        "C (us)": _microseconds(row.ours),
        "stock (us)": _microseconds(row.stock),
        "compiled (us)": DASH if row.compiled is None else _microseconds(row.compiled),
        "over the others": f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        "GFLOP/s": significant(row.gflops) if row.flops else DASH,
        "GB/s": significant(row.gb_per_s),
        "of the limit": f"{row.limit / row.ours.median:.0%}",
        "lost (ms)": f"{row.lost * 1e3:.2f}",
    }


def _microseconds(one: Spread) -> str:
    low, middle, high = (significant(value * 1e6) for value in (one.low, one.median, one.high))
    return f"{middle} [{low}, {high}]"


def limit_of(flops: float, moved: int, limits: dict[str, Any]) -> float:
    """Seconds that products at the matrix product's rate, or bytes at the copy's, take at least."""
    return max(flops / (limits["gemm_gflops"] * 1e9), moved / (limits["copy_gb_per_s"] * 1e9))


def better(sides: Sequence[list[float]]) -> list[float]:
    """The times of the side whose median is least."""
    return min(sides, key=lambda times: sorted(times)[len(times) // 2])
