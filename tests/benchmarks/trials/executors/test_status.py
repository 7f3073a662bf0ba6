"""How far a run is, read from its folder alone."""

import json
import os
import socket
import time

import pytest
from tiny_run import run_here

from benchmarks.records.record import save_record, save_run
from benchmarks.trials import claims
from benchmarks.trials.executors.note import JobNote
from benchmarks.trials.executors.status import duration, status_of

NAMES = [f"{row}-seed{seed}-0123456789ab" for row, seed in (("ae", 0), ("vae", 1), ("n-seed-vae", 2), ("vdvae", 3))]


@pytest.fixture
def out(tmp_path, make_record):
    """A run of which a trial is done, one has failed, one runs elsewhere and one has not begun."""
    save_run(tmp_path, NAMES)
    save_record(make_record("ae", 0), tmp_path / NAMES[0])
    save_record(make_record("vae", 1, status="failed", error="out of\nmemory", images_seen=0), tmp_path / NAMES[1])
    owner = {"pid": 7, "host": "node3", "job": "slurm job 12_3", "since": 0.0, "phase": "train"}
    (tmp_path / NAMES[2]).mkdir()
    text = json.dumps(owner | {"done": 1500, "total": 6000, "left": 5400.0})
    (tmp_path / NAMES[2] / claims.OWNER).write_text(text)
    (tmp_path / NAMES[2] / claims.LOCK).touch()
    return tmp_path


def test_every_trial_is_listed_with_what_there_is_to_know(out):
    said = run_here("status", out)
    assert said.returncode == 1
    assert said.stdout.splitlines() == [
        "4 trials: 1 done, 1 running, 1 waiting, 1 failed",
        "done    ae seed 0          2026-11-22 13:00, 32 s of training",
        "running n-seed-vae seed 2  process 7 on node3 (slurm job 12_3), since 1970-01-01 00:00 UTC, "
        "train 1,500 of 6,000, about 1.5 h left of that",
        "waiting vdvae seed 3",
        "failed  vae seed 1         out of memory",
    ]


def test_for_programs(out):
    found = json.loads(run_here("status", out, "--json").stdout)
    assert [(one["row"], one["seed"], one["kind"]) for one in found][2] == ("n-seed-vae", 2, "running")
    assert found[2]["left"] == 5400.0


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_worker_that_has_gone_leaves_a_trial_that_waits(host, out, make_record):
    folder = out / NAMES[2]
    (folder / claims.OWNER).write_text(json.dumps({"pid": 2**22 - 1, "host": host}))
    beat = time.time() - claims.SILENT_SECONDS - 60
    os.utime(folder / claims.OWNER, (beat, beat))
    save_record(make_record("n", 2, status="interrupted", images_seen=640), folder)
    JobNote("slurm", "12_3").write(folder)
    found = status_of(out)[2]
    assert found.kind == "waiting"
    assert found.said == (f"continues at 640 images, handed over: slurm job 12_3, process 4194303 on {host} has gone")


def test_a_trained_trial_is_to_be_evaluated_and_a_lost_job_is_a_failure(out, make_record):
    save_record(make_record("vae", 1, status="trained", images_seen=640), out / NAMES[1])
    JobNote("slurm", "1", "slurm job 1 was cancelled").write(out / NAMES[3])
    found = status_of(out)
    assert (found[1].kind, found[1].said) == ("waiting", "continues at 640 images, to be evaluated")
    assert (found[3].kind, found[3].said) == ("failed", "slurm job 1 was cancelled")


def test_no_run_is_one_line(tmp_path):
    said = run_here("status", tmp_path)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "expected the folder of a run" in said.stderr


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0.2 s"), (59, "59 s"), (90, "1.5 min"), (86400 * 12, "12 d")])
def test_durations(seconds, text):
    assert duration(seconds) == text
