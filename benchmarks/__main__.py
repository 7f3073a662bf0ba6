"""Command line: python -m benchmarks VERB."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def check_packages() -> None:
    """Exit with one line unless `kernels`, `models` and `benchmarks` are this checkout's own."""
    import importlib.util

    for name in ("kernels", "models", "benchmarks"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec is not None and spec.origin else None
        if found != ROOT:
            sys.exit(f"error: another distribution provides '{name}' ({found}); use a clean environment")


def main() -> int:
    """Run the command line; returns the exit code."""
    check_packages()
    from benchmarks.cli.parser import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
