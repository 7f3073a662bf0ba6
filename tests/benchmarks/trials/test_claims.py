"""Several runs in one folder: a trial is one process's, and what a dead one had is taken over."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.base.signals import LEAVE_SECONDS, STOPPING
from benchmarks.records.record import listed, load_record, save_record, save_run
from benchmarks.storage.weights import record_head
from benchmarks.suites.config import build_suite
from benchmarks.trials import claims
from benchmarks.trials.claims import claim, listed_run, owner_of
from benchmarks.trials.processes import execute
from benchmarks.trials.schedule import plan


def forked(call):
    """Process id of a fork that calls `call` and ends, whatever comes of it, without cleaning up."""
    pid = os.fork()
    if not pid:
        try:
            call()
        finally:
            os._exit(0)
    return pid


def refuse(text):
    raise AssertionError(text)


def test_a_claim_is_one_process_s(tmp_path):
    mine = claim(tmp_path / "trial", refuse)
    assert owner_of(tmp_path / "trial").pid == os.getpid()
    assert claim(tmp_path / "trial", refuse) is None
    mine.release()
    assert owner_of(tmp_path / "trial") is None
    claim(tmp_path / "trial", refuse).release()


def test_what_a_dead_process_had_is_taken_over_swept_and_said(tmp_path):
    pid = forked(lambda: claim(tmp_path, refuse))
    left = f".weights.safetensors.{os.uname().nodename}.{pid}.0123abcd"
    os.waitpid(pid, 0)
    (tmp_path / left).write_bytes(b"half")
    said = []
    claim(tmp_path, said.append).release()
    assert said == [f"takes over from process {pid} on {os.uname().nodename}, which has ended"]
    assert not (tmp_path / left).exists()


@pytest.mark.parametrize(("silent", "taken"), [(0, False), (claims.SILENT_SECONDS + 60, True)])
def test_another_machine_s_owner_keeps_the_trial_while_its_heart_beats(silent, taken, tmp_path):
    (tmp_path / claims.OWNER).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    beat = time.time() - silent
    os.utime(tmp_path / claims.OWNER, (beat, beat))
    said = []
    assert (claim(tmp_path, said.append) is not None) == taken
    assert said == (["takes over from process 7 on elsewhere, of which nothing was heard for 10 minutes"] * taken)


def test_a_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    held = claim(tmp_path, refuse)
    os.utime(tmp_path / claims.OWNER, (0, 0))
    end = time.monotonic() + 5
    while (tmp_path / claims.OWNER).stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / claims.OWNER).stat().st_mtime > 0
    held.release()


def test_the_list_holds_the_trials_of_all_runs_that_are_there(tmp_path):
    save_run(tmp_path, ["of an earlier run"])
    with listed_run(tmp_path, ["a", "b"]):
        with listed_run(tmp_path, ["b", "c"]):
            assert listed(tmp_path) == ["a", "b", "c"]
        assert listed(tmp_path) == ["a", "b", "c"]
    (tmp_path / ".run-01234567.lock").touch()  # of a run that was killed
    with listed_run(tmp_path, ["c"]):
        assert listed(tmp_path) == ["c"]
    assert not list(tmp_path.glob(".run-*"))


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A plan of four trials, each of which a stand-in finishes after a moment, noting that it was started."""
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", train=images, validation=images, test=images)
    table = {"data": f"npz:{tmp_path / 'data.npz'}", "likelihood": {"name": "bernoulli"}, "seeds": 4}
    found = plan(build_suite("mine", table | {"models": {"vae": {"channels": 2}}}), tmp_path / "out")
    for one in found.trials:
        save_record(finished(one), tmp_path / one.folder.name)
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/sh\necho $$ >> "$4/starts"\nsleep 0.2\ncp "{tmp_path}/$(basename "$4")/record.json" "$4"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    return found


def finished(one):
    from benchmarks.records.catalogue import measurement
    from benchmarks.records.record import RunRecord

    fields = {"parameters": 1, "macs_per_image": 1, "latent_groups": [], "images_seen": 1, "steps": 1}
    timed = [measurement("train_throughput", 1.0, n=1)]
    head = record_head(one.trial, one.folder)
    return RunRecord(**head, **fields, data_hash="", status="done", training_seconds=1.0, measurements=timed)


def starts(planned):
    return [len((one.folder / "starts").read_text().splitlines()) for one in planned.trials]


def test_two_runs_share_the_trials_and_train_none_twice(planned, capfd):
    pids = [forked(lambda: execute(planned, jobs=1)) for _ in range(2)]
    for pid in pids:
        os.waitpid(pid, 0)
    assert starts(planned) == [1, 1, 1, 1]
    assert all(one.work == "nothing" for one in planned.trials)
    assert "is left to another run (process " in capfd.readouterr().err


def test_a_killed_child_is_started_once_more_and_then_a_failed_row(planned, tmp_path, capfd):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho $$ >> "$4/starts"\nkill -9 $$\n')
    first = dataclasses.replace(planned, trials=planned.trials[:1])
    outcome = execute(first, jobs=1)
    assert starts(first) == [2]
    assert len(outcome.failed) == 1
    assert not outcome.user_error
    assert load_record(first.trials[0].folder).status == "failed"
    assert "it is started once more" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1"])
def test_a_child_that_a_signal_ends_early_has_not_failed(name, planned, tmp_path):
    """As one that is importing, and has not yet asked for signals to be handed to it."""
    (tmp_path / "python").write_text(f"#!/bin/sh\nkill -{name} $$\n")
    outcome = execute(dataclasses.replace(planned, trials=planned.trials[:1]), jobs=1)
    assert (outcome.failed, outcome.interrupted) == ([], True)
    assert planned.trials[0].record is None


CHILD = """
import sys, time
from benchmarks.base.signals import StopSignal
stop = StopSignal()
stop.with_parent()
print("ready", flush=True)
while not stop():
    time.sleep(0.01)
if len(sys.argv) > 1:
    time.sleep(60)
sys.exit(7)
"""


def child(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_trial_leaves_at_every_signal_and_when_its_parent_is_gone():
    asked = [(lambda one, number=number: one.send_signal(number)) for number in STOPPING]
    asked.append(lambda one: one.stdin.close())
    for ask, process in [(ask, child()) for ask in asked]:
        ask(process)
        assert process.wait(timeout=5) == 7
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2} == set(STOPPING)


@pytest.mark.slow
def test_a_trial_that_does_not_come_to_a_step_ends_all_the_same():
    process = child("busy")
    start = time.monotonic()
    process.terminate()
    assert process.wait(timeout=LEAVE_SECONDS + 2) == 130
    assert time.monotonic() - start < 10
