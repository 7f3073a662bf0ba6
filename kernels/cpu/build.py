"""Compiles the C kernels into a folder that is the user's alone, and says which file there may be loaded.

What is loaded runs: a library counts only where folder and file belong to this user, no other can write to them, and
the content has the hash that the file is named by. A build that failed is remembered for a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
"""For the compiler, all its calls together; it takes 4 s on a free core."""
REMEMBERED = 24 * 3600.0
"""Seconds for which a build that failed is not tried again."""
DIGITS = 32
"""Hexadecimal digits of the content's hash in the name of a library."""
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MOST_SAID = 4096
"""Bytes of what a compiler says that are read."""


class BuildError(Exception):
    """Why there is no library, in one line."""


@dataclass(frozen=True)
class Place:
    """Where the libraries of one source, compiler and processor lie: a private folder, and how their names begin."""

    folder: Path
    identity: str
    note: str = ""
    """In one line, why the folder is not the usual one; empty where it is."""

    @property
    def failure(self) -> Path:
        """The file that remembers why the last build failed."""
        return self.folder / f"{self.identity}.failed"

    def libraries(self) -> Iterator[Path]:
        """Files that may be loaded; others of this identity are removed."""
        for path in sorted(self.folder.glob(f"{self.identity}-*.so")):
            if is_private(path, stat.S_ISREG) and path.stem == f"{self.identity}-{content_hash(path)}":
                yield path
            else:
                with contextlib.suppress(OSError):
                    path.unlink()

    def remembered(self) -> str | None:
        """Why the last build failed, if that was not long ago."""
        path = self.failure
        if not is_private(path, stat.S_ISREG) or abs(time.time() - path.stat().st_mtime) > REMEMBERED:
            return None  # nor one of a day to come, where the clock was set back
        return f"{path.read_text(errors='replace')[:MOST_SAID]} (remembered for a day; remove {path} to try again)"


def place(folders: Sequence[Path], identity: str) -> Place:
    """The first of these folders that is this user's alone; made where it is missing.

    Raises:
        BuildError: none is.
    """
    problems: list[str] = []
    for folder in folders:
        problem = _problem(folder)
        if problem is None:
            return Place(folder, identity, f"{problems[0]}; {folder} is used in its place" if problems else "")
        problems.append(problem)
    raise BuildError("; ".join(problems))


def is_private(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether the path, no link, is of the kind (such as `stat.S_ISDIR`), this user's, and written by no other."""
    try:
        found = path.lstat()
    except OSError:
        return False
    ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & OTHERS_WRITE)
    return kind(found.st_mode) and ours


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, its first `DIGITS` digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def build(command: Sequence[str], variants: Sequence[Sequence[str]], target: Place) -> Path:
    """The library that `command` with the first of these variants compiles; it appears whole, whoever else builds.

    Raises:
        BuildError: no variant does, or not in time.
        OSError: no room, say.
    """
    deadline = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory(dir=target.folder) as folder:
        partial = Path(folder) / "library.so"
        said = ""
        for variant in variants:
            code, said = _run([*command, "-o", str(partial), *variant], deadline - time.monotonic(), Path(folder))
            if code == 0 and partial.is_file():
                path = target.folder / f"{target.identity}-{content_hash(partial)}.so"
                partial.chmod(0o700)
                partial.replace(path)
                return path
    reason = f"{command[0]} could not build them: {said or 'it wrote no library'}"
    remember(target, reason)
    raise BuildError(reason)


def remember(target: Place, reason: str) -> None:
    """Keep the reason of a failure for the next process."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=target.folder) as folder:
        partial = Path(folder) / "failed"
        partial.write_text(reason, errors="replace")
        partial.chmod(0o600)
        partial.replace(target.failure)


def _problem(folder: Path) -> str | None:
    """Why libraries cannot be kept in the folder, made where it is missing; None where they can."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
    if not is_private(folder, stat.S_ISDIR):
        return f"{folder} can be written by others (chmod 700, or remove it)"
    return None


def _run(command: Sequence[str], seconds: float, folder: Path) -> tuple[int, str]:
    """Exit code of a compiler, and the first line that it says; all its processes end with it, or when time is up."""
    with (folder / "said").open("w+b") as said:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        ) as process:
            try:
                code = process.wait(max(0.0, seconds))
            except subprocess.TimeoutExpired:
                return -signal.SIGKILL, f"it took longer than {SECONDS:.0f} s"
            finally:
                _kill(process)
        said.seek(0)
        lines = said.read(MOST_SAID).decode(errors="replace").strip().splitlines()
    return code, re.sub(r"[^ -~]", "?", lines[0]) if lines else f"it ended with code {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it began."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
