"""Weights that come with the results: they load and reconstruct test images as their records say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.data import load
from benchmarks.data.pixels import to_unit
from benchmarks.evaluation.evaluate import reconstruct
from benchmarks.metrics.reconstruction import mse_per_image
from benchmarks.storage.weights import load_model, trained_folder

RUN = Path(__file__).parents[3] / "results" / "fashion-mnist"
CPU = torch.device("cpu")
FOLDERS = json.loads((RUN / "run.json").read_text())["cells"]
ROWS = sorted({name.rpartition("-seed")[0] for name in FOLDERS})
N = 50


@pytest.fixture(scope="module")
def fashion():
    try:
        return load("fashion-mnist", download=False)
    except UserError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")


@pytest.mark.parametrize("row", ROWS)
def test_every_row_ships_one_seed(row):
    loaded = load_model(RUN / row, CPU)
    record = json.loads((trained_folder(RUN / row) / "record.json").read_text())
    assert (loaded.trial.row, loaded.data_hash) == (row, record["data_hash"])
    assert sum(value.numel() for value in loaded.model.parameters()) == record["parameters"]


@pytest.mark.parametrize("row", ROWS)
def test_shipped_weights_reconstruct_as_recorded(row, fashion):
    loaded = load_model(RUN / row, CPU)
    images = fashion.test[:N]
    found, _ = reconstruct(loaded.model, loaded.trial, to_unit(images, 8), lambda *_: None)
    recorded = np.load(trained_folder(RUN / row) / "per_image.npz")["mse"][:N]
    np.testing.assert_allclose(mse_per_image(found, images).numpy(), recorded, atol=2e-5)
