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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("marks", MARKS)
def test_in_the_interpreter(name, marks):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-x", "-m", marks, "-p", "no:cacheprovider", str(HERE / name)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
