"""Processes that this one starts: their environment, and their last words where they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from benchmarks.base.errors import UserError


def environment(threads: int | None) -> dict[str, str]:
    """This process's environment with OpenMP at so many threads, None leaving that as it is."""
    return {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}


def last_words(text: str, code: int) -> str:
    """The last line that a process wrote to stderr, without "error: "; its exit code where it wrote nothing."""
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def output_of(command: Sequence[str], env: Mapping[str, str], what: str = "") -> str:
    """What a command says on stdout.

    Raises:
        UserError: it failed; carries its last line, after `what`.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=dict(env), check=False)
    if done.returncode:
        raise UserError(f"{what}{last_words(done.stderr, done.returncode)}")
    return done.stdout
