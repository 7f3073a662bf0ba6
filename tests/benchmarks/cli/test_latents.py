"""Latents of images into a file and out of it: the verbs `encode` and `decode`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.cli.parser import run_command
from benchmarks.data import keyed_generator, load, model_input, to_uint8
from benchmarks.storage.latents import LatentsFile
from benchmarks.storage.weights import build_model, load_model, save_weights
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from models.output import Draw, ImageShape

CPU = torch.device("cpu")
N = 11
BATCH = 4
"""Images a pass, the last pass fewer."""
SMALL = ["channels_encoder=4", "channels_decoder=4", "channel_cap=8", "latent_channels=3"]
ROWS = {"vae": ["channels=4"], "residual-vae": SMALL, "nvae": SMALL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained weights of the quick suite's rows, smaller, and images for them."""
    folder = tmp_path_factory.mktemp("weights")
    name, table = read_suite("quick")
    for row, fields in ROWS.items():
        apply_overrides(table, [f"models.{row}.{field}" for field in fields], None)
    apply_overrides(table, [f"evaluation.batch_size={BATCH}"], None)
    for trial in build_suite(name, table, ["ae", *ROWS]).trials:
        save_weights(build_model(trial, ImageShape(1, 28, 28), CPU), trial, "hash", folder / f"{trial.row}.safetensors")
    pixels = torch.randint(0, 256, (N, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.savez(folder / "images.npz", images=pixels.numpy())
    return folder


@pytest.fixture
def call(folder, tmp_path, monkeypatch, capsys):
    """`call(verb, ...)` in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_command([*map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.strip()

    return run


@pytest.fixture
def encode(folder, call):
    """`encode(row, ...)` of the images; returns stdout and the last line of stderr."""

    def run(row, *flags):
        data = ("--data", f"npz:{folder / 'images.npz'}") if "--data" not in flags else ()
        code, out, said = call("encode", folder / f"{row}.safetensors", *data, *flags)
        assert code == 0, said
        return out, said.splitlines()[-1]

    return run


@pytest.fixture
def decode(folder, call):
    """`decode(row, ...)`; returns images (n, H, W, C) and what was said."""

    def run(row, *flags, latents="latents.safetensors"):
        checkpoint = folder / f"{row}.safetensors"
        code, _, said = call("decode", latents, "--checkpoint", checkpoint, "--npz", "out.npz", *flags)
        assert code == 0, said
        return np.load("out.npz")["images"], said

    return run


def loaded_of(folder, row):
    return load_model(folder / f"{row}.safetensors", CPU)


def reconstruction(folder, row, draw):
    """The model's own, batch by batch, of the binarised images of the file."""
    loaded = loaded_of(folder, row)
    images = torch.from_numpy(np.load(folder / "images.npz")["images"])[:, None]
    x = model_input(images, loaded.trial.likelihood_spec, keyed_generator(loaded.trial.seed, "test binarisation"))
    with torch.inference_mode():
        parts = [loaded.model(x[i : i + BATCH], draw(i)).likelihood.mean() for i in range(0, N, BATCH)]
    return to_uint8(torch.cat(parts)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("row", ROWS)
def test_all_latents_decode_to_the_reconstruction(row, folder, encode, decode):
    encode(row, "--posterior-mean")
    seed = torch.tensor(0)
    expected = reconstruction(folder, row, lambda start: Draw(seed, first_sample=start, at_mean=True))
    images, said = decode(row)
    assert np.array_equal(images, expected)
    groups = len(loaded_of(folder, row).model.latent_shapes)
    assert said.startswith(f"read {groups} of {groups} latent groups (group00")
    assert f"posterior means, of {N} images of npz:" in said


def test_the_file_says_what_it_holds(folder, encode):
    encode("nvae", "--seed", 3, "--n", 5)
    model = loaded_of(folder, "nvae").model
    file = LatentsFile(Path("latents.safetensors"))
    head = file.head
    assert (head.n, head.image, head.groups, head.at_mean, head.seed) == (5, model.image, model.latent_shapes, False, 3)
    assert (head.model, head.split) == ("NVAE", "")
    tensors = load_file("latents.safetensors")
    names = {f"group{index:02d}.{part}" for index in range(len(head.groups)) for part in ("z", "mean", "scale")}
    assert set(tensors) == names
    for index, shape in enumerate(head.groups):
        z, mean, scale = (tensors[f"group{index:02d}.{part}"] for part in ("z", "mean", "scale"))
        assert tuple(z.shape) == (5, shape.channels, shape.height, shape.width)
        assert bool((scale > 0).all())
        assert ((z - mean) / scale).std().item() == pytest.approx(1, abs=0.25)  # 140 draws or more a group
    parts = file.read(0, 2, 3), file.read(2, 9, 3)
    for index, (first, rest) in enumerate(zip(*parts, strict=True)):
        assert torch.equal(torch.cat([first.z, rest.z]), tensors[f"group{index:02d}.z"])


def test_test_images_are_encoded_as_they_are_evaluated(folder, encode, decode):
    """Its own test split, in batches, is binarised as all of it at once."""
    loaded = loaded_of(folder, "vae")
    data = load(loaded.trial.data)
    encode("vae", "--data", loaded.trial.data, "--posterior-mean", "--n", 2 * BATCH + 1)
    images, said = decode("vae")
    x = model_input(data.test, loaded.trial.likelihood_spec, keyed_generator(loaded.trial.seed, "test binarisation"))
    with torch.inference_mode():
        whole = loaded.model(x[: 2 * BATCH + 1], Draw(torch.tensor(0), at_mean=True)).likelihood.mean()
    assert np.abs(images[:, None, ..., 0].astype(int) - to_uint8(whole).numpy()).max() <= 1  # another batch size
    assert f"of {2 * BATCH + 1} test images of {loaded.trial.data}" in said


def test_seeds_differ_in_what_is_drawn_alone(encode, decode):
    encode("nvae")
    files = {seed: decode("nvae", "--keep", 2, "--seed", seed)[0] for seed in (1, 2)}
    again, said = decode("nvae", "--keep", 2, "--seed", 1, "--batch-size", N)
    assert not np.array_equal(files[1], files[2])
    assert np.abs(again.astype(int) - files[1]).max() <= 1  # rounding of a product may depend on the batch
    assert "read 2 of 5 latent groups (group00 to group01)" in said
    assert said.splitlines()[0].endswith("; 3 drawn from the prior at temperature 1")
    assert np.array_equal(decode("nvae", "--keep", 5)[0], decode("nvae")[0])


def test_without_a_group_images_are_samples_and_at_temperature_zero_alike(encode, decode):
    encode("nvae")
    warm, said = decode("nvae", "--keep", 0)
    assert "read 0 of 5 latent groups, 0 of" in said
    assert not np.array_equal(warm[0], warm[1])
    cold, _ = decode("nvae", "--keep", 0, "--temperature", 0, "--seed", 4)
    assert all(np.array_equal(image, cold[0]) for image in cold[:BATCH])
    last, _ = decode("nvae", "--keep", 0, "--temperature", "0,0,0,0,1")
    assert not np.array_equal(last, cold)


def test_pruned_without_dead_channels_is_whole(encode, decode, monkeypatch):
    monkeypatch.setattr("benchmarks.metrics.latents.ACTIVE_VARIANCE", -1.0)
    monkeypatch.setattr("benchmarks.metrics.latents.ACTIVE_RATE", -1.0)
    encode("nvae", "--posterior-mean")
    _, said = encode("nvae", "--posterior-mean", "--prune", "--out", "pruned.safetensors")
    assert "(0 of 15 channels dropped)" in said
    whole, pruned = decode("nvae")[0], decode("nvae", latents="pruned.safetensors")[0]
    assert np.array_equal(whole, pruned)


def test_dead_channels_are_dropped_and_the_cost_is_said(encode, decode, monkeypatch, folder):
    monkeypatch.setattr("benchmarks.metrics.latents.ACTIVE_RATE", 1e9)  # all later groups are dead
    out, said = encode("nvae", "--prune", "--json")
    found = json.loads(out)
    assert [len(group["dead_channels"]) for group in found["groups"][1:]] == [3] * 4
    assert found["latents"]["n"] == N
    images, told = decode("nvae")
    assert "channels that were dropped are at their prior's mean" in told
    originals = np.load(folder / "images.npz")["images"][..., None]
    errors = ((images.astype(float) - originals) / 255) ** 2
    assert found["mse"]["mse_pruned"] == pytest.approx(errors.mean())
    assert found["mse"]["mse_all"] != found["mse"]["mse_pruned"]
    assert f"{found['mse']['mse_pruned']:.6f} with these" in said
    with safe_open("latents.safetensors", "pt") as file:
        assert file.get_slice("group04.z").get_shape()[:2] == [N, 0]


def test_the_table_holds_what_the_json_holds(encode):
    out, _ = encode("nvae", "--stats")
    lines = out.strip().splitlines()
    assert lines[0].split("|")[1:3] == [" Group   ", " Shape "]
    assert [line.split()[1] for line in lines[2:]] == [f"group{index:02d}" for index in range(5)]
    groups = json.loads(encode("nvae", "--json")[0])["groups"]
    rates = [float(line.split("|")[3]) for line in lines[2:]]
    assert rates == pytest.approx([group["rate"] for group in groups], rel=0.01)
    assert [line.split("|")[5].strip() for line in lines[2:]] == [
        f"{g['active_units']} of {g['units']}" for g in groups
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep", 6], "--keep: expected 0 to 5, the latent groups of NVAE, got 6"),
        (["--keep", -1], "--keep: expected a whole number >= 0"),
        (["--keep", "two"], "--keep: expected a whole number >= 0"),
        (["--keep", 1, "--temperature", "1,1"], "--temperature: expected a number >= 0, or 5 between commas"),
        (["--keep", 1, "--temperature", "warm"], "got warm"),
        (["--keep", 1, "--temperature", "-1"], "got -1"),
        (["--keep", 1, "--temperature", "nan"], "got nan"),
        (["--temperature", "0.5"], "none is drawn; give --keep"),
        (["--keep", 5, "--seed", "1"], "none is drawn; give --keep"),
        (["--npz", "a.zip"], "ends in .npz"),
        (["--checkpoint", "vae"], "latents of NVAE for 1x28x28 images in 5 groups of"),
        (["--checkpoint", "other"], "choose the checkpoint that encoded them"),
        (["--checkpoint", "ae"], "not of"),
    ],
)
def test_what_cannot_be_decoded_is_one_line(folder, encode, call, tmp_path, flags, said):
    encode("nvae", "--n", 2)
    if "other" in flags:
        loaded = loaded_of(folder, "nvae")
        loaded.model.prior_ftr0.data += 1e-3
        save_weights(loaded.model, loaded.trial, "hash", folder / "other.safetensors")
    flags = [folder / f"{flag}.safetensors" if flag in ("vae", "other", "ae") else flag for flag in flags]
    code, out, error = call("decode", "latents.safetensors", "--checkpoint", folder / "nvae.safetensors", *flags)
    assert (code, out, error.count("\n")) == (2, "", 0)
    assert error.startswith("error: ")
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["latents.safetensors"]


def test_a_file_of_something_else_is_one_line(folder, encode, call, tmp_path):
    encode("nvae", "--n", 2)
    tensors = load_file("latents.safetensors")
    with safe_open("latents.safetensors", "pt") as file:
        metadata = file.metadata()
    missing = {name: tensor for name, tensor in tensors.items() if name != "group03.mean"}
    beyond = tensors | {"group01.channels": torch.tensor([0, 1, 3])}
    save_file(tensors, tmp_path / "foreign.safetensors")
    save_file(missing, tmp_path / "missing.safetensors", metadata)
    save_file(tensors | {"group03.z": tensors["group03.z"][:1]}, tmp_path / "short.safetensors", metadata)
    save_file(beyond, tmp_path / "beyond.safetensors", metadata)
    whole = (tmp_path / "latents.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.safetensors").write_text("<html>")
    for name, said in {
        "absent.safetensors": "expected a .safetensors file, found none",
        "foreign.safetensors": "not one that this suite wrote",
        "missing.safetensors": "group03.mean",
        "short.safetensors": "group03.z is of shape [1, ",
        "beyond.safetensors": "group01.channels",
        "cut.safetensors": "expected a readable safetensors file",
        "page.safetensors": "got a web page",
        str(folder / "vae.safetensors"): "expected what `encode` of this version wrote",
    }.items():
        code, _, error = call("decode", name, "--checkpoint", folder / "nvae.safetensors")
        assert (code, error.count("\n")) == (2, 0), error
        assert error.startswith(f"error: file of latents {name}: ")
        assert said in error


@pytest.mark.parametrize(
    ("row", "flags", "said"),
    [
        ("ae", [], ": ae has no latents with a prior"),
        ("vae", ["--n", N + 1], f"--n: expected at most the {N} images of npz:"),
        ("vae", ["--n", 0], "expected a whole number >= 1"),
        ("vae", ["--n", 1, "--stats"], "expected at least 2 images, got 1"),
        ("vae", ["--out", "latents.pt"], "ends in .safetensors"),
        ("vae", ["--split", "tests"], "invalid choice: 'tests'"),
        ("vae", ["--data", "minst-5k"], "did you mean 'mnist-5k'"),
        ("vae", ["--data", "patches"], "expected 28x28 images of 1 channels"),
    ],
)
def test_what_cannot_be_encoded_is_one_line(folder, call, tmp_path, row, flags, said):
    data = ("--data", f"npz:{folder / 'images.npz'}")
    code, out, error = call("encode", folder / f"{row}.safetensors", *data, *flags)
    assert (code, out, error.count("\n")) == (2, "", 0)
    assert error.startswith("error: ")
    assert said in error
    assert not list(tmp_path.iterdir())


def test_an_encoding_that_is_interrupted_leaves_nothing(encode, monkeypatch, tmp_path, call, folder):
    encode("vae", "--n", 3)
    before = (tmp_path / "latents.safetensors").read_bytes()

    def interrupted(groups):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.evaluation.encoding.latents_of", interrupted)
    code, _, _ = call("encode", folder / "vae.safetensors", "--data", f"npz:{folder / 'images.npz'}")
    assert code == 130
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("latents.safetensors", before)]
