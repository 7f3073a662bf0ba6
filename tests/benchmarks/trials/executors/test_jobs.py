"""What runs on a node: it ends with its trial, which ends with it; a trial alone is claimed, seen through, timed."""

import json
import os
import sys
import threading
import time
import types

import pytest

from benchmarks.base.errors import INTERRUPTED, UserError
from benchmarks.storage.weights import write_config
from benchmarks.trials import claims
from benchmarks.trials.executors import job
from benchmarks.trials.executors.alone import plan_of, work_alone
from benchmarks.trials.executors.job import SlurmJob, TrialJob
from benchmarks.trials.executors.note import NOTE, JobNote, note_of

WAITS = """
import os, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(os.environ["VAEBENCH_JOB"] + "\\n")
sys.stdin.read()
sys.exit(130)
"""


@pytest.fixture
def waiting(tmp_path):
    """A command that writes the name of its job to a file and stays until its input ends."""
    return [sys.executable, "-c", WAITS, str(tmp_path / "job")]


def begun(path):
    end = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text().strip()


def test_a_job_ends_with_its_trial():
    assert TrialJob([sys.executable, "-c", "raise SystemExit(7)"], "ray job 1")() == 7


def test_a_job_that_leaves_ends_its_trial(waiting, tmp_path):
    one = TrialJob(waiting, "ray job 1")
    thread = threading.Thread(target=one)
    thread.start()
    assert begun(tmp_path / "job") == "ray job 1"
    one.leave()
    thread.join(5)
    assert one.code == INTERRUPTED


def test_a_job_of_slurm_is_put_back_with_its_trial_saved(waiting, tmp_path, monkeypatch):
    helpers = types.ModuleType("submitit.helpers")
    helpers.DelayedSubmission = lambda call: ("again", call)
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    monkeypatch.setattr(job, "REQUEUE_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    one = SlurmJob(waiting, "slurm")
    thread = threading.Thread(target=one)
    thread.start()
    assert begun(tmp_path / "job") == "slurm job 12_3"
    said, again = one.checkpoint()
    assert said == "again"
    assert (one.code, again.command, again.code) == (INTERRUPTED, tuple(waiting), None)
    thread.join(5)


@pytest.fixture
def handed(planned):
    """A trial that was handed over."""
    first = planned.trials[0]
    write_config(first.trial, first.folder)
    JobNote("slurm", "12_3").write(first.folder)
    return first


def test_a_trial_alone_is_claimed_seen_through_and_its_note_is_taken_away(handed, planned, monkeypatch):
    monkeypatch.setenv(claims.JOB, "slurm job 12_3")
    assert work_alone(handed.folder, planned.data.content_hash, 1, (), False) == 0
    assert (handed.folder / "starts").read_text() == "slurm job 12_3\n"
    assert handed.work == "nothing"
    assert not (handed.folder / NOTE).exists()
    assert claims.owner_of(handed.folder) is None


def test_a_trial_alone_that_fails_says_so_in_its_record_and_exit_code(handed, planned, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 'error: out of luck' >&2\nexit 1\n")
    assert work_alone(handed.folder, planned.data.content_hash, 1, (), False) == 1
    assert handed.record.error == "out of luck"
    assert note_of(handed.folder) is not None


def test_a_trial_whose_images_have_changed_is_not_trained(handed):
    with pytest.raises(UserError, match="expected the images that the run began with"):
        plan_of(handed.folder, "0" * 64, ())


def test_a_trial_is_left_to_an_owner_that_is_heard_of_and_waited_for_otherwise(handed, planned, monkeypatch):
    owner = handed.folder / claims.OWNER
    owner.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    beating = threading.Timer(0.3, os.utime, (owner,))
    beating.start()
    assert work_alone(handed.folder, planned.data.content_hash, 1, (), False) == 0
    assert not (handed.folder / "starts").exists()
    monkeypatch.setattr(claims, "SILENT_SECONDS", time.time() - owner.stat().st_mtime + 0.5)
    assert work_alone(handed.folder, planned.data.content_hash, 1, (), False) == 0
    assert handed.work == "nothing"


def test_the_owner_says_how_far_its_trial_is(tmp_path, monkeypatch):
    monkeypatch.setenv(claims.JOB, "ray job 1")
    held = claims.claim(tmp_path, print)
    held.reached("train", 10, 100)
    time.sleep(0.05)
    held.reached("train", 60, 100)
    held._write()
    owner = claims.worker_of(tmp_path)
    assert (owner.job, owner.phase, owner.done, owner.total) == ("ray job 1", "train", 60, 100)
    assert owner.left == pytest.approx(0.04, rel=0.5)
    held.release()
    assert claims.worker_of(tmp_path) is None


def test_a_phase_that_begins_is_written_at_once(tmp_path):
    held = claims.claim(tmp_path, print)
    held.reached("train", 0, 100)
    end = time.monotonic() + 5
    while claims.owner_of(tmp_path).phase != "train" and time.monotonic() < end:
        time.sleep(0.01)
    assert claims.owner_of(tmp_path).phase == "train"
    held.release()


@pytest.mark.parametrize(("silent", "works"), [(0, True), (claims.SILENT_SECONDS + 60, False)])
def test_an_owner_elsewhere_works_while_its_heart_beats(silent, works, tmp_path):
    (tmp_path / claims.OWNER).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    (tmp_path / claims.LOCK).touch()
    beat = time.time() - silent
    os.utime(tmp_path / claims.OWNER, (beat, beat))
    assert (claims.worker_of(tmp_path) is not None) == works
