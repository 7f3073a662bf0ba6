"""The importance-weighted bound holds one draw at a time: more draws take longer, not more memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "bound_memory.py"
FEW_GROWTH = 8  # MiB: allocator's noise; the outputs of 45 further draws of 400 images would be 18
MANY_GROWTH = 64  # MiB: the outputs of 995 further draws of 1,000 images would be 972
LARGEST = 15e6 / 2  # multiply-accumulates of a forward pass of an image that still counts as small


def bounds(images, draws, timeout):
    """What the script found for these numbers of draws, in one process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, (images, *draws))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["macs"] <= LARGEST
    assert [one["k"] for one in found["draws"]] == draws
    return found["draws"]


def test_fifty_draws_need_the_memory_of_five():
    few, many = bounds(400, [5, 50], timeout=300)
    assert many["peak"] - few["peak"] < FEW_GROWTH
    assert few["jensen"]
    assert many["jensen"]


@pytest.mark.slow
def test_a_thousand_draws_of_a_thousand_images_run_in_bounded_memory():
    few, many = bounds(1000, [5, 1000], timeout=1800)
    assert many["peak"] - few["peak"] < MANY_GROWTH
    assert many["peak"] < 1024
    assert many["jensen"]
    assert many["iwae"] > few["iwae"]
