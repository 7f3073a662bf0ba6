"""Checkpoints of the original NVAE code through the command line: evaluated, converted, sampled, timed, refused."""

import json

import numpy as np
import pytest
import torch
from original_nvae import TOLERANCE, build, close, images, load, write_original

from benchmarks.cli.parser import run_command
from benchmarks.storage.weights import build_model, load_model, save_weights
from benchmarks.suites.config import build_suite, read_suite
from models.output import ImageShape

CPU = torch.device("cpu")
CASES = ["mnist_bernoulli", "color_iaf"]
AS_RECORDED = ["--posterior-mean", "--original-rules"]
ROUNDING = 2e-5  # relative; convolutions pick their algorithm by batch size and threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoint and images of each recorded case."""
    path = tmp_path_factory.mktemp("original")
    for name in CASES:
        case = load(name)
        write_original(path / f"{name}.pt", build(case, torch.float32), case["config"])
        np.savez(path / f"{name}.npz", images=images(name, case).permute(0, 2, 3, 1).numpy())
    return path


@pytest.fixture(autouse=True)
def _threads():
    """Threads are the process's; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def scores(checkpoint, data, out, *options):
    """Per-image figures that `evaluate` writes."""
    arguments = ["evaluate", str(checkpoint), "--data", f"npz:{data}", "--per-image", str(out), *options]
    assert run_command([*arguments, "--device", "cpu"]) == 0
    return json.loads(out.read_text())["images"]


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=ROUNDING, atol=ROUNDING)


def recorded(name):
    runs = load(name)["runs"]
    return next(run for run in runs if (run["dtype"], run["bn"], run["eps"]) == ("float32", "eval", "zero"))


def fails(capsys, *arguments):
    """The one line of an error."""
    assert run_command([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("converted", [None, "own", "own.safetensors"])
def test_figures_are_those_of_the_original(name, converted, folder, tmp_path):
    checkpoint = folder / f"{name}.pt"
    if converted is not None:
        assert run_command(["convert", str(checkpoint), str(tmp_path / converted)]) == 0
        checkpoint = tmp_path / converted
    found = scores(checkpoint, folder / f"{name}.npz", tmp_path / "out.json", *AS_RECORDED)
    run, tolerance = recorded(name), TOLERANCE["float32"]
    close([image["log_px_given_z"] for image in found], run["recon_log_prob_per_image"], tolerance)
    close(np.transpose([image["rates"] for image in found]), run["kl_per_group_per_image"], tolerance)
    close([image["elbo"] for image in found], run["elbo_per_image"], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_batch_size_and_threads_move_nothing(name, folder, tmp_path):
    results = [
        scores(folder / f"{name}.pt", folder / f"{name}.npz", tmp_path / "out.json", *options)
        for options in ([], ["--batch-size", "1"], ["--batch-size", "2", "--threads", "2"])
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_padded_images_and_pixels_of_any_type_are_the_same_images(folder, tmp_path):
    name = "mnist_bernoulli"
    bare = images(name, load(name))[:, 0].numpy()
    padded = np.pad(bare, ((0, 0), (2, 2), (2, 2)))
    results = []
    for array in (bare, padded, padded[..., None].astype(np.float64), 255 * bare.astype(np.uint8), bare.astype(bool)):
        np.savez(tmp_path / "images.npz", images=array)
        results.append(scores(folder / f"{name}.pt", tmp_path / "images.npz", tmp_path / "out.json"))
    for result in results[1:]:
        assert_same(results[0], result)


def test_grey_images_are_binarised_by_seed_with_and_without_padding(folder, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    results = []
    for array in (grey, np.pad(grey, ((0, 0), (2, 2), (2, 2))), grey / 255):
        np.savez(tmp_path / "images.npz", images=array)
        results.append(scores(folder / "mnist_bernoulli.pt", tmp_path / "images.npz", tmp_path / "out.json"))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_levels_of_fewer_bits_are_read_from_8_bit_pixels(folder, tmp_path):
    levels = images("color_iaf", load("color_iaf")).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "images.npz", images=np.rint(levels * 31).astype(np.uint8) * 8 + 5)
    options = [tmp_path / "out.json", *AS_RECORDED]
    fine = scores(folder / "color_iaf.pt", tmp_path / "images.npz", *options)
    assert_same(fine, scores(folder / "color_iaf.pt", folder / "color_iaf.npz", *options))


def test_the_original_edges_are_a_choice(tmp_path):
    """They differ where 8-bit pixels have the value 254."""
    case = load("color_iaf")
    arguments = case["config"] | {"num_x_bits": 8}
    path = write_original(tmp_path / "checkpoint.pt", build(case, torch.float32), arguments)
    np.savez(tmp_path / "images.npz", images=np.full((2, 32, 32, 3), 254, np.uint8))
    options = [path, tmp_path / "images.npz", tmp_path / "out.json", "--posterior-mean"]
    for right, original in zip(scores(*options), scores(*options, "--original-rules"), strict=True):
        assert right["rates"] == original["rates"]
        assert right["log_px_given_z"] < original["log_px_given_z"]


def test_what_is_no_bound_is_not_called_one(folder, capsys):
    arguments = ["evaluate", str(folder / "color_iaf.pt"), "--data", f"npz:{folder / 'color_iaf.npz'}"]
    assert run_command([*arguments, "--posterior-mean"]) == 0
    at_mean = capsys.readouterr().out
    assert "elbo" not in at_mean
    assert "log_q_over_p" in at_mean
    assert run_command([*arguments, "--json"]) == 0
    drawn = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert drawn["elbo"] == pytest.approx(-drawn["distortion"] - drawn["rate"])
    assert drawn["bits_per_dim"] == pytest.approx(-drawn["elbo"] / (3072 * np.log(2)))


@pytest.mark.parametrize("row", ["ae", "vae", "residual-vae", "nvae"])
def test_every_model_of_the_suite_is_scored(row, tmp_path):
    trial = build_suite(*read_suite("quick"), [row]).trials[0]
    model = build_model(trial, ImageShape(1, 28, 28), CPU)
    save_weights(model, trial, "hash", tmp_path / "weights.safetensors")
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8))
    (found,) = scores(tmp_path / "weights.safetensors", tmp_path / "images.npz", tmp_path / "out.json")
    assert len(found["rates"]) == len(model.latent_shapes)
    if model.has_prior:
        assert found["elbo"] == pytest.approx(found["log_px_given_z"] - sum(found["rates"]))
    else:
        assert found["elbo"] is None


def test_without_a_file_the_test_split_is_scored_image_by_image(tmp_path):
    trial = build_suite(*read_suite("quick"), ["vae"]).trials[0]
    save_weights(build_model(trial, ImageShape(1, 28, 28), CPU), trial, "hash", tmp_path / "weights.safetensors")
    options = ["--per-image", str(tmp_path / "out.json"), "--set", "images=7"]
    assert run_command(["evaluate", str(tmp_path / "weights.safetensors"), *options]) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 7


@pytest.mark.parametrize("mixtures", [1, 10])
def test_bits_are_those_of_the_checkpoint(mixtures, tmp_path):
    config = load("color_iaf")["config"] | {"num_mixture_dec": mixtures, "num_x_bits": 5}
    path = write_original(tmp_path / "checkpoint.pt", build({"config": config}, torch.float32), config)
    assert load_model(path, CPU).trial.bits == 5


def test_sample_and_throughput_take_an_original_checkpoint(folder, tmp_path, capsys):
    checkpoint = str(folder / "mnist_bernoulli.pt")
    assert run_command(["sample", checkpoint, "--n", "2", "--out", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").stat().st_size > 0
    capsys.readouterr()
    verbs = ("train", "encode", "reconstruct", "sample")
    flags = ["--what", ",".join(verbs), "--batch", "2", "--seconds", "0.01", "--json"]
    assert run_command(["throughput", checkpoint, *flags]) == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    assert all(rows[f"{verb}_throughput"]["value"] > 0 for verb in verbs)


def test_files_of_old_torch_versions_are_recognised(folder, tmp_path):
    contents = torch.load(folder / "mnist_bernoulli.pt", weights_only=False)
    torch.save(contents, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    new, old = (load_model(path, CPU).model for path in (folder / "mnist_bernoulli.pt", tmp_path / "old.pt"))
    for a, b in zip(new.parameters(), old.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_that_do_not_fit_are_one_line(folder, tmp_path, capsys):
    case = load("mnist_bernoulli")
    arguments = case["config"] | {"num_latent_per_group": 5}
    path = write_original(tmp_path / "checkpoint.pt", build(case, torch.float32), arguments, surplus=torch.zeros(1))
    line = fails(capsys, "sample", path, "--out", tmp_path / "grid.png")
    assert "unexpected: surplus; of another shape: enc_sampler.0.weight" in line
    assert line.count(str(path)) == 1


def test_other_files_are_one_line(folder, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    assert "expected an original NVAE checkpoint" in fails(capsys, "evaluate", tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((folder / "mnist_bernoulli.pt").read_bytes()[:5000])
    assert "read safely" in fails(capsys, "convert", tmp_path / "cut.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "options", "hint"),
    [
        ({"images": np.zeros((2, 30, 30))}, [], "expected 28x28 or 32x32 images of 1 channels"),
        ({"images": np.zeros((2, 28, 28, 3))}, [], "got 28x28 of 3"),
        ({"images": np.full((2, 28, 28), 2.5)}, [], "floating point of 0-1"),
        ({"images": np.zeros((0, 28, 28))}, [], "no empty axis"),
        ({"pictures": np.zeros((2, 28, 28))}, [], "expected arrays 'images', "),
        ({"images": np.zeros((2, 28, 28))}, ["--batch-size", "0"], "--batch-size: expected a whole number >= 1"),
        ({"images": np.zeros((2, 28, 28))}, ["--set", "iwae_samples=9"], "iwae_samples=9 changes nothing"),
        ({"images": np.zeros((2, 28, 28))}, ["--per-image", "{folder}"], "expected a file, got the folder"),
    ],
)
def test_images_that_do_not_fit_are_one_line(arrays, options, hint, folder, tmp_path, capsys):
    np.savez(tmp_path / "images.npz", **arrays)
    chosen = [option.format(folder=tmp_path) for option in options]
    line = fails(capsys, "evaluate", folder / "mnist_bernoulli.pt", "--data", f"npz:{tmp_path / 'images.npz'}", *chosen)
    assert hint in line


def test_a_checkpoint_names_no_data(folder, capsys):
    assert "give --data" in fails(capsys, "evaluate", folder / "mnist_bernoulli.pt")
