"""Processes that this one starts: their environment, and their last words where they fail."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.base.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
KILLED = {-9, 128 + 9}
"""Exit codes of a process that SIGKILL ended: its parent's, and a shell's."""
LESS_MEMORY = "use fewer --jobs, a smaller batch_size or a smaller model, or give it more memory"
OUT_OF_MEMORY = f"killed by the system (SIGKILL), which does so where memory runs out; {LESS_MEMORY}"
ABORTED = {-6, 128 + 6}
"""Exit codes of a process that ended itself by SIGABRT, as libraries in C++ and Rust do where memory runs out."""
NOT_ALLOCATED = ("memory allocation of", "bad_alloc")
"""In what such libraries say then."""


def environment(threads: int | None) -> dict[str, str]:
    """This process's environment with OpenMP at so many threads, None leaving that as it is.

    A folder named as one of our packages does not hide it, whatever the current folder is.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    return {**os.environ, **own, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}


def last_words(text: str, code: int) -> str:
    """Why a process failed: the last line that it wrote to stderr, without "error: ", or what its exit code means."""
    if code in KILLED:
        return OUT_OF_MEMORY
    lines = text.strip().splitlines()
    if code in ABORTED:
        failed = [line.strip() for line in lines if any(words in line for words in NOT_ALLOCATED)]
        lines = [f"ended by SIGABRT, out of memory: {line}; {LESS_MEMORY}" for line in failed] or lines
    return lines[-1].removeprefix("error: ") if lines else _meaning(code)


def _meaning(code: int) -> str:
    """The exit code, or the signal that ended the process."""
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"


def output_of(command: Sequence[str], env: Mapping[str, str], what: str = "") -> str:
    """What a command says on stdout.

    Raises:
        UserError: it failed; carries its last line, after `what`.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=dict(env), check=False)
    if done.returncode:
        raise UserError(f"{what}{last_words(done.stderr, done.returncode)}")
    return done.stdout
