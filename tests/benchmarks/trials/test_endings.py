"""How a trial ends: interrupted and continued, hopeless, failed with a reason, or the same in every process."""

import os
import re
import signal
import subprocess
import sys

import pytest
from tiny_run import modes, records, run_here, write_suite

from benchmarks.storage.weights import write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials.processes import execute
from benchmarks.trials.schedule import plan


def command(*arguments):
    return [sys.executable, "-m", "benchmarks", *map(str, arguments)]


NVAE_ROW = """
[models.nvae]
groups_fine_to_coarse = [1, 1]
latent_channels = 2
channels_encoder = 4
channels_decoder = 4
"""


def quality(record):
    """The measurements that do not depend on the machine's state."""
    return [m for m in record["measurements"] if m["metric"] != "peak_memory"]


def test_two_processes_give_the_same_quality_and_weights_bit_for_bit(tmp_path):
    """As two clones would: nothing is shared but the configuration; the second finds no cache either."""
    suite = write_suite(tmp_path, images=32, evaluation='extractor = "mnist-cnn-v1"')
    suite.write_text(suite.read_text() + NVAE_ROW)
    (trial,) = build_suite(*read_suite(str(suite)), ["nvae"]).trials
    found = []
    for name, caches in (("one", {}), ("two", {"XDG_CACHE_HOME": str(tmp_path / "cache")})):
        folder = tmp_path / name / "trial"
        write_config(trial, folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **caches}
        result = subprocess.run(command("trial", folder), env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        found.append((records(tmp_path / name)["nvae"], (folder / "weights.safetensors").read_bytes()))
    (first, weights), (second, same_weights) = found
    valued = {m["metric"] for m in first["measurements"] if m["value"] is not None}
    assert {"elbo", "iwae_bound", "mse", "sample_fid", "kid", "recall", "reconstruction_kid"} <= valued
    assert quality(first) == quality(second)
    assert [curve["values"] for curve in first["curves"]] == [curve["values"] for curve in second["curves"]]
    assert weights == same_weights


@pytest.mark.usefixtures("untimed")
def test_ctrl_c_keeps_what_is_done_and_the_same_command_continues(tmp_path):
    suite = write_suite(tmp_path, images=6400)
    arguments = command("run", suite, "--models", "vae", "--out", tmp_path / "out")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if re.search(r"train \d+/400", line):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert records(tmp_path / "out")["vae"]["status"] == "interrupted"
    state = next((tmp_path / "out").glob("vae-*/training.safetensors"))
    assert state.stat().st_size > 0
    continued = run_here(*arguments[3:])
    assert continued.returncode == 0, continued.stderr
    assert records(tmp_path / "out")["vae"]["images_seen"] == 6400


@pytest.mark.usefixtures("untimed")
def test_a_hopeless_trial_is_a_row_and_the_sweep_goes_on(tmp_path):
    suite = write_suite(tmp_path, images=160)
    hopeless = "training = { learning_rate = 1e30, warmup = 0.0, hopeless_after = 3 }"
    suite.write_text(suite.read_text().replace("[models.ae]\n", f"[models.ae]\n{hopeless}\n"))
    result = run_here("run", suite, "--out", tmp_path / "out", umask=0o027)
    assert result.returncode == 1  # nothing was wrong with the input
    assert len(re.findall("ae seed 0: a training step was not finite and is undone", result.stderr)) == 1
    assert re.search(r"ae seed 0: given up at step \d of 10: the last 3 steps were not finite.*1e\+30", result.stderr)
    found = records(tmp_path / "out")
    assert found["ae"]["status"] == "failed"
    assert found["ae"]["steps"] < 10
    assert "lower training.learning_rate" in found["ae"]["error"]
    assert found["vae"]["status"] == "done"
    assert "failed" in result.stdout
    assert set(modes(tmp_path / "out").values()) == {0o640}


def test_a_log_keeps_what_earlier_starts_said_and_the_error_is_that_of_the_last(tmp_path, monkeypatch):
    python = tmp_path / "python"
    monkeypatch.setattr("benchmarks.trials.processes.sys.executable", str(python))
    planned = plan(build_suite(*read_suite(str(write_suite(tmp_path))), ["ae"]), tmp_path / "out")
    reasons = []
    for said in ("echo 'error: the disk is full' >&2", "true"):
        python.write_text(f"#!/bin/sh\n{said}\nexit 3\n")
        python.chmod(0o755)
        reasons += execute(planned, jobs=1).failed
    assert "the disk is full" in reasons[0]
    assert "exit code 3" in reasons[1]
    head, first, second = (planned.trials[0].folder / "log.txt").read_text().splitlines()
    assert first == "error: the disk is full"
    for line in (head, second):
        assert re.fullmatch(r"# \d{4}-\d\d-\d\dT\S+ \S+ -m benchmarks trial \S+ --data-hash [0-9a-f]{64}", line)
