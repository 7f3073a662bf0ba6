"""Files in the place of weights: refused in one line, before anything large is made or read, and never run."""

import dataclasses
import io
import json
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.cli.parser import run_command
from benchmarks.storage.weights import build_model, load_model, save_weights
from benchmarks.suites.config import build_suite, read_suite, to_dict
from models.output import ImageShape

CPU = torch.device("cpu")
IMAGE = ImageShape(1, 8, 8)
ADVICE = ("weights_only", "allow_pickle", "Traceback", "pickle.load")


@pytest.fixture(scope="module")
def trial():
    """A small VAE."""
    name, table = read_suite("quick")
    trial = next(trial for trial in build_suite(name, table).trials if trial.model == "vae")
    return dataclasses.replace(trial, model_config=dataclasses.replace(trial.model_config, channels=2, latent_size=2))


@pytest.fixture(scope="module")
def good(trial):
    """Its tensors, and the metadata beside them."""
    model = build_model(trial, IMAGE, CPU)
    metadata = {"cell": to_dict(trial), "data_hash": "0", "image": dataclasses.asdict(IMAGE)}
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}, metadata


@pytest.fixture
def unread(monkeypatch):
    """Tensors are not read, nor is a model made of them but on the meta device."""

    def reading(path):
        raise AssertionError(path)

    def building(trial, image, device):
        assert device.type == "meta"
        return build_model(trial, image, device)

    monkeypatch.setattr("benchmarks.storage.tensors.load", reading)
    monkeypatch.setattr("benchmarks.storage.weights.build_model", building)


def refusal(capsys, path, tmp_path):
    """The one line of `convert`, which leaves nothing."""
    assert run_command(["convert", str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), error[:7]) == (1, "error: ")
    assert not any(words in error for words in ADVICE)
    assert not (tmp_path / "out").exists()
    assert len(error) < 1000
    return error


def first(tensors, change):
    """The tensors, the first of floating point changed."""
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    return {**tensors, name: change(tensors[name])}


def filled(value):
    return lambda tensors: first(tensors, lambda tensor: torch.full_like(tensor, value))


TENSORS = {
    "whole numbers": (lambda tensors: {k: v.long() for k, v in tensors.items()}, "whole numbers for floating point"),
    "complex": (lambda tensors: first(tensors, lambda v: v.to(torch.complex64)), "complex numbers for floating"),
    "truth values": (lambda tensors: first(tensors, lambda v: v > 0), "truth values for floating"),
    "counts as floats": (lambda tensors: {k: v.float() for k, v in tensors.items()}, "floating point for whole"),
    "NaN": (filled(torch.nan), "with NaN or infinite values"),
    "infinity": (filled(-torch.inf), "with NaN or infinite values"),
    "float64 beyond float32": (lambda t: first(t, lambda v: torch.full_like(v.double(), 1e300)), "NaN or infinite"),
    "eight bits": (lambda tensors: first(tensors, lambda v: v.to(torch.float8_e4m3fn)), "has type F8_E4M3"),
    "another shape": (lambda tensors: first(tensors, lambda v: v[:1]), "of another shape"),
    "nothing": (lambda tensors: {}, "more than the 0 tensors of the file"),
    "one more": (lambda tensors: {**tensors, "more": torch.zeros(1)}, "unexpected: more"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_not_the_models_weights_are_refused(tmp_path, capsys, good, kind):
    change, words = TENSORS[kind]
    tensors, metadata = good
    save_file(change(tensors), tmp_path / "w.safetensors", {"vaebench": json.dumps(metadata)})
    assert words in refusal(capsys, tmp_path / "w.safetensors", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_precision_is_converted(tmp_path, good, dtype):
    tensors, metadata = good
    converted = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(converted, tmp_path / "w.safetensors", {"vaebench": json.dumps(metadata)})
    found = load_model(tmp_path / "w.safetensors", CPU).model.state_dict()
    for name, value in found.items():
        assert torch.equal(value, converted[name].to(value.dtype))


def changed(path, value):
    """A change of one entry of the metadata."""

    def change(metadata):
        copy = json.loads(json.dumps(metadata))
        table = copy
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = value
        return json.dumps(copy)

    return change


def hierarchy(**sizes):
    """The metadata of an NVAE of such sizes."""

    def change(metadata):
        name, table = read_suite("quick")
        trial = next(trial for trial in build_suite(name, table).trials if trial.model == "nvae")
        cell = to_dict(trial)
        cell["model_config"] |= sizes
        return json.dumps({**metadata, "cell": cell})

    return change


METADATA = {
    "no JSON": lambda metadata: "{",
    "a list": lambda metadata: "[]",
    "a number": lambda metadata: "3",
    "nested": lambda metadata: "[" * 100_000,
    "a number of 5,000 digits": lambda metadata: "9" * 5000,
    "an image of text": changed(["image", "channels"], "x"),
    "an image of fractions": changed(["image", "height"], 8.5),
    "no image": changed(["image"], None),
    "a huge image": changed(["image", "height"], 10**9),
    "an image of nothing": changed(["image", "height"], 0),
    "a trial of text": changed(["cell"], "x"),
    "latents": changed(["cell", "model_config", "latent_size"], 10**9),
    "channels": changed(["cell", "model_config", "channels"], 10**9),
    "unknown model": changed(["cell", "model"], "../x"),
    "a model that is a list": changed(["cell", "model"], []),
    "groups": hierarchy(groups_fine_to_coarse=[10**9]),
    "cells": hierarchy(cells_per_group_encoder=10**9),
    "flows": hierarchy(flows=10**9),
    "groups of many cells": hierarchy(groups_fine_to_coarse=[1000] * 3, cells_per_group_decoder=100),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_is_no_description_is_refused(tmp_path, capsys, good, unread, kind):
    tensors, metadata = good
    save_file(tensors, tmp_path / "w.safetensors", {"vaebench": METADATA[kind](metadata)})
    assert "checkpoint" in refusal(capsys, tmp_path / "w.safetensors", tmp_path)


def test_huge_tensors_in_a_sparse_file_are_refused_by_its_header(tmp_path, capsys, good, unread):
    """10^12 bytes that take no room on the disk."""
    header = json.dumps(
        {
            "__metadata__": {"vaebench": json.dumps(good[1])},
            "w": {"dtype": "F32", "shape": [250, 10**9], "data_offsets": [0, 10**12]},
        }
    ).encode()
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 10**12)
    assert any(words in refusal(capsys, path, tmp_path) for words in ("missing", "memory"))


def archive(compression=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return buffer.getvalue()


def saved(contents, **options):
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


class Foreign:
    """Not a tensor: it would write a file where it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def arrays():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], dtype=object))
    return buffer.getvalue()


TORCH_FILES = {
    "an object": lambda: saved({"a": Foreign()}),
    "an object, old format": lambda: saved({"a": Foreign()}, _use_new_zipfile_serialization=False),
    "arrays": arrays,
    "an empty archive": lambda: archive(),
    "no pickle": lambda: archive(data__pkl=b"", **{"data.pkl": b"x", "version": b"3\n"}),
    "a plain pickle": lambda: archive(
        **{"data.pkl": pickle.dumps(Foreign()), "version": b"3\n", "byteorder": b"little"}
    ),
    "compressed": lambda: archive(zipfile.ZIP_DEFLATED, **{"data.pkl": bytes(10**7), "version": b"3\n"}),
    "cut short": lambda: saved({"a": torch.zeros(1000)})[:-2000],
    "a list": lambda: saved([1, 2]),
    "another layout": lambda: saved({"state_dict": {"prior_ftr0": torch.zeros(1)}, "args": {"x": 1}}),
}


@pytest.mark.parametrize("kind", TORCH_FILES)
def test_what_is_no_published_checkpoint_is_refused_without_torchs_advice(tmp_path, capsys, kind):
    (tmp_path / "checkpoint.pt").write_bytes(TORCH_FILES[kind]())
    assert "checkpoint.pt" in refusal(capsys, tmp_path / "checkpoint.pt", tmp_path)
    assert "unpickled" not in capsys.readouterr().out


def test_damaged_bytes_are_found_and_said_in_a_line(tmp_path, trial, capsys):
    """Eighty files with some bytes changed or cut off, by a fixed seed."""
    path, chance = tmp_path / "w.safetensors", random.Random(0)
    save_weights(build_model(trial, IMAGE, CPU), trial, "0", path)
    whole = path.read_bytes()
    for _ in range(80):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 4))):
            damaged[chance.randrange(chance.choice((16, len(damaged))))] = chance.randrange(256)
        damaged = damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))]
        path.write_bytes(damaged)
        code = run_command(["convert", str(path), str(tmp_path / "out.safetensors")])
        error = capsys.readouterr().err
        assert code == (0 if damaged == whole else 2)
        assert error.count("\n") == 1
