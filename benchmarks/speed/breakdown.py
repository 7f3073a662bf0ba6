"""Where a training step's time goes, by kind of operation, from torch.profiler."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.speed.clock import Call
from benchmarks.speed.work import Job, loop
from kernels.ops import Ops
from models.output import Likelihood, LikelihoodSpec, Model

PREFIX = "kind of operation: "
"""Name of the profiler ranges that `mark` puts around parts of a model."""
OTHER = "other"
FUSED = "fused cells"
"""Whole residual cells in C: norm, activation and convolution in one pass over memory, with no seam to time at."""
RANGES = {
    FUSED: "FusedCell",
    "latents": "^kind of operation: latents$",
    "likelihood": "^kind of operation: likelihood$",
    "regularisers": "^kind of operation: regularisers$",
    "loader": "^kind of operation: loader$",
    "optimizer": r"^Optimizer\.(step|zero_grad)#|^aten::_foreach_|^aten::_fused_adam",
}
"""Kind -> what an event or one around it is named; these claim all that happens inside them."""
OPERATIONS = {
    "norms": r"batch_norm|BatchNorm|layer_norm|[Ww]eight_?[Nn]orm|vaebench::norm",
    "convolutions": r"conv|Conv|::(add|b|badd)?mm$|(Addm|Bm|M)mBackward|[Ll]inear",
    "latents": r"Gaussian|gaussian",
    "likelihood": r"Mixture|mixture|Bernoulli|binary_cross_entropy|BinaryCrossEntropy",
    "regularisers": r"Spectral|spectral",
}
"""Kind -> what an operation is named, of those outside the ranges; the innermost name that fits decides."""
KINDS = ("convolutions", "norms", *RANGES, OTHER)
"""The kinds in the order of a table."""

BACKWARD, ENGINE = 1, "autograd::engine::evaluate_function: "
"""Scope of the profiler's events for nodes of the backward pass, and what the events around those are named."""
LOG_LEVEL, SILENT = "KINETO_LOG_LEVEL", "99"


class Event(Protocol):
    """What is read of a profiler's event."""

    name: str
    cpu_parent: Any
    sequence_nr: int
    scope: int
    time_range: Any


def matching(name: str, table: dict[str, str]) -> str | None:
    """The first kind in `table` whose pattern is found in `name`."""
    return next((kind for kind, pattern in table.items() if re.search(pattern, name)), None)


def lineage(event: Event) -> Iterable[Event]:
    """The event and those around it, from the inside out."""
    current: Event | None = event
    while current is not None:
        yield current
        current = current.cpu_parent


def claimed(event: Event) -> str | None:
    """The kind of the outermost range around the event."""
    found = None
    for one in lineage(event):
        found = matching(one.name, RANGES) or found
    return found


def is_backward(event: Event) -> bool:
    """Whether the event is a node of the backward pass, or the engine's work around one."""
    return event.scope == BACKWARD or event.name.startswith(ENGINE)


def claimed_sequences(events: Iterable[Event]) -> dict[int, str]:
    """Kind by the number of an autograd node, for nodes made inside a range: their gradients belong there, too.

    Several operations carry the number of the next node that will be made; the last of them makes it.
    """
    last: dict[int, Event] = {}
    for event in events:
        number = event.sequence_nr
        if number < 0 or is_backward(event):
            continue
        if number not in last or event.time_range.start >= last[number].time_range.start:
            last[number] = event
    return {number: kind for number, event in last.items() if (kind := claimed(event)) is not None}


def kind_of(event: Event, sequences: dict[int, str]) -> str:
    """The event's kind: of the range around it, of the range whose gradient it is, or of its operation's name."""
    of_range = claimed(event)
    if of_range is not None:
        return of_range
    names = []
    for one in lineage(event):
        if is_backward(one) and one.sequence_nr in sequences:
            return sequences[one.sequence_nr]
        names.append(one.name)
    return next((kind for name in names if (kind := matching(name, OPERATIONS)) is not None), OTHER)


def shares(events: Iterable[Any], gpu: bool) -> dict[str, float]:
    """Share of each kind in the own time of all events: on the CPU's clock, or of the GPU's kernels; they sum to 1."""
    on_cpu = [event for event in events if event.device_type.name == "CPU"]
    sequences = claimed_sequences(on_cpu)
    times = dict.fromkeys(KINDS, 0.0)
    for event in on_cpu:
        own = event.self_device_time_total if gpu else event.self_cpu_time_total
        if own > 0:
            times[kind_of(event, sequences)] += own
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items()} if total else times


def within(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` inside a profiler range of that kind."""

    def ranged(*arguments: Any, **named: Any) -> Any:
        with record_function(f"{PREFIX}{kind}"):
            return call(*arguments, **named)

    return ranged


@dataclasses.dataclass(frozen=True)
class MarkedLikelihood:
    """A likelihood whose log probability lies in a range."""

    inner: Likelihood

    def log_prob(self, x: Tensor) -> Tensor:
        """As the inner one's."""
        with record_function(f"{PREFIX}likelihood"):
            return self.inner.log_prob(x)

    def mean(self) -> Tensor:
        """As the inner one's."""
        return self.inner.mean()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """As the inner one's."""
        return self.inner.sample(generator)


@dataclasses.dataclass(frozen=True)
class MarkedSpec:
    """A likelihood spec that builds marked likelihoods."""

    inner: LikelihoodSpec

    def parameter_channels(self, channels: int) -> int:
        """As the inner one's."""
        return self.inner.parameter_channels(channels)

    def build(self, parameters: Tensor, ops: Ops) -> Likelihood:
        """The inner one's likelihood, marked."""
        return MarkedLikelihood(self.inner.build(parameters, ops))


def mark(model: Model) -> Model:
    """A copy of the model whose latents, likelihood and regularisers lie in profiler ranges."""
    twin = copy.deepcopy(model)
    draws = {name: within("latents", getattr(twin.ops, name)) for name in ("gaussian_sample_kl", "gaussian_sample")}
    twin.ops = dataclasses.replace(twin.ops, **draws)
    twin.likelihood = MarkedSpec(twin.likelihood)
    twin.penalty = within("regularisers", twin.penalty)
    return twin


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The profiler's own messages on stderr kept back inside the block."""
    before = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = SILENT
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOG_LEVEL]
        else:
            os.environ[LOG_LEVEL] = before


def profiled(step: Call, gpu: bool) -> profile:
    """The profile of one call after another that warms up."""
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with quiet(), profile(activities=activities) as found:
        with record_function("step"):
            step()
        if gpu:
            torch.cuda.synchronize()
    return found


def step_breakdown(job: Job, trace: Path | None = None) -> dict[str, float]:
    """Share of each kind in the time of one training step, with the drawing of its images (`loader`).

    Python between operations is `other`.
    The profiler itself slows small operations, so that their share comes out too large. With `trace`, a Chrome trace
    of that step is written there.
    """
    gpu = job.device.type == "cuda"
    found = profiled(loop(job, mark, functools.partial(within, "loader")), gpu)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(trace))
    return shares(found.events() or (), gpu)
