"""Evaluation by several processes: every value, picture and value per image has the bits of one process's."""

import functools
import shutil

import numpy as np
import pytest
from tiny_run import write_suite

from benchmarks.metrics.features import Extractor
from benchmarks.records.catalogue import of_the_machine
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials.trial import run_trial

NVAE = """
[models.nvae]
groups_fine_to_coarse = [2, 1]
latent_channels = 2
channels_encoder = 4
channels_decoder = 4
"""
EVALUATION = 'extractor = "mnist-cnn-v1"\nsamples = 33\nprior_batches = 1'
EVALUATED = ("per_image.npz", "images.npz")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder and the record of a trial that one process trained and evaluated."""
    root = tmp_path_factory.mktemp("alone")
    suite = write_suite(root, images=16, evaluation=EVALUATION)
    suite.write_text(suite.read_text().replace("validations = 2", "validations = 1") + NVAE)
    (trial,) = build_suite(*read_suite(str(suite)), ["nvae"]).trials
    folder = root / "nvae-seed0-0123456789ab"
    write_config(trial, folder)
    with pytest.MonkeyPatch.context() as patch:
        in_small_batches(patch)
        return folder, run_trial(folder)


def in_small_batches(patch):
    """Features of 9 images at a time: more batches than processes."""
    patch.setattr(Extractor, "features", functools.partialmethod(Extractor.features, batch_size=9))


def found(record):
    return {one.metric: one for one in record.measurements if not of_the_machine(one.metric)}


def assert_same(folder, record, expected_folder, expected):
    assert (record.status, record.error) == ("done", "")
    values = {name: one.value for name, one in found(expected).items()}
    assert min(values[name] for name in ("sample_fid", "kid", "mse", "iwae_bound", "sample_fid_prior_statistics")) != 0
    assert found(record) == found(expected)
    assert record.latent_groups == expected.latent_groups
    for name in EVALUATED:
        with np.load(folder / name) as ours, np.load(expected_folder / name) as theirs:
            assert set(ours) == set(theirs)
            for array in theirs:
                np.testing.assert_array_equal(ours[array], theirs[array], err_msg=array)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_evaluate_as_one(alone, tmp_path, monkeypatch, count):
    """Latent groups, batch norms under two statistics, features, samples; no features come from the cache."""
    folder = tmp_path / alone[0].name
    shutil.copytree(alone[0], folder)
    in_small_batches(monkeypatch)
    monkeypatch.setattr("benchmarks.evaluation.evaluate.cache_folder", lambda name: None)
    assert_same(folder, run_trial(folder, ranks=count), *alone)
