"""A plan of one small trial that nothing trains: its events and its record are made up."""

import numpy as np
import pytest

from benchmarks.records.record import Curve, save_record
from benchmarks.suites.config import build_suite
from benchmarks.trials.schedule import plan

BATCH, STEPS = 16, 400


@pytest.fixture
def planned_run(tmp_path):
    """`planned_run(likelihood)`: a plan below the test's folder."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", train=images, validation=images, test=images)

    def build(likelihood="bernoulli"):
        table = {
            "data": f"npz:{tmp_path / 'data.npz'}",
            "likelihood": {"name": likelihood},
            "training": {"images": BATCH * STEPS, "batch_size": BATCH},
            "models": {"vae": {"channels": 2, "latent_size": 2}},
        }
        return plan(build_suite("mine", table), tmp_path / "out")

    return build


@pytest.fixture
def concluded(make_record, make_value):
    """`concluded(planned, elbo)`: the trial's record is there, with two curves, and so are its images."""

    def conclude(planned, elbo=-100.0, timed=False):
        images = [float(BATCH * step) for step in (10, 20, 30, 40)]
        curves = [Curve("loss", "nats/image", images, [4.0, 3.0, 2.0, 1.0])]
        curves.append(Curve("validation elbo", "nats/image", images[1::2], [-3.5, -1.5]))
        found = [make_value("elbo", elbo, unit="nats"), make_value("mse", 0.01), make_value("kid", None)]
        found += [make_value("train_throughput", 500.0, unit="images/s")] if timed else []
        save_record(make_record("vae", measurements=found, curves=curves, steps=40), planned.folder)
        squares = np.zeros((12, 8, 8, 1), np.uint8)
        np.savez(planned.folder / "images.npz", originals=squares, reconstructions=squares, samples=squares)

    return conclude
