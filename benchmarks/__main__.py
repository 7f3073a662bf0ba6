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
            print(f"error: another distribution provides '{name}' ({found}); use a clean environment", file=sys.stderr)
            sys.exit(2)


def search_current_folder_last() -> None:
    """Keep a user's own folder `models`, say, from hiding ours where `python -m benchmarks` is called beside it."""
    here = str(Path.cwd())
    if here != str(ROOT) and sys.path[0] in ("", here):
        sys.path.append(sys.path.pop(0))


def main() -> int:
    """Run the command line; returns the exit code."""
    search_current_folder_last()
    check_packages()
    from benchmarks.base.waiting import spin_briefly

    spin_briefly()
    from benchmarks.cli.parser import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
