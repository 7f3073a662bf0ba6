"""A run that is killed comes out as one that was left alone; one whose disk is full leaves nothing half written."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from watched_phases import PHASES

from benchmarks.base.files import PART
from benchmarks.records.record import load_record
from benchmarks.storage import tensors

ROOT = Path(__file__).resolve().parents[3]
SUITE = """
data = "npz:{data}"
likelihood = {{ name = "bernoulli" }}
training = {{ images = 64000, batch_size = 16, validations = 0, checkpoint_seconds = {seconds} }}
[models.vae]
channels = {channels}
"""


def killed_run(*options):
    """What the helper says of kills at random moments; the seed is fresh, and printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    command = [sys.executable, "-m", "killed_run", "--seed", str(random.SystemRandom().randrange(10**6)), *options]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done


def test_a_trial_that_is_killed_comes_out_the_same():
    done = killed_run("--kills", "2")
    assert done.returncode == 0
    assert re.search(r"^2 kills .* 0 differ$", done.stdout, re.M)


@pytest.mark.slow
def test_a_trial_that_is_killed_forty_times_in_all_phases_comes_out_the_same():
    done = killed_run("--kills", "40", "--report")
    assert done.returncode == 0
    hits = re.search(r"^40 kills \((.*)\), \d+ runs, 0 differ$", done.stdout, re.M)
    phases = dict(hit.rsplit(" ", 1) for hit in hits[1].split(", "))
    assert phases.keys() == {"between", *PHASES}
    assert "0" not in phases.values()


def write_suite(folder, seconds=0.2, channels=2):
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28), np.uint8)
    np.savez(folder / "data.npz", train=images, validation=images, test=images)
    text = SUITE.format(data=folder / "data.npz", seconds=seconds, channels=channels)
    (folder / "suite.toml").write_text(text)
    return folder / "suite.toml"


def started(folder, out):
    """A run and its child's process id, once the first state is saved."""
    command = [sys.executable, "-m", "benchmarks", "run", str(folder / "suite.toml"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(out.glob(f"*/{tensors.STATE}")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return process, children_of(process.pid)


def children_of(pid):
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_working(pid):
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children in /proc")
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGHUP, signal.SIGUSR1))],
    ids=lambda number: number.name,
)
def test_a_child_leaves_with_its_run_and_saves_its_state(number, tmp_path):
    write_suite(tmp_path)
    process, (child,) = started(tmp_path, tmp_path / "out")
    assert is_working(child)
    process.send_signal(number)
    start = time.monotonic()
    while is_working(child) and time.monotonic() - start < 30:
        time.sleep(0.05)
    assert time.monotonic() - start < 10
    process.communicate(timeout=60)
    (folder,) = (tmp_path / "out").glob("vae-*")
    record = load_record(folder)
    assert (record.status, record.error) == ("interrupted", "")
    assert tensors.load(folder / tensors.STATE).metadata["step"] == record.steps > 0
    if number != signal.SIGKILL:
        assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    suite, disk = write_suite(tmp_path, seconds=0.1, channels=32), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        command = [sys.executable, "-m", "benchmarks", "run", str(suite), "--out", str(disk / "out")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert done.returncode == 2
        assert len(errors) == 1
        assert "No space left on device" in errors[0]
        assert "Traceback" not in done.stderr
        assert [path for path in (disk / "out").rglob("*") if PART.fullmatch(path.name)] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
