"""Training steps timed in several processes: torchrun starts this file as a module.

At one effective batch: N processes take the steps that one takes, each a share of every batch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from benchmarks.base.children import environment, output_of
from benchmarks.base.plugins import import_plugin
from benchmarks.machine.process import frozen_garbage, keep_freed_memory
from benchmarks.speed.clock import MIN_ROUNDS, WARMUP_CALLS, synchronise
from benchmarks.speed.target import Target, resolve
from benchmarks.speed.work import job_of
from benchmarks.storage.weights import build_model
from benchmarks.training.guard import StepGuard
from benchmarks.training.ranks import Ranks
from benchmarks.training.shared import initialise_from_data, share_steps
from benchmarks.training.state import TrainingState, build_optimizer
from benchmarks.training.step import train_step

MOST_STEPS = 400


@dataclass(frozen=True)
class Request:
    """A target in another process, and for how long its steps are timed; `device` is cpu or cuda."""

    source: str
    row: str | None
    overrides: list[str]
    device: str
    threads: int
    seconds: float
    plugins: list[str]


@dataclass(frozen=True)
class Steps:
    """Seconds of single steps by the clock, and of the cores of all processes together in one step, on average."""

    wall: list[float]
    cpu: float


def timed_steps(request: Request, ranks: int) -> Steps:
    """Training steps one after another, taken by so many processes together.

    Raises:
        UserError: a process failed; carries its last line.
    """
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*start, "-m", "benchmarks.speed.scaling.together", json.dumps(dataclasses.asdict(request))]
    said = output_of(command, environment(request.threads), f"{ranks} processes: ")
    return Steps(**json.loads(said.strip().splitlines()[-1]))


def serve(request: Request, ranks: Ranks) -> Steps:
    """What `timed_steps` returns, measured as one of the processes."""
    keep_freed_memory()
    torch.set_num_threads(request.threads)
    for plugin in request.plugins:
        import_plugin(plugin)
    target = resolve(request.source, [request.row] if request.row else None)[0].overridden(request.overrides)
    device = torch.device("cuda", ranks.index) if request.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.count > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        return _timed(target, device, ranks, request.seconds)
    finally:
        if ranks.count > 1:
            dist.destroy_process_group()


def _timed(target: Target, device: torch.device, ranks: Ranks, seconds: float) -> Steps:
    """Steps on one batch again and again, as many as take about `seconds` by the first process."""
    job, trial = job_of(target, device), target.trial
    model = build_model(trial, target.image, device, shared=True) if ranks.count > 1 else job.model
    state = TrainingState(model.train(), build_optimizer(trial.training, model, device), torch.zeros(1), MOST_STEPS)
    state.losses = torch.zeros(MOST_STEPS + WARMUP_CALLS + 1)
    x, draw, guard, drain = job.x(), job.draw(), StepGuard(model, state.optimizer), synchronise(device)
    if ranks.count > 1:
        initialise_from_data(model, x, draw, trial.training.precision == "bfloat16")
    share_steps(state, ranks)

    def step() -> float:
        started = time.perf_counter()
        train_step(state, guard, trial, x, draw)
        drain()
        return time.perf_counter() - started

    with frozen_garbage():
        each = min(step() for _ in range(WARMUP_CALLS))
        (steps,) = ranks.told(min(MOST_STEPS, max(MIN_ROUNDS, round(seconds / each))))
        before = time.process_time()
        wall = [step() for _ in range(int(steps))]
        (cpu,) = ranks.summed(time.process_time() - before)
    return Steps(wall, cpu / steps)


if __name__ == "__main__":
    here = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    found = serve(Request(**json.loads(sys.argv[1])), here)
    if here.first:
        print(json.dumps(dataclasses.asdict(found)), flush=True)
