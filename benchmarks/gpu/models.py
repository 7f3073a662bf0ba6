"""Step `models`: images a second, memory and launches of hierarchies, in turns with the plain baseline and others.

The most valuable comparisons come first; those that compile whole networks come last.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.base.streams import seeded
from benchmarks.gpu.findings import Fields, Findings
from benchmarks.machine.peak import held, highest
from benchmarks.machine.process import tensor_float32
from benchmarks.profiling.kernel_timing import captured
from benchmarks.speed.baseline.registry import BASELINES
from benchmarks.speed.breakdown import mark, profiled, shares
from benchmarks.speed.clock import Call, interleave, synchronise
from benchmarks.speed.spread import paired_ratio, spread
from benchmarks.speed.target import resolve
from benchmarks.speed.work import OURS, Job, job_of, train
from kernels.reference.backend import REFERENCE
from models.elbo import terms
from models.registry import MODELS, build

Kind = Literal["fused", "reference", "baseline", "compiled", "graph", "baseline graph"]
"""Ours with fused operations; with the plain ones; the plain implementation; ours compiled; ours as CUDA graphs; the
launches of the plain implementation's call as a CUDA graph, which begins with the same weights at every replay."""
Precision = Literal["float32", "TF32", "bfloat16"]
SECONDS = {"cuda": 1.0, "cpu": 0.01}
"""Of each side of a comparison, at least; rounds have a least number too."""
TOP_KERNELS = 15
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
NO_FLOWS = ("model.flows=0",)
"""The plain implementation has none."""
EAGER_STEPS = 40.0
"""Seconds that a comparison needs in which one side trains launch by launch: 35 to 40 on an H100."""


@dataclass(frozen=True)
class Comparison:
    """A call of a preset under a precision, and what takes turns with it; `needs` seconds at least."""

    preset: str
    verb: Literal["train", "sample", "elbo", "iwae"]
    precision: Precision
    kind: Kind = "fused"
    other: Kind | None = "baseline"
    batch: int | None = None
    overrides: tuple[str, ...] = ()
    draws: int = 1
    needs: float = 15.0

    @property
    def name(self) -> str:
        """All that it is, in a line."""
        settings = [*self.overrides, *([f"batch {self.batch}"] if self.batch else [])]
        draws = f" K={self.draws}" if self.verb == "iwae" else ""
        versus = f" / {self.other}" if self.other else ""
        return ", ".join([self.preset, *settings, self.verb + draws, self.precision, self.kind + versus])


def comparisons(dry: bool) -> Iterator[Comparison]:
    """What is compared, the most valuable first."""
    if dry:
        yield Comparison("nvae-tiny", "train", "float32", batch=2, needs=1)
        yield Comparison("nvae-tiny", "sample", "bfloat16", batch=2, needs=1)
        yield Comparison("nvae-tiny", "elbo", "float32", other="reference", batch=2, needs=1)
        yield Comparison("nvae-tiny", "iwae", "float32", other=None, batch=2, draws=2, needs=1)
        return
    cifar, mnist = "nvae-cifar10", "nvae-mnist"
    precisions: tuple[Precision, ...] = ("TF32", "float32")
    replayed = functools.partial(Comparison, precision="bfloat16", kind="graph", other="baseline graph", needs=30.0)
    others = [name for name, entry in MODELS.items() if name != "nvae" and entry.presets]
    yield replayed(cifar, "train", overrides=NO_FLOWS)
    yield replayed(mnist, "train")
    for name in [
        one for one in others if one in BASELINES
    ]:  # whose plain step asks for the norm, so that none is captured
        first = next(iter(MODELS[name].presets))
        yield Comparison(first, "train", "bfloat16", kind="graph", needs=30)
        yield replayed(first, "sample", needs=15.0)
    yield Comparison(cifar, "train", "bfloat16", kind="graph", overrides=NO_FLOWS, needs=EAGER_STEPS)
    yield replayed(cifar, "sample", overrides=NO_FLOWS)
    yield Comparison(mnist, "train", "bfloat16", kind="graph", needs=EAGER_STEPS)
    yield Comparison(cifar, "train", "bfloat16", other="reference", overrides=NO_FLOWS, needs=EAGER_STEPS)
    yield Comparison(
        cifar, "train", "bfloat16", kind="graph", other="fused", batch=128, overrides=NO_FLOWS, needs=EAGER_STEPS
    )
    yield Comparison(cifar, "train", "TF32", kind="graph", overrides=NO_FLOWS, needs=EAGER_STEPS)
    yield Comparison(mnist, "sample", "bfloat16", kind="graph")
    yield Comparison(cifar, "train", "bfloat16", kind="graph", other="fused", needs=EAGER_STEPS)
    yield Comparison(cifar, "sample", "bfloat16", overrides=NO_FLOWS)
    yield Comparison(cifar, "train", "float32", kind="graph", overrides=NO_FLOWS, needs=EAGER_STEPS)
    yield Comparison(mnist, "train", "bfloat16", needs=EAGER_STEPS)
    yield Comparison(mnist, "train", "TF32", kind="graph", needs=EAGER_STEPS)
    yield Comparison(cifar, "elbo", "TF32", other="reference", overrides=NO_FLOWS)
    yield Comparison(cifar, "iwae", "TF32", overrides=NO_FLOWS, draws=10)
    for name in others:
        plain: Kind = "baseline" if name in BASELINES else "reference"
        yield Comparison(next(iter(MODELS[name].presets)), "train", "bfloat16", other=plain, needs=30)
    for precision in precisions:
        yield Comparison(cifar, "sample", precision, overrides=NO_FLOWS)
    yield Comparison(mnist, "train", "float32", needs=EAGER_STEPS)
    yield Comparison(mnist, "iwae", "TF32", draws=10)
    yield Comparison(cifar, "sample", "bfloat16", batch=256, overrides=NO_FLOWS)
    yield Comparison("nvae-color-small", "train", "bfloat16", kind="compiled", other="fused", needs=60)
    yield Comparison(mnist, "train", "bfloat16", kind="compiled", other="fused", needs=100)


LOOKS: dict[bool, dict[int, Kind]] = {False: {0: "graph", 7: "baseline", 9: "fused"}, True: {0: "fused"}}
"""Behind which comparison a step of the first one is looked into, and of which side; in a dry run at once.

Reading the events of a step of 30 groups takes a quarter of a minute."""
LOOK_SECONDS = {"cuda": 25.0, "cpu": 1.0}


def run(findings: Findings) -> None:
    """All comparisons, and the profile of a step behind the first ones."""
    findings.show(
        (
            *(("images_per_s", "images/s"), ("low", "p25"), ("high", "p75"), ("peak_mib", "peak MiB")),
            *(("other_images_per_s", "other images/s"), ("other_peak_mib", "other MiB")),
            *(("ratio", "ratio"), ("ratio_low", "ratio p25"), ("ratio_high", "ratio p75"), ("launches", "launches")),
            *(("gpu_ms", "GPU ms"), ("wall_ms", "step ms"), ("seconds", "s")),
        )
    )
    device = torch.device(findings.device)
    findings.facts["defaults of torch"] = {
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    findings.note("p25 and p75 are quartiles over rounds; peak memory is above what was held before the side was built")
    todo = list(comparisons(findings.dry))
    for index, one in enumerate(todo):
        findings.case(one.name, functools.partial(compare, one, device), needs=one.needs)
        kind = LOOKS[findings.dry].get(index)
        if kind is not None:
            call = functools.partial(look_into, todo[0], kind, device)
            findings.case(f"{todo[0].name}: launches of {kind}", call, needs=LOOK_SECONDS[device.type])


@functools.lru_cache(maxsize=1)
def _job(preset: str, overrides: tuple[str, ...], device: torch.device, batch: int | None, draws: int) -> Job:
    """The work of a preset on the device."""
    settings = [*overrides, *([f"training.batch_size={batch}"] if batch else [])]
    return job_of(resolve(preset)[0].overridden(settings), device, draws)


def job_for(one: Comparison, kind: Kind, device: torch.device) -> Job:
    """The work of one side; its trial holds precision and compilation."""
    job = _job(one.preset, one.overrides, device, one.batch, one.draws)
    precision = "bfloat16" if one.precision == "bfloat16" else "float32"
    options = {"precision": precision, "compile": {"compiled": "on", "graph": "graph"}.get(kind, "off")}
    trial = dataclasses.replace(job.trial, training=dataclasses.replace(job.trial.training, **options))
    model = job.model
    if kind == "reference":
        with seeded(trial.seed, "initialisation"):
            model = build(trial.model, trial.model_config, model.image, trial.likelihood_spec, REFERENCE).to(device)
    return dataclasses.replace(job, trial=trial, model=model, notes=[])


def call_of(one: Comparison, kind: Kind, device: torch.device) -> Call:
    """What is timed of one side, under its precision.

    Raises:
        RuntimeError: it should be compiled and was not.
    """
    job = job_for(one, kind, device)
    with precision_of(one, kind):
        if kind.startswith("baseline"):
            call: Call | None = BASELINES[job.trial.model][one.verb](job)
        else:
            call = elbo(job) if one.verb == "elbo" else OURS[one.verb](job)
    if kind == "compiled" and not any(note.startswith("compiled") for note in job.notes):
        raise RuntimeError("; ".join(job.notes) or "not compiled")
    found = _present(call)

    def timed() -> object:
        with precision_of(one, kind):
            return found()

    replayed = kind == "baseline graph" or (kind == "graph" and one.verb != "train")
    return captured(timed) if replayed else timed


def _present(call: Call | None) -> Call:
    if call is None:
        raise ValueError("the model has no prior")
    return call


@contextlib.contextmanager
def precision_of(one: Comparison, kind: Kind) -> Iterator[None]:
    """The precision around a call; our training step brings its own autocast."""
    outside = one.precision == "bfloat16" and (one.verb != "train" or kind.startswith("baseline"))
    autocast = torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=outside)
    with tensor_float32(one.precision != "float32"), autocast:
        yield


def elbo(job: Job) -> Call:
    """The ELBO of a batch, without gradients."""
    model, x, draw = copy.deepcopy(job.model).eval(), job.x(), job.draw()
    return torch.inference_mode()(lambda: terms(model(x, draw), x).elbo)


def compare(one: Comparison, device: torch.device) -> Fields:
    """Rates in turns, their ratio, and the peak memory of both sides."""
    calls, peaks = dict[str, Callable[[], object]](), dict[str, float]()
    kinds: list[Kind] = [one.kind, *([one.other] if one.other else [])]
    for kind in kinds:
        tidy(device)
        before = held(device)
        calls[kind] = call_of(one, kind, device)
        for _ in range(2):
            calls[kind]()
        synchronise(device)()
        peaks[kind] = (highest(device) - before) / 2**20
    batch = job_for(one, "fused", device).batch
    times = interleave(calls, SECONDS[device.type], synchronise(device))
    rates = {kind: [batch / seconds for seconds in found.wall] for kind, found in times.items()}
    mine = spread(rates[one.kind])
    fields: dict[str, Any] = {
        "batch": batch,
        "images_per_s": mine.median,
        "low": mine.low,
        "high": mine.high,
        "rounds": mine.n,
        "peak_mib": peaks[one.kind],
        "wall_ms": 1e3 * batch / mine.median,
    }
    if one.other:
        other, ratio = spread(rates[one.other]), paired_ratio(rates[one.kind], rates[one.other])
        fields |= {"other_images_per_s": other.median, "other_low": other.low, "other_high": other.high}
        fields |= {"other_peak_mib": peaks[one.other]}
        fields |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
    calls.clear()
    tidy(device)
    return fields


def look_into(one: Comparison, kind: Kind, device: torch.device) -> Fields:
    """Launches of a call, its waits, the kernels that take longest, and the share of each kind of operation."""
    gpu = device.type == "cuda"
    if kind == "fused" and one.verb == "train":
        marked = train(job_for(one, kind, device), mark)
        with precision_of(one, kind):
            found = profiled(marked, gpu)
    else:
        call = call_of(one, kind, device)
        call()  # a graph is captured in the second call
        found = profiled(call, gpu)
    events = list(found.events() or ())
    names, times = Counter[str](), Counter[str]()
    ranges = {event.name for event in events if event.device_type.name == "CPU"}  # which the GPU's line repeats
    for event in events:
        if event.device_type.name == "CUDA" and event.name not in ranges:
            names[event.name] += 1
            times[event.name] += event.time_range.elapsed_us()
    copies = {name: n for name, n in names.items() if name.startswith(("Memcpy", "Memset"))}
    waits = Counter(event.name for event in events if event.name in WAITS)
    tidy(device)
    return {
        "launches": sum(names.values()) - sum(copies.values()) if gpu else None,
        "gpu_ms": sum(times.values()) / 1e3 if gpu else None,
        "copies": copies,
        "waits": dict(waits),
        "shares": shares(events, gpu) if kind == "fused" else None,
        "longest kernels": {
            name[:160]: {"ms": times[name] / 1e3, "launches": names[name]} for name, _ in times.most_common(TOP_KERNELS)
        },
    }


def tidy(device: torch.device) -> None:
    """Free what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
