"""What a model's rate is measured against, other than another model: busy neighbours, the machine's matrix product."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType

import torch

from benchmarks.records.record import Measurement
from benchmarks.report.speed import TRAINING_PASSES
from benchmarks.speed.clock import Turns, Watch, interleave, synchronise
from benchmarks.speed.machine import MATRIX
from benchmarks.speed.spread import Spread, paired_ratio, spread
from benchmarks.speed.throughput import OURS_NAME, Settings, Variant, describe_variant, rate_row
from benchmarks.speed.work import OURS, job_of

ALONE, BESIDE, PRODUCT = "alone", "beside", "product"
NEIGHBOURED = ("train", "sample")
"""What is measured beside neighbours unless told otherwise."""
BUSY = """
import select, sys
busy = False
while True:
    if select.select([sys.stdin], [], [], 0 if busy else None)[0]:
        told = sys.stdin.readline()
        if not told:
            break
        busy = told == "work\\n"
        print(told, end="", flush=True)
    for _ in range(100_000 * busy):
        pass
"""
"""A process that keeps a core busy from being told to "work" until it is told to "rest"; it ends with its parent."""
TURN = 0.5
"""Seconds of a turn beside neighbours: many of the system's time slices."""


class Neighbours:
    """Processes that keep a core busy each inside `awake`; a context manager that ends them."""

    def __init__(self, count: int) -> None:
        start, pipe = [sys.executable, "-S", "-c", BUSY], subprocess.PIPE
        self.processes = [subprocess.Popen(start, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]

    def __enter__(self) -> Neighbours:
        """Wait until all are there."""
        self._tell("rest")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End them."""
        for process in self.processes:
            process.kill()
            process.communicate()

    @property
    def ids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self.processes]

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Inside this block they work."""
        self._tell("work")
        try:
            yield
        finally:
            self._tell("rest")

    def _tell(self, what: str) -> None:
        """Tell all of them, and wait until they have heard."""
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
        for process in self.processes:
            assert process.stdout is not None
            process.stdout.readline()


@dataclasses.dataclass(frozen=True)
class Disturbed:
    """A call whose turns go by while the neighbours work."""

    turns: Turns
    neighbours: Neighbours

    def seconds(self) -> tuple[float, float]:
        """Seconds of one call, averaged over a turn: on the wall's clock, and of all the process's threads."""
        with self.neighbours.awake():
            return self.turns.seconds()


def kept_rows(variant: Variant, settings: Settings, count: int) -> list[Measurement]:
    """Rates of each verb alone and beside so many busy processes, in turns, and the share that is kept there."""
    job = job_of(variant.target, settings.device, settings.draws)
    details, rows = describe_variant(variant, job, settings), list[Measurement]()
    with Neighbours(count) as neighbours:
        for verb in settings.what:
            call = OURS[verb](job)
            if call is None:
                continue
            turns, watch = Turns(call, synchronise(settings.device), turn=TURN), Watch(neighbours.ids)
            times = interleave({ALONE: turns, BESIDE: Disturbed(turns, neighbours)}, settings.seconds)
            around = {**details, **dataclasses.asdict(watch.stop()), "neighbours": count}
            rates = {name: [job.batch / t for t in found.wall] for name, found in times.items()}
            rows += [
                rate_row(f"{verb}_throughput", spread(found), {**around, "variant": name})
                for name, found in rates.items()
            ]
            share = paired_ratio(rates[BESIDE], rates[ALONE])
            rows.append(_ratio_row(f"{verb}_kept", share, "of the rate alone", around))
    return rows


def product_rows(variant: Variant, settings: Settings) -> list[Measurement]:
    """GFLOP/s of the training step and of a product of large matrices, in turns, and the former's share."""
    job = job_of(variant.target, settings.device)
    details = describe_variant(variant, job, settings)
    a, b = (torch.ones(MATRIX, MATRIX, device=settings.device) for _ in range(2))
    step, watch = OURS["train"](job), Watch()
    assert step is not None
    calls = {OURS_NAME: step, PRODUCT: lambda: torch.mm(a, b)}
    times = interleave(calls, settings.seconds, synchronise(settings.device))
    around = {**details, **dataclasses.asdict(watch.stop())}
    flops = {
        OURS_NAME: 2 * TRAINING_PASSES * details["macs_per_image"] * job.batch,
        PRODUCT: 2 * MATRIX**3,
    }
    rates = {name: [flops[name] / t / 1e9 for t in found.wall] for name, found in times.items()}
    rows = [_gflops_row(spread(found), {**around, "variant": name}) for name, found in rates.items()]
    share = paired_ratio(rates[OURS_NAME], rates[PRODUCT])
    return [*rows, _ratio_row("train_of_product", share, "of the matrix product", around)]


def _gflops_row(rate: Spread, details: dict[str, object]) -> Measurement:
    interval = {"low": rate.low, "high": rate.high, "spread_kind": "IQR"}
    return Measurement("train_gflops", rate.median, "GFLOP/s", True, rate.n, **interval, details=details)


def _ratio_row(metric: str, ratio: Spread, unit: str, details: dict[str, object]) -> Measurement:
    return Measurement(metric, ratio.median, unit, True, ratio.n, ratio.low, ratio.high, "IQR", details=details)
