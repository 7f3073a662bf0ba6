"""What a page of the documentation tells its reader to do, and doing it: fenced blocks, run in the order of the page.

    ```python                   runs, with the names of the blocks before it
    ```python title="mine.py"   is written to that file (any language)
    ```sh                       runs; `python -m benchmarks` in this process, which saves starts of Python
    ```text title="prints"      stands, with "..." for what is left out, in what the block before has printed

A comment in the line above a block says what it takes: `<!-- slow -->`, `<!-- needs fashion-mnist -->`, both with a
comma between, or `<!-- not run: why -->`.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny_run import Said, run_here

from benchmarks.base.errors import UserError
from benchmarks.data import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(
    r"(?:^<!-- (?P<marks>[^>]+) -->\n)?^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$",
    re.M | re.S,
)
CALL = "python -m benchmarks "
SHELL = set("|&;<>$`*")
"""What makes a line one for a shell."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title ("" without), text, and the marks above it."""

    language: str
    title: str
    body: str
    marks: tuple[str, ...]

    @property
    def not_run(self):
        """Why it is never run; "" where it is."""
        return next((mark.removeprefix("not run: ") for mark in self.marks if mark.startswith("not run: ")), "")

    @property
    def slow(self):
        return "slow" in self.marks

    @property
    def needs(self):
        return [mark.removeprefix("needs ") for mark in self.marks if mark.startswith("needs ")]


def blocks(page):
    """The blocks of a page in their order."""
    found = BLOCK.finditer(PAGES[page].read_text())
    return [Block(m["language"], m["title"] or "", m["body"], tuple(split_marks(m["marks"] or ""))) for m in found]


def split_marks(text):
    """The marks of a comment; a reason may hold commas."""
    return [text] if text.startswith("not run: ") else [mark.strip() for mark in text.split(",") if mark.strip()]


def lacking(need):
    """Why this machine has not the data set that a block needs; "" where it has."""
    try:
        load(need, download=False)
    except UserError as error:
        return str(error)
    return ""


class Reader:
    """Someone who follows a page in a folder of their own, in which the repository's results and examples lie."""

    def __init__(self, folder):
        self.folder, self.names, self.printed = folder, {"__name__": "page"}, ""
        (folder / "results").mkdir()
        for path in (ROOT / "results").iterdir():
            if path.name != "local":
                (folder / "results" / path.name).symlink_to(path)
        for name in ("examples", "benchmarks", "docs", "tests"):
            (folder / name).symlink_to(ROOT / name)

    def follow(self, block):
        """Do what the block says."""
        if block.language == "text" and block.title == "prints":
            shows(self.printed, block.body)
        elif block.title:
            (self.folder / block.title).write_text(block.body)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.body, "<page>", "exec"), self.names)
            self.printed = out.getvalue()
        elif block.language == "sh":
            self.printed = "".join(self.called(line) for line in commands(block.body))

    def called(self, line):
        """What a command prints; it must succeed."""
        if line.startswith(CALL) and not SHELL & set(re.sub(r"'[^']*'", "", line)):
            said = run_here(*shlex.split(line, comments=True)[3:])
        else:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            found = subprocess.run(
                ["bash", "-ec", line], cwd=self.folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            said = Said(found.returncode, found.stdout, found.stderr)
        assert said.returncode == 0, f"{line}\n{said.stdout}\n{said.stderr}"
        return said.stdout


def commands(body):
    """The lines of a shell block, continued ones joined, without comments."""
    lines = body.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def shows(printed, expected):
    """Whether the lines stand in what was printed, in their order; numbers, widths and rules of tables may differ."""
    lines, at = [rough(line) for line in printed.splitlines()], 0
    for wanted in filter(None, (rough(line) for line in expected.splitlines())):
        found = next((i for i in range(at, len(lines)) if wanted in lines[i]), None)
        assert found is not None, f"expected after line {at}: {wanted}\ngot:\n{printed}"
        at = found


def rough(line):
    """A line with its numbers as 0, and its spaces and rules as one, not bold; "" for the dots of what is left out."""
    line = re.sub(r"[\d,.]*\d", "0", line.strip().replace("*", ""))
    return re.sub(r"-{3,}:?", "---", re.sub(r"\s+", " ", line)).removeprefix("...").removesuffix("...").strip()
