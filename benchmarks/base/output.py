"""What standard output and error can take: any encoding, and a reader that goes away."""

from __future__ import annotations

import contextlib
import io
import os
import sys

PIPE_CLOSED = 141
"""Exit code where the reader of our output is gone: what a shell says of a process that SIGPIPE ended."""


def allow_any_encoding() -> None:
    """Print what the terminal's encoding lacks as "?", where that would be an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def flush() -> None:
    """Write out what was printed, so that an error comes here and not when Python ends."""
    if sys.stdout is not None:  # None where it was closed from the start
        sys.stdout.flush()


def discard() -> None:
    """Send to nowhere what is still to be printed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file behind it: nothing to write later
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
