"""One step in a process of its own: `python -m benchmarks.gpu.worker JSON`."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.findings import Findings

PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True)
class Request:
    """A step to run: its module, which has a function `run(findings)`, and what `Findings` is made of."""

    module: str
    path: str
    device: str
    until: float


def end_with_parent() -> None:
    """On Linux: let this process be killed when the one that started it ends, however it does."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def serve(request: Request) -> None:
    """Run the step to its end."""
    findings = Findings(Path(request.path), request.device, request.until)
    importlib.import_module(request.module).run(findings)
    findings.finish()


if __name__ == "__main__":
    end_with_parent()
    serve(Request(**json.loads(sys.argv[1])))
