"""The one error a user sees: a single line that says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130  # exit code after Ctrl-C
FAILED = 1
"""Exit code where a trial failed that nothing was wrong with beforehand."""
GOES_ON = 75
"""Exit code of a trial that is to go on from its saved state, in a fresh process (EX_TEMPFAIL in sysexits.h)."""


class UserError(Exception):
    """Bad input of any kind; the command line prints its one line and exits with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    r"""`text` with escapes such as \x1b in place of what moves a cursor or cannot be encoded: names come from files."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class GivenUpError(UserError):
    """A training that was given up: one line as well, but no bad input; exit code 1."""


class StarvedError(GivenUpError):
    """A training that found no memory in this process, and goes on with less in a fresh one if its state is saved."""


def first_line(error: BaseException) -> str:
    """What an error says, its first line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that looks most like `name`, or None if none does."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return close[0] if close else None


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """An error for a wrong name: "unknown model 'nvea'; did you mean 'nvae'? (one of: ae, nvae, vae)"."""
    known = sorted(options)
    guess = nearest(name, known)
    hint = f"did you mean '{guess}'? " if guess else ""
    return UserError(f"unknown {kind} '{name}'; {hint}(one of: {', '.join(known) or 'none'})")
