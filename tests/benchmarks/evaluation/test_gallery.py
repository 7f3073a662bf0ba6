"""The pictures that a trial leaves for the page: what stands where, and that they move nothing else."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.base.streams import seeded
from benchmarks.data import DataSet
from benchmarks.evaluation import gallery as made
from benchmarks.evaluation.evaluate import shown_images
from benchmarks.evaluation.nearest import nearest
from benchmarks.evaluation.samples import draw_samples
from benchmarks.evaluation.variations import Variations
from benchmarks.metrics.reconstruction import mse_per_image
from benchmarks.storage.weights import LoadedModel, build_model
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from models.output import ImageShape, LatentShape

SMALL = ["channels_encoder=4", "channels_decoder=4", "channel_cap=8", "latent_channels=3"]
SILENT = lambda *_: None  # noqa: E731
ONE_LEVEL = 1
"""By how much a rounded pixel may differ where a batch has another size."""


def noise(n, seed):
    return torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def data():
    shape, (train, validation, test) = ImageShape(1, 28, 28), (noise(30, 0), noise(10, 1), noise(20, 2))
    return DataSet("noise", shape, train, validation, test, "hash", None, "")


@pytest.fixture(scope="module")
def models(data):
    """Models by row, with decoders that are untrained but not constant."""
    name, table = read_suite("quick")
    apply_overrides(table, [f"models.nvae.{field}" for field in SMALL], None)
    found = {}
    for trial in build_suite(name, table, ["ae", "vae", "nvae"]).trials:
        model = build_model(trial, data.image, torch.device("cpu")).eval()
        with torch.no_grad(), seeded(0, "noise on weights"):
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        found[trial.row] = LoadedModel(model, trial, "hash")
    return found


@pytest.fixture(scope="module")
def gallery(models, data):
    return made.gallery(models["nvae"], data, SILENT)


def images(pictures):
    return torch.from_numpy(pictures).movedim(-1, -3)


def same(found, expected):
    return int((found.int() - expected.int()).abs().max()) <= ONE_LEVEL


def test_it_is_the_same_again_and_moves_no_other_stream(models, data, gallery):
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in models["nvae"].model.state_dict().items()}
    again = made.gallery(models["nvae"], data, SILENT)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[k]) for k, v in models["nvae"].model.state_dict().items())
    assert set(again) == set(gallery)
    for name, found in again.items():
        assert np.array_equal(found, gallery[name]), name
    other = dataclasses.replace(models["nvae"], trial=dataclasses.replace(models["nvae"].trial, seed=1))
    assert not np.array_equal(made.gallery(other, data, SILENT)["samples"], gallery["samples"])


def test_samples_at_temperature_one_are_the_evaluations(models, gallery):
    assert list(gallery["temperatures"]) == [0.5, 0.7, 0.85, 1.0]
    assert gallery["at_temperature"].shape == (4, 8, 28, 28, 1)
    assert gallery["at_temperature"].dtype == np.uint8
    expected = draw_samples(models["nvae"].model, models["nvae"].trial, 64, SILENT)
    assert same(images(gallery["at_temperature"][-1]), expected[:8])
    assert same(images(gallery["samples"]), expected[:8])
    assert not np.array_equal(gallery["at_temperature"][0], gallery["at_temperature"][-1])


def test_lines_between_test_images_begin_and_end_at_reconstructions(models, data, gallery):
    test = shown_images(data.test)
    rows = images(gallery["interpolations"])
    assert rows.shape == (4, 10, 1, 28, 28)
    reconstructed = Variations(models["nvae"], models["nvae"].trial.seed).reconstructed(test)
    assert torch.equal(rows[:, 0], test[0:8:2])
    assert torch.equal(rows[:, -1], test[1:8:2])
    assert same(rows[:, 1], reconstructed[0:8:2])
    assert same(rows[:, -2], reconstructed[1:8:2])


def test_scales_are_redrawn_on_either_side_of_a_change_of_resolution(models, data, gallery):
    assert list(gallery["cuts"]) == [3]  # three groups at 4x4, two at 8x8
    test = shown_images(data.test)[:3]
    variations = Variations(models["nvae"], models["nvae"].trial.seed)
    for name, redrawn in (("finer_redrawn", [3, 4]), ("coarser_redrawn", [0, 1, 2])):
        rows = images(gallery[name])
        assert rows.shape == (3, 1, 8, 1, 28, 28)
        assert torch.equal(rows[:, 0, 0], test)
        assert same(rows[:, 0, 1], variations.reconstructed(test))
        assert same(rows[:, 0, 2:], variations.redrawn(test, redrawn, 6))
    assert not np.array_equal(gallery["finer_redrawn"], gallery["coarser_redrawn"])


def test_cuts_are_few_and_where_the_resolution_changes():
    assert made.cuts_of([LatentShape(2, 1, 1)]) == []
    assert made.cuts_of([LatentShape(2, side, side) for side in (4, 4, 8, 8, 8, 16)]) == [2, 5]
    many = made.cuts_of([LatentShape(2, side, side) for side in range(1, 12)])
    assert (len(many), many[0], many[-1]) == (6, 1, 10)


def test_models_without_scales_or_without_a_prior_leave_these_out(models, data):
    assert made.gallery(models["ae"], data, SILENT) == {}
    found = made.gallery(models["vae"], data, SILENT)
    assert {"at_temperature", "interpolations", "samples", "neighbours"} <= set(found)
    assert {"cuts", "finer_redrawn", "coarser_redrawn"}.isdisjoint(found)


def test_the_nearest_training_image_is_found_and_a_copy_has_no_error(monkeypatch):
    training, sought = noise(50, 3), noise(5, 4)
    sought[2] = training[41]
    sought[3] = training[7]
    sought[3, 0, 0, 0] ^= 1
    monkeypatch.setattr("benchmarks.evaluation.nearest.VALUES_TOGETHER", 12 * 28 * 28)  # in several pieces
    found = nearest(sought, training)
    errors = torch.stack([mse_per_image(training, one.expand_as(training)) for one in sought])
    assert torch.equal(found.index, errors.argmin(dim=1))
    assert torch.equal(found.error, errors.min(dim=1).values)
    assert (int(found.index[2]), float(found.error[2])) == (41, 0.0)
    assert float(found.error[3]) == pytest.approx(1 / 255**2 / 784)


def test_neighbours_are_training_images_at_the_errors_given(data, gallery):
    samples, neighbours = images(gallery["samples"]), images(gallery["neighbours"])
    assert all(any(torch.equal(one, other) for other in data.train) for one in neighbours)
    assert np.array_equal(mse_per_image(samples, neighbours).numpy(), gallery["sample_errors"][:8])
    assert (len(gallery["sample_errors"]), len(gallery["test_errors"])) == (64, 20)
