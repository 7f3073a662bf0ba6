"""Peak memory of training steps, each model and variant in a fresh process: `python -m benchmarks.speed.memory JSON`.

A fresh process, since memory that another model or verb once needed would be counted otherwise: allocators keep it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass

from benchmarks.base.children import environment, output_of
from benchmarks.base.errors import UserError

STEPS = 3
"""Training steps: the first makes the optimizer's state, the others run beside it."""
MEANING = {
    "cpu": "peak resident size of a fresh process during 3 training steps",
    "cuda": "peak of memory allocated on the GPU during 3 training steps of a fresh process",
}
ABOVE = "that peak less what was held when model and data were built and no step was taken"


@dataclass(frozen=True)
class Request:
    """A model whose training step is measured: where it comes from, overrides, and where and how it runs."""

    source: str
    row: str | None
    overrides: list[str]
    plain: bool
    device: str
    threads: int
    plugins: list[str]
    hparams: str | None = None


@dataclass(frozen=True)
class Peak:
    """Bytes: of the whole process (on a GPU: allocated), and above what model and data held before the first step."""

    whole: int
    above: int


def measure_peak(request: Request) -> Peak:
    """The peak of a request, from a process of its own.

    Raises:
        UserError: the process failed; carries its last line.
    """
    command = [sys.executable, "-m", "benchmarks.speed.memory", json.dumps(dataclasses.asdict(request))]
    said = output_of(command, environment(request.threads), "peak memory: ")
    return Peak(**json.loads(said.splitlines()[-1]))


def peak_of(request: Request) -> Peak:
    """The peak of a request, measured in this process."""
    import torch

    from benchmarks.base.plugins import import_plugin
    from benchmarks.machine.environment import choose_device
    from benchmarks.machine.peak import held, highest
    from benchmarks.machine.process import keep_freed_memory
    from benchmarks.speed.target import resolve
    from benchmarks.speed.work import job_of, verbs_of

    for plugin in request.plugins:
        import_plugin(plugin)
    if not request.plain:
        keep_freed_memory()  # as our trainings do
    torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    rows = [request.row] if request.row else None
    target = resolve(request.source, rows, request.hparams)[0].overridden(request.overrides)
    verbs = verbs_of(target.trial, request.plain)
    step = verbs["train" if "train" in verbs else "loop"](job_of(target, device))
    assert step is not None
    before = held(device)
    for _ in range(STEPS):
        step()
    whole = highest(device)
    return Peak(whole, whole - before)


if __name__ == "__main__":
    try:
        print(json.dumps(dataclasses.asdict(peak_of(Request(**json.loads(sys.argv[1]))))))
    except UserError as error:
        sys.exit(f"error: {error}")
