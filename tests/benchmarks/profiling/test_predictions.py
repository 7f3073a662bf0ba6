"""Predicted times stand beside measured ones, for every operation that was timed."""

import json
import math
from pathlib import Path

from benchmarks.profiling.predictions import predicted_us, table

ROOT = Path(__file__).parents[3]
PROFILE = json.loads((ROOT / "results/kernels/profile.json").read_text())


def test_every_timed_operation_has_a_prediction_that_it_does_not_beat():
    for path in sorted((ROOT / "results/gpu").glob("*h100*/timing.json")):
        found = table(json.loads(path.read_text()), PROFILE, "sm_90", "H100 SXM")
        assert len(found)
        assert (found["measured us"] >= found["predicted us"]).all()


def test_the_parts_of_an_operation_add_up():
    parts = [predicted_us(PROFILE, f"batch norm and swish, {one}", 1e6, "float32", "sm_90", "H100 SXM") for one in WAYS]
    whole = predicted_us(PROFILE, "batch norm and swish, training", 1e6, "float32", "sm_90", "H100 SXM")
    assert math.isclose(sum(parts), whole)
    assert math.isnan(predicted_us(PROFILE, "nothing", 1e6, "float32", "sm_90", "H100 SXM"))


WAYS = ("reduction", "writing")
