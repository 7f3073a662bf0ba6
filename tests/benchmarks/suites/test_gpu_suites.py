"""A suite for a GPU from its files to its table, at less than a millionth of its budget, on the CPU."""

import json
import os
import subprocess
import sys

import pytest
from imagenet_files import write_imagenet

from benchmarks.suites.config import read_suite

SHORT = [
    *("training.batch_size=4", "training.precision=float32", "models.nvae-published.training.batch_size=4"),
    *("evaluation.images=20", "evaluation.samples=24", "evaluation.iwae_samples=2", "evaluation.prior_batches=1"),
    *("evaluation.batch_size=10", "training.validations=0"),
]
NARROW = ("channels_encoder=4", "channels_decoder=4", "latent_channels=2")
"""Of rows with NVAE's cells."""


@pytest.fixture
def run(tmp_path):
    """Calls the suite imagenet32 in a process of its own, on files in the layout of the release."""
    write_imagenet(tmp_path / "cache/vaebench/data/imagenet32/Imagenet32_train_npz", 32, train=10_200)

    def call(*arguments):
        command = [sys.executable, "-m", "benchmarks", "run", "imagenet32", "--device", "cpu", "--threads", "1"]
        variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run(
            [*command, "--out", str(tmp_path / "out"), *arguments], capture_output=True, text=True, env=variables
        )

    return call


@pytest.mark.slow
def test_a_plan_needs_no_weights_and_a_run_says_which_before_it_trains(run, tmp_path):
    planned = run("--dry-run", "--models", "vae,nvae-small")
    assert planned.returncode == 0, planned.stderr
    assert "missing, without it no row is trained: extractor 'inception'" in planned.stderr
    assert "587,052 parameters" in planned.stdout
    started = run("--models", "vae,nvae-small")
    assert started.returncode == 2
    assert "--inception-weights" in started.stderr
    assert started.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_suite_for_a_gpu_runs_from_files_to_table(run, tmp_path):
    rows = list(read_suite("imagenet32")[1]["models"])
    narrow = [f"models.{row}.{field}" for row in rows if "vae" != row != "strong-vae" for field in NARROW]
    few = ["models.nvae-published.groups_fine_to_coarse=[3]", "models.vae.channels=8", "models.strong-vae.channels=8"]
    settings = [*SHORT, *narrow, *few, "evaluation.extractor=photos-cnn-v1"]
    found = run("--budget", "images=16", *(word for one in settings for word in ("--set", one)))
    assert found.returncode == 0, found.stderr
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*/record.json"))]
    assert sorted(record["row"] for record in records) == sorted(rows)
    for record in records:
        measured = {one["metric"]: one for one in record["measurements"]}
        assert record["status"] == "done", record["error"]
        assert record["images_seen"] == 16
        assert measured["bits_per_dim"]["value"] > 0
        sampled = measured["sample_fid"]
        assert (sampled["n"], sampled["details"]["n_reference"]) == (24, 10_200)
        assert sampled["details"]["reference_split"] == "train"
        assert measured["fid_floor"]["n"] == 20
    assert "Published values" in (tmp_path / "out" / "index.md").read_text()
