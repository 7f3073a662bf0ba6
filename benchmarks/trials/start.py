"""From a command to its first training step: a process that starts as `run` does, and the process of its trial.

`python -m benchmarks.trials.start FOLDER BEGUN HALF [PLUGIN...]` is one of the two; what each does is done by the
functions that `run` and `trial` call.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.base.children import environment, output_of
from benchmarks.base.errors import UserError
from benchmarks.base.plugins import import_plugin

if TYPE_CHECKING:  # what is imported here is not measured
    from benchmarks.data import DataSet
    from benchmarks.suites.config import TrialConfig

STAGES: tuple[str, ...] = ("import", "data", "kernels", "model", "first step")
"""Python and all modules; images; the compiled library, loaded; the model, planned and built; a step of training."""
RUN, TRIAL = "run", "trial"
ROUNDS = 5
"""Starts that are measured, after one that is not."""
WARM = "warm: files in the system's cache, kernels compiled and data made before"
Seconds = dict[str, float]


class Stages:
    """Seconds of one stage after the other, from a moment of `time.monotonic`, which processes share."""

    def __init__(self, begun: float) -> None:
        self.last = begun
        self.seconds: Seconds = dict.fromkeys(STAGES, 0.0)

    def through(self, stage: str) -> None:
        """All that happened since the last stage belongs to this one."""
        now = time.monotonic()
        self.seconds[stage] += now - self.last
        self.last = now


def started(folder: Path, threads: int, plugins: list[str]) -> dict[str, Seconds]:
    """Seconds of each stage of both processes, for the trial whose config is in `folder`.

    Raises:
        UserError: a process failed; carries its last line.
    """
    first = _half(folder, RUN, threads, plugins)
    return {RUN: first, TRIAL: _half(folder, TRIAL, threads, plugins)}


def _half(folder: Path, half: str, threads: int, plugins: list[str]) -> Seconds:
    command = [sys.executable, "-m", "benchmarks.trials.start", str(folder), str(time.monotonic()), half, *plugins]
    return json.loads(output_of(command, environment(threads), "start: ").splitlines()[-1])


def serve(folder: Path, begun: float, half: str, plugins: list[str]) -> Seconds:
    """Go through the stages of one of the two processes."""
    stages = Stages(begun)
    for plugin in plugins:
        import_plugin(plugin)
    importlib.import_module(f"benchmarks.cli.{half}")
    from benchmarks.data import load
    from benchmarks.machine.environment import choose_device, note_missing_kernels
    from benchmarks.trials.trial import begun as made_ready

    stages.through("import")
    trial, _, _ = made_ready(folder, with_parent=False)
    data = load(trial.data)
    stages.through("data")
    note_missing_kernels(choose_device(trial.device))
    stages.through("kernels")
    (_plan if half == RUN else _first_step)(trial, data, stages)
    return stages.seconds


def _plan(trial: TrialConfig, data: DataSet, stages: Stages) -> None:
    """What `run` does before it starts a trial: its size and folder, and whether it can be evaluated."""
    from benchmarks.evaluation.checks import check
    from benchmarks.trials.schedule import folder_of, planned_in

    with tempfile.TemporaryDirectory() as out:
        planned_in(folder_of(trial, data.content_hash, Path(out)), trial, data)
    check([trial], data)
    stages.through("model")


def _first_step(trial: TrialConfig, data: DataSet, stages: Stages) -> None:
    """What a trial does until its first step is taken."""
    from benchmarks.machine.environment import choose_device
    from benchmarks.storage.weights import build_model
    from benchmarks.training.loop import train

    model, steps = build_model(trial, data.image, choose_device(trial.device)), list[int]()
    stages.through("model")

    def progress(done: int, total: int, phase: str) -> None:
        if not steps:
            stages.through("first step")
        steps.append(done)

    with tempfile.TemporaryDirectory() as folder:
        train(model, trial, data, Path(folder), progress, lambda: bool(steps))


if __name__ == "__main__":
    try:
        print(json.dumps(serve(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])))
    except UserError as error:
        sys.exit(f"error: {error}")
