"""Runs the tests of the Triton kernels in Triton's interpreter, each file in a process of its own.

The interpreter is chosen when Triton is imported, and a process cannot both interpret and compile ahead of time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("interpreted_*.py"))


MARKS = [pytest.param("not slow", id="quick"), pytest.param("slow", id="slow", marks=pytest.mark.slow)]


def start(name: str, marks: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-m", marks, "-p", "no:cacheprovider", str(HERE / name)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=HERE.parents[1], **pipes)


@pytest.fixture(scope="module")
def runs():
    """Processes by file and marks; the files of one set of marks run beside each other."""
    started = {}
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("marks", MARKS)
def test_in_the_interpreter(runs, name, marks):
    pytest.importorskip("triton")
    for file in FILES:
        if (file, marks) not in runs:
            runs[file, marks] = start(file, marks)
    output, _ = runs[name, marks].communicate()
    nothing_slow = runs[name, marks].returncode == pytest.ExitCode.NO_TESTS_COLLECTED and marks == "slow"
    assert runs[name, marks].returncode == 0 or nothing_slow, output[-6000:]
