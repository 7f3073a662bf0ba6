"""Peak memory of training steps, each model and variant in a fresh process: `python -m benchmarks.speed.memory JSON`.

A fresh process, since memory that another model or verb once needed would be counted otherwise: allocators keep it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STEPS = 3
"""Training steps: the first makes the optimizer's state, the others run beside it."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What sets VmHWM back to the present size when written to clear_refs (man 5 proc)."""
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
    from benchmarks.base.errors import UserError

    command = [sys.executable, "-m", "benchmarks.speed.memory", json.dumps(dataclasses.asdict(request))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(request.threads)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise UserError(f"peak memory: {lines[-1].removeprefix('error: ')}")
    return Peak(**json.loads(result.stdout.splitlines()[-1]))


def peak_of(request: Request) -> Peak:
    """The peak of a request, measured in this process."""
    import torch

    from benchmarks.cli.parser import import_plugin
    from benchmarks.machine.environment import choose_device
    from benchmarks.machine.process import keep_freed_memory
    from benchmarks.speed.target import resolve
    from benchmarks.speed.work import job_of, verbs_of

    for plugin in request.plugins:
        import_plugin(plugin)
    if not request.plain:
        keep_freed_memory()  # as our trainings do
    torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    target = resolve(request.source, [request.row] if request.row else None)[0].overridden(request.overrides)
    verbs = verbs_of(target.trial, request.plain)
    step = verbs["train" if "train" in verbs else "loop"](job_of(target, device))
    assert step is not None
    before = held(device)
    for _ in range(STEPS):
        step()
    whole = highest(device)
    return Peak(whole, whole - before)


def held(device: object) -> int:
    """Bytes held now; the recorded peak is set back to it where the system allows."""
    import torch

    if isinstance(device, torch.device) and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        RESET.write_text(RESET_PEAK)
        return status_bytes("VmRSS")
    except (OSError, KeyError):
        return highest(device)


def highest(device: object) -> int:
    """The most bytes held since `held`.

    On Linux VmHWM, for ru_maxrss of a process that another started begins at its parent's peak; elsewhere ru_maxrss.
    """
    import torch

    if isinstance(device, torch.device) and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return status_bytes("VmHWM")
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status_bytes(name: str) -> int:
    """A size in /proc/self/status.

    Raises:
        OSError: there is no such file.
        KeyError: it has no such line.
    """
    sizes = {}
    for line in STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        sizes[key] = value
    return int(sizes[name].split()[0]) * 2**10


if __name__ == "__main__":
    from benchmarks.base.errors import UserError

    try:
        print(json.dumps(dataclasses.asdict(peak_of(Request(**json.loads(sys.argv[1]))))))
    except UserError as error:
        sys.exit(f"error: {error}")
