"""What vanishes, turns read-only or turns back the clock while a run is under way ends in one line, or in nothing."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import records, run_here, write_suite

from benchmarks.base.errors import UserError
from benchmarks.base.files import PART, sweep
from benchmarks.data import load
from benchmarks.storage import tensors
from benchmarks.storage.weights import build_model, write_config
from benchmarks.suites.config import build_suite
from benchmarks.training.loop import train
from benchmarks.trials import claims
from benchmarks.trials.claims import claim
from benchmarks.trials.processes import execute
from benchmarks.trials.schedule import plan
from benchmarks.trials.trial import run_trial

pytestmark = pytest.mark.usefixtures("unsaved")


def write_images(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{index}.png")
    return folder


def suite_of(data, **training):
    table = {"data": str(data), "likelihood": {"name": "bernoulli"}, "models": {"vae": {"channels": 2}}}
    return build_suite("mine", {**table, "training": {"images": 64, "batch_size": 8, "validations": 2, **training}})


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A folder of images, and the folder of the cache that keeps them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VAEBENCH_CACHE", "on")
    return write_images(tmp_path / "images"), tmp_path / "cache"


def trained(trial, folder, progress=lambda *event: None):
    data = load(trial.data)
    model = build_model(trial, data.image, torch.device("cpu"))
    result = train(model, trial, data, folder, progress, lambda: False)
    assert result.finished
    return tensors.digest(model.state_dict())


def test_images_and_their_cache_may_go_while_a_model_trains_on_them(cached, tmp_path):
    images, cache = cached
    (trial,) = suite_of(f"folder:{images}").trials
    whole = trained(trial, tmp_path / "whole")
    assert list(cache.rglob("*.images"))

    def remove(done, total, phase):
        if done == 2:
            shutil.rmtree(images)
            shutil.rmtree(cache)

    assert trained(trial, tmp_path / "robbed", remove) == whole
    assert not images.exists()


def test_a_cache_that_went_is_made_again(cached):
    images, cache = cached
    before = load(f"folder:{images}")
    kept = before.train.clone()
    for path in cache.rglob("*.images"):
        path.unlink()
    assert torch.equal(load(f"folder:{images}").train, kept)


def test_images_that_went_before_a_trial_began_are_one_failed_row(tmp_path, capfd):
    images = write_images(tmp_path / "images")
    planned = plan(suite_of(f"folder:{images}"), tmp_path / "out")
    shutil.rmtree(images)
    outcome = execute(planned, jobs=1)
    (reason,) = outcome.failed
    assert f"expected a folder of images, found none at {images}" in reason
    assert "Traceback" not in capfd.readouterr().err + (planned.trials[0].folder / "log.txt").read_text()
    assert records(tmp_path / "out")["vae"]["status"] == "failed"
    assert [path for path in (tmp_path / "out").rglob("*") if PART.fullmatch(path.name)] == []


def test_a_trial_of_a_long_run_trains_on_no_other_images_than_the_first(tmp_path):
    images = write_images(tmp_path / "images")
    planned = plan(suite_of(f"folder:{images}"), tmp_path / "out")
    (images / "0.png").unlink()
    (one,) = planned.trials
    write_config(one.trial, one.folder)
    with pytest.raises(UserError, match=r"the images that the run began with .* start the run again"):
        run_trial(one.folder, data_hash=planned.data.content_hash)
    assert {path.suffix for path in one.folder.iterdir()} <= {".json", ".lock"}


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Lets a shell script stand in for a trial's process, whose folder is "$4"."""

    def stand_in(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\nexit 3\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return stand_in


def assert_one_line(said, words):
    errors = [line for line in said.stderr.splitlines() if line.startswith("error")]
    assert (said.returncode, len(errors)) == (2, 1), said.stderr
    assert words in errors[0]
    assert "Traceback" not in said.stderr


def test_a_folder_of_results_that_goes_is_one_line(child, tmp_path):
    child('rm -r "$(dirname "$4")"')
    said = run_here("run", write_suite(tmp_path), "--models", "vae", "--out", tmp_path / "out")
    assert_one_line(said, "No such file or directory")


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk at tmp_path/disk, again in another way if asked to; all of it is unmounted in the end."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
        return place

    yield mount
    while os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("words", [("report",), ("run", "--models", "vae"), ("run", "--dry-run")], ids=" ".join)
def test_a_folder_that_is_read_only_is_one_line(words, disk, run_folder, tmp_path):
    place = disk("rw")
    shutil.copytree(run_folder, place / "out", ignore=lambda folder, names: {"disk"} & set(names))
    disk("remount,ro")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    suite = [write_suite(tmp_path)] if words[0] == "run" else []
    out = [place / "out"] if words[0] == "report" else ["--out", place / "out"]
    said = run_here(words[0], *suite, *words[1:], *out)
    if "--dry-run" in words:
        assert said.returncode == 0
    else:
        assert_one_line(said, "Read-only file system")
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_log_that_cannot_be_written_is_said_before_a_trial_is_trained(disk, tmp_path, monkeypatch):
    place = disk("ro")
    monkeypatch.setattr("benchmarks.trials.tune.timed_trial", None)
    said = run_here("tune", write_suite(tmp_path), "--models", "vae", "--log", place / "log.csv")
    assert_one_line(said, "Read-only file system")


def test_a_folder_that_turns_read_only_is_one_line(child, disk, tmp_path):
    place = disk("rw")
    child(f'mount -t tmpfs -o ro tmpfs "{place}"')
    said = run_here("run", write_suite(tmp_path), "--models", "vae", "--out", place / "out")
    assert_one_line(said, "file")
    subprocess.run(["umount", place], check=True)
    assert [path for path in place.rglob("*") if PART.fullmatch(path.name)] == []


def test_a_heartbeat_to_come_counts_as_one_of_now(tmp_path):
    """As a clock that is set back by an hour leaves it: its owner keeps the trial, but no hour longer if it is gone."""
    owner = tmp_path / claims.OWNER
    owner.write_text('{"pid": 7, "host": "elsewhere"}')
    os.utime(owner, (time.time() + 3600,) * 2)
    said = []
    assert claim(tmp_path, said.append) is None
    assert owner.stat().st_mtime == pytest.approx(time.time(), abs=60)
    os.utime(owner, (time.time() - claims.SILENT_SECONDS - 60,) * 2)
    claim(tmp_path, said.append).release()
    assert len(said) == 1


def test_a_clock_that_was_set_back_changes_no_training_and_sweeps_nothing_that_is_written(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images")
    (trial,) = suite_of(f"folder:{images}", checkpoint_seconds=1e-9).trials
    whole = trained(trial, tmp_path / "whole")
    elsewhere = tmp_path / ".weights.safetensors.elsewhere.7.0123abcd"
    elsewhere.write_bytes(b"half")
    ticks = iter(range(10**9, 0, -3600))  # each call an hour before the last
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    assert trained(trial, tmp_path / "back") == whole
    sweep(tmp_path)
    assert elsewhere.exists()
