"""The tests of the C kernels once more, on NEON: built for 64-bit ARM and run by an emulator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

ROOT = Path(__file__).resolve().parents[3]
HELPERS = ROOT / "tests" / "helpers"
FILES = {
    "test_cell.py": "",
    "test_pixels.py": "not PyTorch",
    "test_planes.py": "",
    "test_adamax.py": "",
    "test_weights.py": "",
    "test_backend.py": "not plain and not built_for and not to_build_for",
}
"""Files, and which of their tests run: not those without C, nor of the library's own building."""
SECONDS = 1800


@pytest.mark.slow
@pytest.mark.skipif(bool(emulated.missing()), reason=f"needs {' and '.join(emulated.missing())} (apt-get install)")
@pytest.mark.parametrize("file", FILES)
def test_kernels_hold_on_neon(file):
    path = os.pathsep.join([str(ROOT), str(HELPERS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "emulated", "-v", "-k", FILES[file], f"tests/kernels/cpu/{file}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "C kernels: emulated, NEON" in done.stdout
    passed, skipped = (re.search(rf"(\d+) {what}", done.stdout) for what in ("passed", "skipped"))
    assert passed is not None
    assert int(passed[1]) > 0
    assert skipped is None, skipped
