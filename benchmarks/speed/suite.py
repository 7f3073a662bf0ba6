"""Runs the speed suite: every comparison in a process of its own, its results written as they come."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.base.children import output_of
from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from benchmarks.base.waiting import as_found
from benchmarks.machine.environment import collect
from benchmarks.records.record import Measurement
from benchmarks.report.speed import SpeedRow, SpeedTable, speed_csv, speed_json, speed_markdown
from benchmarks.speed.clock import Watch
from benchmarks.speed.machine import measure_limits
from benchmarks.speed.plan import PYTHAE, Aim, Choice, Comparison, SpeedSuite, comparisons
from benchmarks.speed.spread import Goal, Spread, paired_ratio, spread, verdict
from benchmarks.speed.target import resolve
from benchmarks.speed.throughput import BREAKDOWN, MEMORY, OURS_NAME, PLAIN_NAME

PYTHAE_LOOP = Path(__file__).parent / "baseline" / "pythae_loop.py"
COMPILER_VARIABLES = ("CC", "CXX")
LIMIT_SECONDS = 0.5


@dataclass
class Done:
    """A finished suite as text, and what failed."""

    markdown: str = ""
    csv: str = ""
    json: str = ""
    failed: list[str] = field(default_factory=list)


def run(suite: SpeedSuite, choice: Choice, out: Path) -> Done:
    """Run the suite, writing speed.json, speed.csv and speed.md into `out` after every comparison."""
    chosen, done = comparisons(suite, choice), Done()
    device = torch.device(choice.device)
    threads = sorted({one.threads for one in chosen})
    environment = collect(device, max(threads), "float32")
    limits = [dataclasses.asdict(measure_limits(count, device, LIMIT_SECONDS)) for count in threads]
    references = [dataclasses.asdict(one) for one in suite.reference]
    table = SpeedTable(suite.title, dataclasses.asdict(environment), choice.compiler, limits, references)
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(choice, choice.seconds or suite.seconds, Path(scratch))
        for index, comparison in enumerate(chosen):
            print(f"{index + 1} of {len(chosen)}: {comparison.name}", file=sys.stderr, flush=True)
            try:
                table.add(*runner.compare(comparison))
            except UserError as error:
                done.failed.append(f"{comparison.name}: {error}")
                table.add([failed_row(comparison, aim, str(error)) for aim in comparison.case.aims])
            done = write(table, out, done)
    return done


def write(table: SpeedTable, out: Path, done: Done) -> Done:
    """Write the three files; returns their text with what failed so far."""
    written = Done(speed_markdown(table), speed_csv(table), speed_json(table), done.failed)
    write_text_atomically(out / "speed.md", written.markdown + "\n")
    write_text_atomically(out / "speed.csv", written.csv)
    write_text_atomically(out / "speed.json", written.json + "\n")
    return written


@dataclass(frozen=True)
class Runner:
    """Runs comparisons in processes of their own; without a compiler: on an empty PATH with an empty cache."""

    choice: Choice
    seconds: float
    scratch: Path

    def environment(self, threads: int) -> dict[str, str]:
        """Environment variables of a process."""
        variables = {**as_found(os.environ), "OMP_NUM_THREADS": str(threads)}  # our own set what they need
        if self.choice.compiler:
            return variables
        kept = {name: value for name, value in variables.items() if name not in COMPILER_VARIABLES}
        return {**kept, "PATH": str(self.scratch), "XDG_CACHE_HOME": str(self.scratch)}

    def compare(self, comparison: Comparison) -> tuple[list[SpeedRow], dict[str, Any] | None]:
        """The rows of a comparison, and the breakdown of its training step if it has one.

        Raises:
            UserError: a process failed.
        """
        if comparison.case.vs == PYTHAE:
            return self.against_pythae(comparison), None
        whats = [aim.what for aim in comparison.case.aims]
        measured = self.throughput(comparison, [*whats, *([BREAKDOWN] if "train" in whats else [])], PLAIN_NAME)
        rows = [row_of(comparison, aim, measured) for aim in comparison.case.aims]
        return rows, breakdown_of(comparison, measured)

    def throughput(self, comparison: Comparison, what: Sequence[str], vs: str | None) -> list[Measurement]:
        """What the verb `throughput` measures in a process of its own."""
        case = comparison.case
        command = [sys.executable, "-m", "benchmarks", "throughput", case.target, "--json", "--what", ",".join(what)]
        command += ["--batch", str(comparison.batch), "--threads", str(comparison.threads)]
        command += ["--device", self.choice.device, "--seconds", str(self.seconds), "--iwae", str(case.draws)]
        command += [*(["--models", case.row] if case.row else []), *(["--vs", vs] if vs else [])]
        command += [part for assignment in case.set for part in ("--set", assignment)]
        command += [part for plugin in self.choice.plugins for part in ("--plugin", plugin)]
        return [Measurement(**row) for row in json.loads(self.output(command, comparison.threads))]

    def output(self, command: Sequence[str], threads: int) -> str:
        """What a process printed.

        Raises:
            UserError: it failed; carries its last line.
        """
        return output_of(command, self.environment(threads))

    def against_pythae(self, comparison: Comparison) -> list[SpeedRow]:
        """Our training loop and pythae's, each in its own environment: short processes in turns."""
        python, case = self.choice.pythae, comparison.case
        if python is None:
            return [failed_row(comparison, aim, "not measured: needs --pythae PYTHON") for aim in case.aims]
        images = resolve(case.target, [case.row] if case.row else None)[0].images(comparison.batch)
        np.save(self.scratch / "images.npy", images.numpy())
        script = [python, str(PYTHAE_LOOP), str(self.scratch / "images.npy"), "--config", case.pythae]
        script += ["--batch", str(comparison.batch), "--threads", str(comparison.threads), "--steps", str(case.steps)]
        aim, watch = case.aims[0], Watch()
        ours: list[Measurement] = []
        theirs: list[dict[str, Any]] = []
        for index in range(case.rounds):
            for who in ("ours", "theirs") if index % 2 == 0 else ("theirs", "ours"):
                if who == "ours":
                    ours += self.throughput(comparison, [aim.what], None)
                else:
                    theirs.append(json.loads(self.output(script, comparison.threads).strip().splitlines()[-1]))
        pair = [row.value for row in ours if row.value is not None], [one["images_per_second"] for one in theirs]
        details = {**ours[0].details, **dataclasses.asdict(watch.stop())}
        note = ", ".join(f"{name} {version}" for name, version in theirs[0]["versions"].items())
        return [filled_row(comparison, aim, (spread(pair[0]), spread(pair[1])), paired_ratio(*pair), details, note)]


def spread_of(measurement: Measurement) -> Spread:
    """The quartiles of a measurement; a single value is its own."""
    value = measurement.value
    assert value is not None
    low, high = measurement.low, measurement.high
    return Spread(value if low is None else low, value, value if high is None else high, measurement.n or 1)


def find(measured: Sequence[Measurement], metric: str, variant: str) -> Measurement:
    """The measurement of a variant.

    Raises:
        UserError: there is none.
    """
    for row in measured:
        if row.metric == metric and row.details["variant"] == variant and row.value is not None:
            return row
    raise UserError(f"{metric} of {variant}: expected a value, got none")


def row_of(comparison: Comparison, aim: Aim, measured: Sequence[Measurement]) -> SpeedRow:
    """The row of one aim, from what the verb measured."""
    metric = "peak_memory_above_model" if aim.what == MEMORY else f"{aim.what}_throughput"
    ours, other = (find(measured, metric, name) for name in (OURS_NAME, PLAIN_NAME))
    pair = spread_of(ours), spread_of(other)
    if aim.what != MEMORY:
        speedup = find(measured, f"{aim.what}_speedup", OURS_NAME)
        draws = [one.median * comparison.case.draws for one in pair]
        note = f"{draws[0]:,.0f} and {draws[1]:,.0f} draws/s" if aim.what == "iwae" else ""
        return filled_row(comparison, aim, pair, spread_of(speedup), speedup.details, note)
    ratio = paired_ratio([pair[0].median], [pair[1].median])
    whole = [find(measured, "peak_memory", name).value or 0.0 for name in (OURS_NAME, PLAIN_NAME)]
    note = f"whole process: {whole[0]:,.0f} and {whole[1]:,.0f} MiB"
    return filled_row(comparison, aim, pair, ratio, ours.details, note)


def head(comparison: Comparison, aim: Aim) -> dict[str, Any]:
    """What a row says before anything is measured."""
    return {
        "config": comparison.case.label,
        "overrides": list(comparison.case.set),
        "batch": comparison.batch,
        "threads": comparison.threads,
        "what": aim.what,
        "draws": comparison.case.draws if aim.what == "iwae" else None,
        "unit": "MiB" if aim.what == MEMORY else "images/s",
        "vs": comparison.case.vs,
        "goal": aim.goal,
        "stretch": aim.stretch,
    }


def filled_row(
    comparison: Comparison,
    aim: Aim,
    pair: tuple[Spread, Spread],
    ratio: Spread,
    details: dict[str, Any],
    note: str = "",
) -> SpeedRow:
    """A measured row with its verdict."""
    goal = Goal(aim.goal, aim.stretch, lower_is_better=aim.what == MEMORY)
    ours, other = pair
    return SpeedRow(
        **head(comparison, aim),
        ours=ours.median,
        ours_low=ours.low,
        ours_high=ours.high,
        other=other.median,
        other_low=other.low,
        other_high=other.high,
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        cpu_ratio=details.get("cpu_ratio"),
        rounds=ratio.n,
        verdict=verdict(ours, other, ratio, goal),
        load=details.get("load"),
        load_after=details.get("load_after"),
        other_cpu=details.get("other_cpu"),
        macs_per_image=details.get("macs_per_image"),
        operations=str(details.get("operations", "")),
        note=note,
    )


def failed_row(comparison: Comparison, aim: Aim, note: str) -> SpeedRow:
    """A row without values that says why."""
    return SpeedRow(**head(comparison, aim), verdict="-", note=note)


def breakdown_of(comparison: Comparison, measured: Sequence[Measurement]) -> dict[str, Any] | None:
    """Shares of our training step by kind of operation, if they were measured."""
    found = {row.metric.removesuffix("_share"): row.value for row in measured if row.metric.endswith("_share")}
    if not found:
        return None
    model = " ".join([comparison.case.label, *comparison.case.set])
    return {"config": model, "batch": comparison.batch, "threads": comparison.threads, "shares": found}
