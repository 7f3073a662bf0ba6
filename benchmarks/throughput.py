"""Images per second of a training step, encoding, reconstruction and sampling; run in a process of its own."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.config import CellConfig
from benchmarks.data import keyed_generator
from benchmarks.environment import load_average
from benchmarks.record import Measurement
from benchmarks.streams import seed_tensor
from benchmarks.train import StepGuard, TrainingState, build_optimizer, model_input, train_step
from models.output import Draw, Model

WARMUP_CALLS = 3
MIN_REPEATS, MAX_REPEATS = 7, 200


def measure(model: Model, cell: CellConfig, images: Tensor, seconds: float = 0.8) -> list[Measurement]:
    """Median rates with their interquartile range over repeats of one batch, and peak memory.

    Works on a copy of `model`; `images` (B, C, H, W) uint8 is the batch; each verb is timed for about `seconds`.
    """
    device = next(model.parameters()).device
    x = model_input(images, cell, keyed_generator(cell.seed, "throughput")).to(device)
    load = load_average()
    details = {
        "batch": len(x),
        "threads": torch.get_num_threads(),
        "precision": cell.training.precision,
        "device": device.type,
        "load": load,
        "warmup_calls": WARMUP_CALLS,
    }
    results = []
    for verb, call in _verbs(model, cell, x).items():
        if call is None:
            results.append(Measurement(f"{verb}_throughput", None, "images/s", True, note="no prior", details=details))
            continue
        rates = sorted(len(x) / t for t in time_calls(call, device, seconds))
        low, middle, high = (rates[int(q * (len(rates) - 1))] for q in (0.25, 0.5, 0.75))
        results.append(
            Measurement(f"{verb}_throughput", middle, "images/s", True, len(rates), low, high, "IQR", details=details)
        )
    return [*results, peak_memory(device, details)]


def time_calls(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each repeat of `call` after warm-up, the device drained around each."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(WARMUP_CALLS):
        call()
    synchronise()
    times: list[float] = []
    while len(times) < MIN_REPEATS or (sum(times) < seconds and len(times) < MAX_REPEATS):
        start = time.perf_counter()
        call()
        synchronise()
        times.append(time.perf_counter() - start)
    return times


def _verbs(model: Model, cell: CellConfig, x: Tensor) -> dict[str, Callable[[], object] | None]:
    """What is timed, by name; sampling is None for a model without a prior."""
    draw = Draw(seed_tensor(cell.seed, "throughput", x.device))
    evaluating = copy.deepcopy(model).eval()

    @torch.inference_mode()
    def encode() -> object:
        return evaluating.encode(evaluating.padded(x), draw)

    @torch.inference_mode()
    def reconstruct() -> object:
        return evaluating(x, Draw(draw.seed, at_mean=True)).likelihood.mean()

    @torch.inference_mode()
    def sample() -> object:
        return evaluating.sample(len(x), draw).mean()

    return {
        "train": _training_call(copy.deepcopy(model).train(), cell, x, draw),
        "encode": encode,
        "reconstruct": reconstruct,
        "sample": sample if model.has_prior else None,
    }


def _training_call(model: Model, cell: CellConfig, x: Tensor, draw: Draw) -> Callable[[], object]:
    """One full training step (loss, gradients, clipping, optimizer) on the same batch again and again."""
    optimizer = build_optimizer(cell.training, model, x.device)
    steps = WARMUP_CALLS + MAX_REPEATS
    state = TrainingState(model, optimizer, torch.zeros(steps, device=x.device), steps)
    guard = StepGuard(model, optimizer)
    return lambda: train_step(state, guard, cell, x, draw)


def peak_memory(device: torch.device, details: dict[str, object]) -> Measurement:
    """Peak memory in MiB: allocated by torch on a GPU; resident size of this process, imports included, on a CPU."""
    if device.type == "cuda":
        value, note = torch.cuda.max_memory_allocated(device) / 2**20, "allocated on the GPU"
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        value, note = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, "resident size, imports included"
    return Measurement("peak_memory", value, "MiB", False, details={**details, "meaning": note})
