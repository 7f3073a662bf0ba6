"""The table of a scaling measurement: a row for each number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.layout import DASH, csv, frame, markdown
from benchmarks.report.speed import significant
from benchmarks.speed.scaling.traffic import Traffic
from benchmarks.speed.spread import Spread

MB = 1e6


@dataclass(frozen=True)
class ScalingRow:
    """One target trained by so many processes, at the batch of all of them together.

    `rate` in images/s, None where nothing was timed; `speedup` over one process; `ring_seconds` over the links named,
    of `link` bytes/s; `cpu_rate` in images for a second of a core, of all processes, which others on the machine hardly
    change; `other_cpu` is the share of the machine's cores that those used meanwhile.
    """

    target: str
    ranks: int
    batch: int
    threads: int
    device: str
    rate: Spread | None
    speedup: float | None
    traffic: Traffic
    link: float | None = None
    cpu_rate: float | None = None
    other_cpu: float | None = None

    @property
    def ring_seconds(self) -> float | None:
        """Seconds of a step that its bytes take on the links."""
        return None if self.link is None else self.traffic.ring_seconds(self.ranks, self.link)

    def flat(self) -> dict[str, Any]:
        """The row as plain values."""
        found = dataclasses.asdict(self)
        rate, traffic = found.pop("rate") or {}, found.pop("traffic")
        rates = {f"images_per_second_{name}": rate.get(name) for name in ("low", "median", "high")}
        crossing = {f"{name}_bytes": traffic[name] for name in ("gradients", "norms", "terms")}
        return found | rates | crossing | {"exchanges": traffic["exchanges"], "ring_seconds": self.ring_seconds}


def scaling_csv(rows: Sequence[ScalingRow]) -> str:
    """The rows as CSV."""
    return csv(frame([row.flat() for row in rows]))


def scaling_markdown(rows: Sequence[ScalingRow]) -> str:
    """The rows as a markdown table; columns without a value are left out."""
    cells = [_cells(row) for row in rows]
    kept = [name for name in cells[0] if any(row[name] != DASH for row in cells)]
    return markdown(frame([{name: row[name] for name in kept} for row in cells]))


def _cells(row: ScalingRow) -> dict[str, str]:
    rate, crossing = row.rate, row.traffic
    spread = f" ({significant(rate.low)}-{significant(rate.high)})" if rate else ""
    return {
        "target": row.target,
        "processes": str(row.ranks),
        "batch, together": str(row.batch),
        "threads each": str(row.threads) if rate else DASH,
        "images/s (quartiles)": f"{significant(rate.median)}{spread}" if rate else DASH,
        "over one": DASH if row.speedup is None else f"{row.speedup:.2f}",
        "images/CPU second": DASH if row.cpu_rate is None else significant(row.cpu_rate),
        "others on the CPU": DASH if row.other_cpu is None else f"{row.other_cpu:.0%}",
        "gradients (MB/step)": f"{crossing.gradients / MB:,.2f}",
        "norms (MB/step)": f"{crossing.norms / MB:,.2f}",
        "terms (kB/step)": f"{crossing.terms / 1e3:,.1f}",
        "all-reduces/step": f"{crossing.exchanges:,}",
        "ring (ms/step)": DASH if row.ring_seconds is None else f"{row.ring_seconds * 1e3:,.1f}",
    }
