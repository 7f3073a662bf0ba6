"""What subnormal numbers cost: PYTHONPATH=.:tests/helpers python -m subnormal_steps [STEPS]

NVAE of the suite fashion-mnist at a learning rate at which it diverges, one thread: median milliseconds of processor
time of every tenth of the steps, and how many gradients of the last one were subnormal; with them and without.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.data import load
from benchmarks.machine.process import flush_subnormals
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from benchmarks.training import loop

SMALLEST = torch.finfo(torch.float32).tiny
SETTINGS = (
    "training.images=24000",
    "training.validations=0",
    "training.learning_rate=3.2e-2",
    "objective.kl_warmup=0.1",
)


def main(steps: int) -> None:
    """Print a line for every tenth of the first `steps` of 375, twice."""
    torch.set_num_threads(1)
    name, table = read_suite("fashion-mnist")
    apply_overrides(table, [f"models.nvae.{setting}" for setting in SETTINGS], None)
    trial = build_suite(name, table, ["nvae"]).trials[0]
    data = load(trial.data)
    for flushed in (False, True):
        if flushed:
            flush_subnormals()
        model = build_model(trial, data.image, torch.device("cpu"))
        print(f"subnormal numbers {'taken for zero' if flushed else 'kept'}", flush=True)
        clock, taken = [time.process_time()], []

        def progress(step, _, __, model=model, clock=clock, taken=taken):
            now = time.process_time()
            taken.append(now - clock[0])
            clock[0] = now
            if step % max(1, steps // 10) == 0:
                gradients = [one.grad for one in model.parameters() if one.grad is not None]
                small = sum(int(((one.abs() < SMALLEST) & (one != 0)).sum()) for one in gradients)
                print(
                    f"step {step:4}: {1e3 * statistics.median(taken):5.0f} ms, {small} subnormal gradients", flush=True
                )
                taken.clear()
                clock[0] = time.process_time()

        with tempfile.TemporaryDirectory() as folder:
            done = iter(range(steps))
            loop.train(model, trial, data, Path(folder), progress, lambda done=done: next(done, None) is None)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
