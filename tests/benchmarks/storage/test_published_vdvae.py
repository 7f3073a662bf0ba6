"""Checkpoints of the original VDVAE code through the command line: evaluated, converted, sampled, timed, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from original_vdvae import CASE, RECORDED, build, filled, pixels

from benchmarks.cli.parser import run_command
from benchmarks.speed.target import resolve
from benchmarks.speed.throughput import Settings, Variant, request_of
from benchmarks.storage.published.registry import read_published
from benchmarks.storage.weights import load_model
from kernels.reference.backend import REFERENCE
from models.likelihoods import LogisticMixtureSpec
from models.vdvae import VDVAE
from models.vdvae.presets import PRESETS

CPU = torch.device("cpu")
NATS, BITS = 1e-3, 2e-5  # float32, as in tests/models/test_vdvae_parity.py
DIMS = 3072
AS_RECORDED = ["--posterior-mean", "--original-rules", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of case A, with and without the wrapper's prefix; its settings, with some of a training; its images."""
    path, state = tmp_path_factory.mktemp("vdvae"), build(torch.float32).state_dict()
    torch.save(state, path / "latest-model-ema.th")
    torch.save({f"module.{key}": value for key, value in state.items()}, path / "latest-model.th")
    (path / "hparams.json").write_text(json.dumps(CASE["config"] | {"lr": 2e-4, "n_batch": 16}))
    np.savez(path / "images.npz", images=pixels())
    return path


@pytest.fixture(autouse=True)
def _threads():
    """Threads are the process's; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fails(capsys, *arguments):
    """The one line of an error."""
    assert run_command([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def scores(checkpoint, folder, out, *options):
    """Per-image figures that `evaluate` writes."""
    data = ["--data", f"npz:{folder / 'images.npz'}", "--per-image", str(out)]
    assert run_command(["evaluate", str(checkpoint), *data, *AS_RECORDED, *map(str, options)]) == 0
    return json.loads(out.read_text())["images"]


def assert_recorded(found):
    recorded = RECORDED["zero"]
    np.testing.assert_allclose(
        np.transpose([image["rates"] for image in found]), recorded["kl_nats_layer_image"], rtol=0, atol=NATS
    )
    bits = np.array([image["elbo"] for image in found]) / (-DIMS * np.log(2))
    np.testing.assert_allclose(bits, recorded["elbo_bits_per_dim_image"], rtol=0, atol=BITS)
    nats = -np.array([image["log_px_given_z"] for image in found]) / DIMS
    np.testing.assert_allclose(nats, recorded["distortion_nats_per_dim"], rtol=0, atol=BITS)


@pytest.mark.parametrize("name", ["latest-model.th", "latest-model-ema.th"])
def test_figures_are_those_of_the_original(name, folder, tmp_path):
    hparams = ["--hparams", folder / "hparams.json"]
    assert_recorded(scores(folder / name, folder, tmp_path / "out.json", *hparams))


def test_what_was_converted_says_the_same_without_settings(folder, tmp_path, capsys):
    hparams = ["--hparams", str(folder / "hparams.json")]
    assert run_command(["convert", str(folder / "latest-model.th"), str(tmp_path / "own"), *hparams]) == 0
    assert_recorded(scores(tmp_path / "own", folder, tmp_path / "out.json"))
    capsys.readouterr()
    refused = fails(capsys, "sample", tmp_path / "own", *hparams, "--out", tmp_path / "grid.png")
    assert "expected a checkpoint of a published code" in refused


def test_sample_and_throughput_take_an_original_checkpoint(folder, tmp_path, capsys):
    named = [str(folder / "latest-model-ema.th"), "--hparams", str(folder / "hparams.json")]
    assert run_command(["sample", *named, "--n", "2", "--draw", "--out", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").stat().st_size > 0
    capsys.readouterr()
    flags = ["--what", "train,encode", "--batch", "2", "--seconds", "0.01", "--device", "cpu", "--json"]
    assert run_command(["throughput", *named, *flags]) == 0
    rows = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert all(rows[name] > 0 for name in ("train_throughput", "encode_throughput"))


def test_another_process_is_told_the_settings(folder):
    checkpoint, hparams = str(folder / "latest-model.th"), str(folder / "hparams.json")
    (target,) = resolve(checkpoint, hparams=hparams)
    request = request_of(Variant("mine", target), Settings(device=CPU, what=(), seconds=1.0, draws=1))
    assert (request.source, request.hparams) == (checkpoint, hparams)


def test_a_published_model_is_known_by_its_shapes(monkeypatch, tmp_path):
    """Every preset by its own shapes on the meta device; the data set's statistics and bits come with it."""
    for name in ("vdvae-cifar10", "vdvae-ffhq256"):
        preset = PRESETS[name]
        with torch.device("meta"):
            state = VDVAE(preset.config, preset.image, preset.likelihood, REFERENCE).state_dict()
        loaded = {f"module.{key}": value for key, value in state.items()}
        monkeypatch.setattr("benchmarks.storage.published.registry.load_contents", lambda *_, loaded=loaded: loaded)
        reader, found = read_published(tmp_path / "any.th")
        assert (reader.label, found.setup) == ("VDVAE (original)", preset)
        assert found.state.keys() == state.keys()


def test_the_data_set_fixes_shift_scale_and_bits(folder, tmp_path):
    (tmp_path / "five.json").write_text(json.dumps(CASE["config"] | {"dataset": "ffhq_256"}))
    loaded = load_model(folder / "latest-model-ema.th", CPU, tmp_path / "five.json")
    assert loaded.trial.likelihood_spec == LogisticMixtureSpec(10, 5)
    assert loaded.model.config.pixel_mean == 112.8666757481
    assert loaded.trial.label == "VDVAE (original)"
    assert loaded.trial.training.betas == (0.9, 0.9)


def test_5_bits_are_scored_of_images_that_the_encoder_sees_in_8(folder, tmp_path):
    """By the original's rules; by ours the encoder sees the levels that are scored."""
    (tmp_path / "five.json").write_text(json.dumps(CASE["config"] | {"dataset": "ffhq_256"}))
    np.savez(tmp_path / "cut.npz", images=pixels() // 8 * 8)
    np.savez(tmp_path / "images.npz", images=pixels())
    found = {}
    for rules in ([], ["--original-rules"]):
        for name in ("images", "cut"):
            out = tmp_path / "out.json"
            command = ["evaluate", str(folder / "latest-model-ema.th"), "--hparams", str(tmp_path / "five.json")]
            data = ["--data", f"npz:{tmp_path / name}.npz", "--per-image", str(out), "--posterior-mean"]
            assert run_command([*command, *data, *rules, "--device", "cpu"]) == 0
            found[bool(rules), name] = json.loads(out.read_text())["images"][3]["rates"]
    assert found[False, "images"] == found[False, "cut"]
    assert found[True, "images"] != found[True, "cut"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset": "svhn"}, "dataset: expected one of cifar10, imagenet32"),
        ({"enc_blocks": "32q2"}, "encoder_blocks: expected R, RxN"),
        ({"width": "16"}, "expected width of type int, got '16'"),
        ({"width": True}, "expected width of type int, got True"),
        ({"width": 32}, "of another shape: encoder.in_conv.weight"),
        ({"image_size": 64}, "expected the side of square images"),
        ({"dec_blocks": "1x1,4m1,4x1,16m4,16x1,32m16"}, "unexpected: decoder.dec_blocks.6."),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, said, folder, tmp_path, capsys):
    path = tmp_path / "hparams.json"
    path.write_text(json.dumps(CASE["config"] | settings))
    line = fails(capsys, "convert", folder / "latest-model.th", tmp_path / "own", "--hparams", path)
    assert said in line
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected a JSON file of settings"),
        ("[1]", "expected an object of settings"),
        (json.dumps({"width": 16}), "expected dataset, which is missing"),
        (None, "No such file"),
    ],
)
def test_no_settings_are_one_line(text, said, folder, tmp_path, capsys):
    path = tmp_path / "hparams.json"
    if text is not None:
        path.write_text(text)
    for verb in (("evaluate", "--data", "mnist-5k"), ("throughput",)):
        line = fails(capsys, verb[0], folder / "latest-model.th", *verb[1:], "--hparams", path)
        assert said in line


def test_weights_that_fit_no_published_model_ask_for_settings(folder, tmp_path, capsys):
    line = fails(capsys, "convert", folder / "latest-model.th", tmp_path / "own")
    assert "a VDVAE with 7 blocks in its encoder, 7 in its decoder and width 16" in line
    assert "vdvae-cifar10" in line
    assert "--hparams FILE.json" in line


@pytest.mark.parametrize("key", ["decoder.gain", "decoder.dec_blocks.3.prior.c2.bias", "encoder.in_conv.weight"])
def test_a_wrong_or_missing_key_is_one_line(key, folder, tmp_path, capsys):
    state = build(torch.float32).state_dict()
    path, hparams = tmp_path / "model.th", ["--hparams", folder / "hparams.json"]
    torch.save({name: value for name, value in state.items() if name != key}, path)
    assert f"missing: {key}" in fails(capsys, "convert", path, tmp_path / "own", *hparams)
    torch.save({**state, "decoder.surplus": torch.zeros(1)}, path)
    assert "unexpected: decoder.surplus" in fails(capsys, "convert", path, tmp_path / "own", *hparams)
    torch.save({**state, key: torch.zeros(3)}, path)
    assert f"of another shape: {key} (3,)" in fails(capsys, "convert", path, tmp_path / "own", *hparams)


def test_settings_beside_what_needs_none_are_one_line(folder, tmp_path, capsys):
    hparams = ["--hparams", folder / "hparams.json"]
    assert "leave the flag out" in fails(capsys, "throughput", "vdvae-tiny", *hparams)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    assert "or weights of an original VDVAE" in fails(capsys, "evaluate", tmp_path / "other.pt", *hparams)


def test_weights_come_back_in_the_originals_layout(folder):
    """What our model saves is what the original loads: same keys, shapes and order."""
    loaded = load_model(folder / "latest-model.th", CPU, folder / "hparams.json")
    state = loaded.model.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == CASE["state_dict"]
    assert all(torch.equal(value, filled(key, value.shape)) for key, value in state.items())
