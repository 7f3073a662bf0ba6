"""Runs of a small suite by an executor, and what must not depend on where they ran or how often they were stopped."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.records.catalogue import of_the_machine
from benchmarks.records.record import load_trials
from benchmarks.trials.child import LOG

SUITE = """
data = "mnist-5k"
seeds = {seeds}
[likelihood]
name = "bernoulli"
[training]
images = {images}
validations = 4
checkpoint_seconds = {checkpoint_seconds}
[evaluation]
iwae_samples = 2
images = 100
[models.vae]
channels = 8
latent_size = 8
"""
PATIENCE = 400.0


@dataclasses.dataclass
class Runs:
    """Runs of one suite: `images` of a trial that is stopped, seconds from one saved state of it to the next."""

    folder: Path
    images: int = 12_000
    checkpoint_seconds: float = 1.0
    processes: list = dataclasses.field(default_factory=list)

    def write(self, images, seeds=1):
        text = SUITE.format(images=images, seeds=seeds, checkpoint_seconds=self.checkpoint_seconds)
        (self.folder / "suite.toml").write_text(text)

    def start(self, out, *words, **environment):
        command = [sys.executable, "-m", "benchmarks", "run", "suite.toml", "--out", out, *words]
        log = (self.folder / f"{out}-{len(self.processes)}.log").open("w")
        env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        one = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log)
        self.processes.append(one)
        return one

    def ended(self, one):
        assert one.wait(PATIENCE) == 0, [path.read_text() for path in self.folder.glob("*.log")]

    def trained(self, out):
        """What was measured of the weights, and the curves, by trial; and how often each was started."""
        found = {}
        for folder, record in load_trials(self.folder / out).items():
            assert record.status == "done", record
            values = [m for m in record.measurements if not of_the_machine(m.metric)]
            starts = sum(line.startswith("# 2") for line in (folder / LOG).read_text().splitlines())
            found[folder.name] = (values, record.curves, record.steps), starts
        assert found
        return found

    def wait_for(self, condition):
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < end
            time.sleep(0.05)
        return found

    def saved(self, out):
        """The saved state of the only trial, once there is one."""
        return self.wait_for(lambda: next(iter((self.folder / out).glob("*/training.safetensors")), None))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """What comes of a trial that is never stopped."""
    found = Runs(tmp_path_factory.mktemp("whole"))
    found.write(found.images)
    found.ended(found.start("out"))
    ((expected, starts),) = found.trained("out").values()
    assert starts == 1
    return expected


@pytest.fixture
def runs(tmp_path):
    found = Runs(tmp_path)
    yield found
    for one in found.processes:
        if one.poll() is None:
            one.terminate()
            one.wait(30)
