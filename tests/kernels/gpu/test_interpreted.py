"""Runs the tests of the Triton kernels in Triton's interpreter, in a process of their own.

The interpreter is chosen when Triton is imported, and a process cannot both interpret and compile ahead of time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(map(str, HERE.glob("interpreted_*.py")))


@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(marks):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-x", "-m", marks, "-p", "no:cacheprovider", *FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
