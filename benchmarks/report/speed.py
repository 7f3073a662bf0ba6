"""Text of timings: the measurements of one command, and the table of the speed suite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmarks.records.record import Measurement
from benchmarks.report.layout import DASH, csv, frame, in_markdown, markdown, wrapped

TRAINING_PASSES = 3
"""Multiply-accumulates of a training step in those of a forward pass: forward, gradient of inputs, of weights."""
TOLERANCE = 0.15
"""Relative distance of the baseline from what it stands for, on a like machine, beyond which ratios are void."""
NAMES = {
    "train": "training step",
    "loop": "training loop",
    "encode": "encoding",
    "reconstruct": "reconstruction",
    "sample": "sampling",
    "memory": "peak memory of the step",
}
HEADINGS = (
    "config",
    "batch",
    "threads",
    "what",
    "ours",
    "against",
    "theirs",
    "ratio",
    "by CPU time",
    "goal",
    "stretch",
    "verdict",
    "load",
)
TEXT_COLUMNS = ("config", "what", "against", "verdict")
METHOD = (
    "Rates are images a second, medians with the interquartile range in brackets. Ours and the other take turns (A B, "
    "B A, ...), each in a process of its own; a turn repeats a call for 0.2 s, after one call that is not timed. The "
    "ratio is the median of the ratios of paired turns, with their interquartile range. Where the ranges of the two "
    "rates overlap, no winner is named. A goal is met if the whole range of the ratio meets it. By CPU time: the ratio "
    "of images per CPU second with one thread, which other processes hardly change.",
    "Our process keeps the memory that a step frees, as in our trainings; the other side's runs with the system's own "
    "settings, as the code that it stands for does.",
    "Against pythae, which has an environment of its own, short processes run in turns; a round is a pair of them.",
    "Peak memory is MiB above what the built model and its data hold before the first step, in a fresh process for "
    "each side (3 training steps); the whole processes are given in the notes. One value each, no spread.",
    "Beside busy processes, which keep a core each, the same model takes turns with itself alone: the ratio is the "
    "part of its rate that it keeps. Against the matrix product: GFLOP/s of our training step over those of large "
    "square matrices in the same turns.",
    "Load: load average before and after, and the share of the machine's cores that other processes used meanwhile.",
)


@dataclass(frozen=True)
class SpeedRow:
    """One comparison: ours and another's value with quartiles, their ratio, and what it should reach.

    Rates in images a second, memory in MiB; None where nothing was measured, and `note` says why.
    """

    config: str
    overrides: list[str]
    batch: int
    threads: int
    what: str
    draws: int | None
    unit: str
    vs: str
    goal: float
    stretch: float
    verdict: str
    ours: float | None = None
    ours_low: float | None = None
    ours_high: float | None = None
    other: float | None = None
    other_low: float | None = None
    other_high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    cpu_ratio: float | None = None
    rounds: int | None = None
    load: float | None = None
    load_after: float | None = None
    other_cpu: float | None = None
    macs_per_image: int | None = None
    operations: str = ""
    note: str = ""
    neighbours: int | None = None

    @property
    def gflops(self) -> float | None:
        """GFLOP/s of our training step, from the multiply-accumulates of its forward pass; None for other rows.

        So of what is measured beside busy processes, or in GFLOP/s already.
        """
        if self.neighbours or self.unit != "images/s":
            return None
        if self.what not in ("train", "loop") or self.ours is None or not self.macs_per_image:
            return None
        return 2 * TRAINING_PASSES * self.macs_per_image * self.ours / 1e9

    @property
    def model(self) -> str:
        """The configuration with what was changed in it."""
        return " ".join([self.config, *self.overrides])

    @property
    def title(self) -> str:
        """What was measured, in words."""
        found = f"IWAE, K = {self.draws}" if self.what == "iwae" else NAMES.get(self.what, self.what)
        busy = "process" if self.neighbours == 1 else "processes"
        return f"{found} beside {self.neighbours} busy {busy}" if self.neighbours else found


@dataclass
class SpeedTable:
    """The speed suite's results: rows, breakdowns of training steps, and the machine with its limits.

    `references` are what the baseline should show on a like machine.
    """

    title: str
    environment: dict[str, Any]
    compiler: bool
    limits: list[dict[str, Any]]
    references: list[dict[str, Any]] = field(default_factory=list)
    rows: list[SpeedRow] = field(default_factory=list)
    breakdowns: list[dict[str, Any]] = field(default_factory=list)

    def add(self, rows: Iterable[SpeedRow], breakdown: dict[str, Any] | None = None) -> None:
        """Add the rows of a comparison."""
        self.rows += rows
        if breakdown is not None:
            self.breakdowns.append(breakdown)

    def gemm_share(self, row: SpeedRow) -> float | None:
        """GFLOP/s of a training step over those of a matrix product on as many threads."""
        rates = {limit["threads"]: limit["gemm_gflops"] for limit in self.limits}
        return row.gflops / rates[row.threads] if row.gflops is not None and rates.get(row.threads) else None


def speed_json(table: SpeedTable) -> str:
    """The table as JSON."""
    return json.dumps({"schema_version": 1, **dataclasses.asdict(table), "rows": _row_dicts(table)}, indent=1)


def speed_csv(table: SpeedTable) -> str:
    """The rows as CSV."""
    return csv(frame(_row_dicts(table)))


def _row_dicts(table: SpeedTable) -> list[dict[str, Any]]:
    """The rows with what is derived from them."""
    derived = [{"gflops": row.gflops, "gemm_share": table.gemm_share(row)} for row in table.rows]
    return [{**dataclasses.asdict(row), **more} for row, more in zip(table.rows, derived, strict=True)]


def speed_markdown(table: SpeedTable) -> str:
    """The whole report: table, notes, limits, breakdowns, and how it was made."""
    parts = [f"# {in_markdown(table.title)}", _conditions(table), markdown(_comparison_frame(table.rows), TEXT_COLUMNS)]
    notes = [wrapped(f"{_place(row)}: {row.note}", "- ") for row in table.rows if row.note]
    parts += ["\n".join(dict.fromkeys(notes))] if notes else []
    references = _reference_frame(table)
    if len(references):
        parts += ["## The baseline beside what it stands for", markdown(references, ("config", "what", "source"))]
    parts += ["## The machine's own limits", markdown(_limits_frame(table))]
    if table.breakdowns:
        parts += ["## Where our training step's time goes", markdown(_breakdown_frame(table))]
    parts += ["## How it was measured", *map(wrapped, METHOD)]
    return "\n\n".join(parts)


def _conditions(table: SpeedTable) -> str:
    """Machine and software."""
    found = table.environment
    operations = dict.fromkeys(row.operations for row in table.rows if row.operations)
    compiler = "" if table.compiler else ", without a C compiler"
    commit = (found.get("commit") or "unknown")[:10] + (" with changes" if found.get("dirty") else "")
    instructions = f", {found['instruction_set']}" if found.get("instruction_set") else ""
    return wrapped(
        f"`{found['command']}` on {found['device_name']}, {found['cores']} cores{instructions}{compiler}; operations: "
        f"{', '.join(operations) or DASH}; torch {found['torch']}, commit {commit}, {found['date']}."
    )


def _place(row: SpeedRow) -> str:
    """Which row of the table this is."""
    return f"{row.model}, batch {row.batch}, threads {row.threads}, {row.title} against {row.vs}"


def _comparison_frame(rows: Sequence[SpeedRow]) -> pd.DataFrame:
    """The comparison table, cells as text."""
    cells = [
        (
            row.model,
            str(row.batch),
            str(row.threads),
            f"{row.title} ({row.unit})",
            _value(row.ours, row.ours_low, row.ours_high),
            row.vs,
            _value(row.other, row.other_low, row.other_high),
            _value(row.ratio, row.ratio_low, row.ratio_high),
            _value(row.cpu_ratio),
            _aim(row, row.goal),
            _aim(row, row.stretch),
            row.verdict,
            load_text(row.load, row.load_after, row.other_cpu),
        )
        for row in rows
    ]
    return pd.DataFrame(cells, columns=list(HEADINGS))


def _aim(row: SpeedRow, value: float) -> str:
    """What the ratio should reach."""
    return f"{'<=' if row.what == 'memory' else '>='} {value:g}"


def significant(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _value(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A value with its range, if that is one."""
    if value is None:
        return DASH
    spread = low is not None and high is not None and low != high
    return significant(value) + (f" [{significant(low or 0.0)}, {significant(high or 0.0)}]" if spread else "")


def load_text(load: float | None, after: float | None, others: float | None) -> str:
    """Load averages before and after, and what others used of the CPU."""
    loads = [f"{value:.1f}" for value in (load, after) if value is not None]
    said = ["-".join(loads)] if loads else []
    said += [f"others {others:.0%}"] if others is not None else []
    return ", ".join(said) or DASH


def _reference_frame(table: SpeedTable) -> pd.DataFrame:
    """The baseline's rates beside those known from elsewhere, and whether they agree within `TOLERANCE`."""
    rates = {(r.model, r.batch, r.threads, r.what): r.other for r in table.rows if r.vs == "baseline"}
    cells = []
    for one in table.references:
        place = (one["label"], one["batch"], one["threads"], one["what"])
        rate = rates.get(place)
        if rate is not None:
            ratio = rate / one["rate"]
            agrees = "yes" if abs(ratio - 1) <= TOLERANCE else "no"
            where = (place[0], str(place[1]), str(place[2]), NAMES[place[3]])
            cells.append((*where, significant(rate), significant(one["rate"]), f"{ratio:.2f}", agrees, one["source"]))
    headings = ["config", "batch", "threads", "what", "baseline (images/s)", "known (images/s)", "ratio"]
    return pd.DataFrame(cells, columns=[*headings, f"within {TOLERANCE:.0%}", "source"])


def _limits_frame(table: SpeedTable) -> pd.DataFrame:
    """Limits by number of threads, and the best share of the matrix product that a training step reaches."""
    cells = []
    for limit in table.limits:
        shares = [table.gemm_share(row) for row in table.rows if row.threads == limit["threads"]]
        found = [share for share in shares if share is not None]
        ends = dict.fromkeys(f"{end(found):.0%}" for end in (min, max) if found)
        share = " to ".join(ends) or DASH
        rates = [significant(limit[name]) for name in ("gemm_gflops", "convolution_gflops", "copy_gb_per_s")]
        cells.append((str(limit["threads"]), *rates, share))
    headings = [
        "threads",
        "matrix product (GFLOP/s)",
        "3x3 convolution (GFLOP/s)",
        "copy (GB/s)",
        "our training steps, of the matrix product",
    ]
    return pd.DataFrame(cells, columns=headings)


def _breakdown_frame(table: SpeedTable) -> pd.DataFrame:
    """Shares by kind of operation, with the rate of the same step in GFLOP/s."""
    kinds = list(dict.fromkeys(kind for one in table.breakdowns for kind in one["shares"]))
    cells = []
    for one in table.breakdowns:
        shares = [f"{one['shares'].get(kind) or 0.0:.1%}" for kind in kinds]
        cells.append((one["config"], str(one["batch"]), str(one["threads"]), *shares, _step_rate(table, one)))
    return pd.DataFrame(cells, columns=["config", "batch", "threads", *kinds, "GFLOP/s"])


def _step_rate(table: SpeedTable, one: dict[str, Any]) -> str:
    """GFLOP/s of the training step that was broken down, with their share of the matrix product."""
    place = (one["config"], one["batch"], one["threads"])
    for row in table.rows:
        if row.gflops is not None and (row.model, row.batch, row.threads) == place:
            share = table.gemm_share(row)
            return significant(row.gflops) + (f" ({share:.0%})" if share is not None else "")
    return DASH


def measurements_csv(rows: Sequence[Measurement]) -> str:
    """Measurements as CSV, their details as columns."""
    flat = [dataclasses.asdict(row) for row in rows]
    return csv(frame([{**{k: v for k, v in row.items() if k != "details"}, **row["details"]} for row in flat]))


def measurements_text(rows: Sequence[Measurement]) -> str:
    """The measurements of one model and what it was compared with, a line each."""
    if not rows:
        return "nothing was measured"
    first = rows[0].details
    conditions = f"batch {first['batch']}, threads {first['threads']}, {first['precision']}, {first['device']}"
    instructions = f", {first['instruction_set']}" if first.get("instruction_set") else ""
    lines = [f"{first['target']}: {conditions}, operations: {first['operations']}{instructions}"]
    width = max(len(row.details["variant"]) for row in rows)
    lines += [_line(row, width) for row in rows if not row.metric.endswith("_share")]
    shares = [f"{row.metric.removesuffix('_share')} {row.value:.1%}" for row in rows if row.metric.endswith("_share")]
    lines += [f"  training step: {', '.join(shares)}"] if shares else []
    lines += [f"  load {around}"] if (around := _around(rows)) else []
    return "\n".join(lines)


def _line(row: Measurement, width: int) -> str:
    """One measurement; `width` is that of the longest variant's name."""
    value = f"{_value(row.value, row.low, row.high)} {row.unit}" if row.value is not None else f"{DASH} ({row.note})"
    said = [f"  {row.metric:24} {row.details['variant']:{width}}  {value}"]
    said += [f"n = {row.n}"] if row.n and row.n > 1 else []
    said += [row.note] if row.note and row.value is not None else []
    return "  ".join(said)


def _around(rows: Sequence[Measurement]) -> str:
    """The load before the first and after the last measurement, and the most that others used of the CPU."""
    found = [row.details for row in rows if "load" in row.details]
    others = [details["other_cpu"] for details in found if details["other_cpu"] is not None]
    return load_text(found[0]["load"], found[-1]["load_after"], max(others, default=None)) if found else ""
