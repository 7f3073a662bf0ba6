"""A call timed in a process of its own, turn by turn on request: `python -m benchmarks.speed.worker JSON`.

So two implementations take turns, and yet each runs under the settings of its own process: ours keeps
freed memory, which the plain ones, like the code they stand for, do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType

from benchmarks.base.children import environment, last_words
from benchmarks.base.errors import UserError
from benchmarks.base.waiting import as_found
from benchmarks.speed.memory import Request

READY = "ready"


@dataclass(frozen=True)
class Work:
    """What a worker times: a verb of a model, with K draws where it takes some, in turns of so many seconds."""

    request: Request
    verb: str
    draws: int
    turn: float


class Worker:
    """A process that times a call whenever it is asked to; a context manager that ends it."""

    def __init__(self, work: Work) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(dataclasses.asdict(work))]
        pipe, env = subprocess.PIPE, environment(work.request.threads)
        env = as_found(env) if work.request.plain else env  # what the plain one stands for sets nothing
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", env=env
        )

    def __enter__(self) -> Worker:
        """Wait until the model is built and the call is warm."""
        self._read(READY)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def seconds(self) -> tuple[float, float]:
        """Seconds of one call, averaged over a turn: on the wall's clock, and of all the process's threads."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: reading says why
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        wall, cpu = json.loads(self._read())
        return wall, cpu

    def _read(self, expected: str | None = None) -> str:
        """The next line that the process says, or the one that is expected.

        Raises:
            UserError: it ended; carries the last line of its errors.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if expected is None or line.strip() == expected:
                return line
        said = self.process.stderr.read() if self.process.stderr else ""
        raise UserError(f"timing process: {last_words(said, self.process.wait())}")


def serve(work: Work) -> None:
    """Build the call, say that it is ready, and time it once for every line that comes."""
    import torch

    from benchmarks.base.plugins import import_plugin
    from benchmarks.machine.environment import choose_device
    from benchmarks.machine.process import frozen_garbage, keep_freed_memory
    from benchmarks.speed.clock import Turns, synchronise
    from benchmarks.speed.target import resolve
    from benchmarks.speed.work import job_of, verbs_of

    request = work.request
    for plugin in request.plugins:
        import_plugin(plugin)
    if not request.plain:
        keep_freed_memory()
    torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    target = resolve(request.source, [request.row] if request.row else None)[0].overridden(request.overrides)
    try:
        call = verbs_of(target.trial, request.plain)[work.verb](job_of(target, device, work.draws))
    except ValueError as error:
        raise UserError(f"--vs baseline: {error}") from error
    assert call is not None
    turns = Turns(call, synchronise(device), turn=work.turn)
    print(READY, flush=True)
    with frozen_garbage():
        for _ in sys.stdin:
            print(json.dumps(turns.seconds()), flush=True)


if __name__ == "__main__":
    try:
        raw = json.loads(sys.argv[1])
        serve(Work(**{**raw, "request": Request(**raw["request"])}))
    except UserError as error:
        sys.exit(f"error: {error}")
