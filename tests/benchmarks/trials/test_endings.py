"""How a trial ends: interrupted and continued, hopeless, failed with a reason, or the same in every process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from tiny_run import modes, records, run_here, write_suite

from benchmarks.base.errors import GOES_ON
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials.processes import STARTED_AGAIN, execute
from benchmarks.trials.schedule import plan
from benchmarks.trials.trial import run_trial
from benchmarks.trials.watching.progress import progress
from kernels.cpu import library

pytestmark = pytest.mark.usefixtures("unsaved")


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
    """As two clones would: nothing is shared but configuration and compiled kernels; the second finds no features.

    The first is the process of the tests, in which much else has run.
    """
    suite = write_suite(tmp_path, images=32, evaluation='extractor = "mnist-cnn-v1"\nsamples = 33')
    suite.write_text(suite.read_text() + NVAE_ROW)
    (trial,) = build_suite(*read_suite(str(suite)), ["nvae"]).trials
    folders = [tmp_path / name / "trial" for name in ("one", "two")]
    for folder in folders:
        write_config(trial, folder)
    run_trial(folders[0])
    if (kernels := library.folders()[0]).is_dir():  # which take long to compile
        shutil.copytree(kernels, tmp_path / "cache" / "vaebench" / "native")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = command("trial", folders[1])
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    first, second = (records(folder.parent)["nvae"] for folder in folders)
    weights, same_weights = ((folder / "weights.safetensors").read_bytes() for folder in folders)
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


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Lets a shell script stand in for the process of the one trial of a plan, and runs it: the outcome, its starts."""

    def ended(script):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr("benchmarks.trials.processes.sys.executable", str(python))
        planned = plan(build_suite(*read_suite(str(write_suite(tmp_path))), ["ae"]), tmp_path / "out")
        outcome = execute(planned, jobs=1, watching=[progress(planned, 1, "json", sys.stderr)])
        return outcome, (planned.trials[0].folder / "log.txt").read_text().count("benchmarks trial")

    return ended


def test_a_trial_that_lacks_memory_is_started_until_it_says_that_nothing_helps(stand_in, tmp_path, capsys):
    count = f'echo >> {tmp_path}/starts; [ "$(wc -l < {tmp_path}/starts)" -lt 4 ] && exit {GOES_ON}'
    outcome, starts = stand_in(f"{count}; echo 'error: all was too much' >&2; exit 1")
    assert starts == 4
    (reason,) = outcome.failed
    assert "ae seed 0: all was too much" in reason
    assert records(tmp_path / "out")["ae"]["error"] == "all was too much"
    assert not outcome.user_error
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["phase"] for one in said if one["event"] == "ended"] == ["starts again"] * 3 + ["failed"]


def test_a_trial_whose_state_is_lost_each_time_is_not_started_for_ever(stand_in, tmp_path, monkeypatch):
    monkeypatch.setitem(STARTED_AGAIN, "starved", 2)
    _, starts = stand_in(f"echo 'error: training ran out of memory: 9 bytes' >&2; exit {GOES_ON}")
    assert starts == 3
    assert records(tmp_path / "out")["ae"]["error"] == "training ran out of memory: 9 bytes"


@pytest.mark.parametrize(
    "said", ["memory allocation of 12345 bytes failed", "terminate called after ...\n  what():  std::bad_alloc"]
)
def test_a_process_that_aborts_for_want_of_memory_is_a_row_that_says_so(said, stand_in, tmp_path):
    outcome, starts = stand_in(f"printf '{said}\nAborted\n' >&2; kill -ABRT $$")
    assert starts == 2
    (reason,) = outcome.failed
    assert "ended by SIGABRT, out of memory: " + said.splitlines()[-1].strip() in reason
    assert "use fewer --jobs" in reason
    assert records(tmp_path / "out")["ae"]["status"] == "failed"


def test_memory_that_runs_out_outside_of_the_steps_is_one_line(monkeypatch, tmp_path):
    def fails(*arguments, **options):
        raise RuntimeError("could not create a primitive\nException raised from ...")

    monkeypatch.setattr("benchmarks.cli.trial.run_trial", fails)
    said = run_here("trial", tmp_path)
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith("error: out of memory: could not create a primitive; use fewer --jobs")
