"""The way from a command to the first training step: which modules it goes without, and what is measured of it."""

import json
import subprocess
import sys

import pytest
from tiny_run import run_here, write_suite

from benchmarks.base.children import environment
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials import start

SLOW = ("torch._dynamo", "sympy", "torchvision", "torch_fidelity", "pandas", "scipy", "matplotlib", "jinja2", "sklearn")
"""A tenth of a second each, at least; the first two a second."""
CODE = """
import json, runpy, sys, time
slow, sys.argv[1:] = sys.argv[3:], [sys.argv[1], str(time.monotonic()), sys.argv[2]]
runpy.run_module("benchmarks.trials.start", run_name="__main__")
print(json.dumps([name for name in slow if name in sys.modules]))
"""


@pytest.mark.parametrize(("half", "slow"), [(start.RUN, SLOW), (start.TRIAL, (*SLOW, "triton"))])
def test_a_training_on_a_cpu_starts_without_what_it_does_not_need(tmp_path, half, slow):
    write_config(build_suite(*read_suite("quick"), ["vae"]).trials[0], tmp_path)
    command = [sys.executable, "-c", CODE, str(tmp_path), half, *slow]
    said = subprocess.run(command, capture_output=True, text=True, env=environment(1), check=True)
    stages, found = map(json.loads, said.stdout.splitlines())
    assert tuple(stages) == start.STAGES
    assert all(seconds > 0 for stage, seconds in stages.items() if (half, stage) != (start.RUN, "first step"))
    assert found == [] or (half == start.RUN and found == of_meta_tensors_alone())


def of_meta_tensors_alone():
    """The slow modules that torch imports to draw on the meta device, where `run` builds models: sympy in 2.9."""
    code = "import json, sys, torch; torch.empty(2, device='meta').uniform_(); print(json.dumps([*sys.modules]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(1), check=True)
    return [name for name in SLOW if name in json.loads(said.stdout)]


def test_the_stages_of_both_processes_are_added(tmp_path, monkeypatch):
    run = [dict.fromkeys(start.STAGES, seconds) for seconds in range(6)]
    monkeypatch.setattr(
        start, "started", lambda *_: {start.RUN: run.pop(), start.TRIAL: dict.fromkeys(start.STAGES, 1.0)}
    )
    monkeypatch.setattr("kernels.cpu.library.seconds_to_build", lambda: 2.5)
    said = run_here("throughput", write_suite(tmp_path), "--models", "vae", "--what", "start", "--json")
    found = {row["metric"]: row["value"] for row in json.loads(said.stdout)}
    stages = ("start_import", "start_data", "start_kernels", "start_model", "start_first_step")
    assert found == {
        "start": 15.0,
        **dict.fromkeys(stages, 3.0),
        "start_compilation": 2.5,
    }  # without the first


def test_a_start_needs_a_data_set():
    said = run_here("throughput", "nvae-mnist-small", "--what", "start")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "which has a data set" in said.stderr
