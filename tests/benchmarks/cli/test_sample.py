"""Drawn images in grids, folders and archives: any number, the same ones in each."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cli.parser import run_command
from benchmarks.cli.sample import TOGETHER, drawn
from benchmarks.data.arrays import npz_images
from benchmarks.evaluation import evaluate as evaluating
from benchmarks.records.catalogue import SAMPLE_METRICS
from benchmarks.storage.weights import build_model, save_weights, trained_folder, write_config
from benchmarks.suites.config import build_suite, read_suite
from models.output import ImageShape

N = TOGETHER + 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    trial = build_suite(*read_suite("quick"), ["vae"]).trials[0]
    model = build_model(trial, ImageShape(1, 28, 28), torch.device("cpu"))
    path = tmp_path_factory.mktemp("weights") / "vae.safetensors"
    save_weights(model, trial, "hash", path)
    return path


def call(capsys, *arguments):
    code = run_command(["sample", *map(str, arguments)])
    return code, capsys.readouterr().err.strip()


def test_folder_archive_and_grid_hold_the_same_images(weights, tmp_path, capsys):
    places = "--each", tmp_path / "each", "--npz", tmp_path / "s.npz", "--out", tmp_path / "grid.png"
    code, said = call(capsys, weights, "--n", N, *places)
    assert (code, said.count("\n")) == (0, 0)
    files = sorted((tmp_path / "each").iterdir())
    each = np.stack([np.asarray(Image.open(path)) for path in files])
    archive = np.load(tmp_path / "s.npz")["images"]
    assert [path.name for path in files] == [f"{index:05d}.png" for index in range(N)]
    assert np.array_equal(each[..., None], archive)
    assert torch.equal(npz_images(tmp_path / "s.npz").images[:, 0], torch.from_numpy(each))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(grid[2:30, 2:30], each[0])
    assert np.array_equal(grid[-30:-2][:, (N - 1) % 9 * 30 + 2 :][:, :28], each[-1])


def test_an_image_depends_on_seed_and_index_alone(weights, tmp_path, capsys):
    for name, n in (("few", 3), ("many", N)):
        assert call(capsys, weights, "--n", n, "--npz", tmp_path / f"{name}.npz")[0] == 0
    few, many = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("few", "many"))
    assert np.abs(few.astype(int) - many[:3]).max() <= 1  # rounding of a product may depend on the batch
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.PNG", "PNG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")])
def test_the_suffix_is_the_format(weights, tmp_path, capsys, name, kind):
    assert call(capsys, weights, "--n", 4, "--out", tmp_path / name)[0] == 0
    assert Image.open(tmp_path / name).format == kind


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "a.pngg"], "did you mean '.png'"),
        (["--out", "grid"], "unknown suffix of an image file 'grid'"),
        (["--npz", "a.zip"], "ends in .npz"),
        (["--each", "."], "new or an empty folder"),
        (["--temperature", "nan"], "--temperature: expected a number > 0"),
        (["--temperature", "inf"], "--temperature: expected a number > 0"),
    ],
)
def test_what_cannot_be_written_is_one_line(weights, tmp_path, capsys, monkeypatch, flags, said):
    (tmp_path / "own.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    code, error = call(capsys, weights, "--n", 2, *flags)
    assert (code, error.count("\n")) == (2, 0)
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


def test_drawn_pixels_are_binary_and_repeat(weights):
    from benchmarks.storage.weights import load_model

    model = load_model(weights, torch.device("cpu")).model
    first, again = (torch.cat(list(drawn(model, range(N), 3, 1.0, pixels=True))) for _ in range(2))
    assert torch.equal(first, again)
    assert set(first.unique().tolist()) == {0, 255}
    assert not torch.equal(first[:7], first[-7:])


def test_a_row_of_a_run_stands_for_its_first_seed_with_weights(weights, tmp_path, capsys):
    trial = build_suite(*read_suite("quick"), ["vae"]).trials[0]
    for seed in (10, 2):
        folder = tmp_path / f"vae-seed{seed}-0123"
        folder.mkdir()
        write_config(dataclasses.replace(trial, seed=seed), folder)
        (folder / "weights.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "vae-seed1-0123").mkdir()  # a trial whose weights were not kept
    (tmp_path / "vae-32-seed0-0123").mkdir()  # another row
    assert trained_folder(tmp_path / "vae") == tmp_path / "vae-seed2-0123"
    assert call(capsys, tmp_path / "vae", "--n", 4, "--out", tmp_path / "a.png")[0] == 0
    code, said = call(capsys, tmp_path / "va", "--n", 4, "--out", tmp_path / "b.png")
    assert (code, str(tmp_path / "va") in said) == (2, True)


def test_an_evaluation_that_fails_in_part_prints_the_rest_and_says_so(weights, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no room for samples")

    monkeypatch.setattr(evaluating, "draw_samples", fail)
    settings = [f"--set=evaluation.{name}=100" for name in ("images", "samples")]
    code = run_command(["evaluate", str(weights), "--device", "cpu", "--set", "evaluation.iwae_samples=1", *settings])
    shown = capsys.readouterr()
    assert code == 1
    assert "error: evaluation failed: samples: no room for samples" in shown.err.splitlines()
    assert "mse" in shown.out


SHARDED = 2 * TOGETHER + 7
"""Three passes, the last a short one."""


def in_shards(capsys, weights, folder, *flags, count=2):
    for index in (2, 1):  # in any order
        where = "--each", folder / "each", "--npz", folder / f"{index}.npz"
        assert call(capsys, weights, "--n", SHARDED, "--shard", f"{index}/{count}", *where, *flags)[0] == 0


@pytest.mark.parametrize("flags", [[], ["--draw", "--seed", "3"]])
def test_shards_are_together_the_images_of_one_call_bit_for_bit(weights, tmp_path, capsys, flags):
    assert call(capsys, weights, "--n", SHARDED, "--each", tmp_path / "whole", *flags)[0] == 0
    in_shards(capsys, weights, tmp_path, *flags)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == SHARDED
    assert {path.name: path.read_bytes() for path in (tmp_path / "each").glob("*.png")} == whole
    parts = [np.load(tmp_path / f"{index}.npz")["images"] for index in (1, 2)]
    assert [len(part) for part in parts] == [2 * TOGETHER, 7]
    pixels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "each").glob("*.png"))]
    assert np.array_equal(np.concatenate(parts)[..., 0], np.stack(pixels))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shard", "0/2", "--each", "d"], "expected i/N, the i-th of N parts from 1/N to N/N"),
        (["--shard", "3/2", "--each", "d"], "got '3/2'"),
        (["--shard", "1", "--each", "d"], "got '1'"),
        (["--shard", "1/9", "--each", "d"], "expected at most 3 parts of 135 images"),
        (["--shard", "1/2"], "--each DIR, which all parts may share"),
        (["--shard", "1/2", "--out", "a.png", "--npz", "a.npz"], "without --out"),
        (["--shard", "1/2", "--each", "."], "found other files"),
        (["--each", "."], "new or an empty folder"),
    ],
)
def test_shards_that_cannot_be_are_one_line(weights, tmp_path, capsys, monkeypatch, flags, said):
    (tmp_path / "own.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    code, error = call(capsys, weights, "--n", SHARDED, *flags)
    assert (code, error.count("\n")) == (2, 0)
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


def test_a_folder_takes_shards_of_the_same_images_alone(weights, tmp_path, capsys):
    in_shards(capsys, weights, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "each").iterdir()}
    code, said = call(capsys, weights, "--n", SHARDED, "--shard", "1/2", "--each", tmp_path / "each", "--seed", "1")
    assert (code, said.count("\n")) == (2, 0)
    assert "expected a new folder, or one of parts of" in said
    assert call(capsys, weights, "--n", SHARDED, "--shard", "1/2", "--each", tmp_path / "each")[0] == 0  # once more
    assert {path: path.read_bytes() for path in (tmp_path / "each").iterdir()} == before


def evaluated(capsys, *words):
    code = run_command(["evaluate", *map(str, words), "--set", "images=100", "--device", "cpu"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out) if code == 0 else shown.err


def test_samples_of_shards_are_scored_as_those_of_one_archive(weights, tmp_path, capsys):
    """With the settings of a checkpoint, or with defaults on a data set; parts that are missing are said."""
    in_shards(capsys, weights, tmp_path)
    assert call(capsys, weights, "--n", SHARDED, "--npz", tmp_path / "whole.npz")[0] == 0
    code, rows = evaluated(capsys, weights, "--samples", tmp_path / "each", "--json")
    assert code == 0
    values = {row["metric"]: row["value"] for row in rows}
    assert set(values) == {*SAMPLE_METRICS, "fid_floor"}
    assert min(values["sample_fid"], values["fid_floor"]) > 0
    assert {row["n"] for row in rows} == {SHARDED, 100}
    for words in (
        [weights, "--samples", tmp_path / "whole.npz"],
        ["--samples", tmp_path / "each", "--data", "mnist-5k"],
    ):
        assert {row["metric"]: row["value"] for row in evaluated(capsys, *words, "--json")[1]} == values
    next((tmp_path / "each").glob("*.png")).unlink()
    code, said = evaluated(capsys, weights, "--samples", tmp_path / "each")
    assert (code, f"expected the {SHARDED} images" in said, said.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a checkpoint, or --samples DIR"),
        (["--samples", "."], "--data NAME of the images to compare with"),
        (["--samples", "nowhere", "--data", "mnist-5k"], "nowhere"),
        (["--samples", ".", "--data", "mnist-5k"], "expected image files"),
        (["--samples", "a.npz", "--data", "mnist-5k"], "expected images as those of mnist-5k"),
        (["--samples", "a.npz", "--data", "mnist-5k", "--posterior-mean"], "--posterior-mean plays no part"),
        (["--samples", "a.npz", "--data", "npz:a.npz"], "--data npz:FILE plays no part"),
    ],
)
def test_samples_that_cannot_be_scored_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    np.savez(tmp_path / "a.npz", images=np.zeros((12, 4, 4, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    code, error = evaluated(capsys, *words)
    assert (code, error.count("\n")) == (2, 1)
    assert said in error
