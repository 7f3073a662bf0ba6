"""One step in a process of its own: `python -m benchmarks.gpu.worker JSON`."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.findings import Findings


@dataclass(frozen=True)
class Request:
    """A step to run: its module, which has a function `run(findings)`, and what `Findings` is made of."""

    module: str
    path: str
    device: str
    until: float


def serve(request: Request) -> None:
    """Run the step to its end."""
    findings = Findings(Path(request.path), request.device, request.until)
    importlib.import_module(request.module).run(findings)
    findings.finish()


if __name__ == "__main__":
    serve(Request(**json.loads(sys.argv[1])))
