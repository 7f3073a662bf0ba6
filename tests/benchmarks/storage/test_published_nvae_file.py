"""Original checkpoints: layouts on the meta device, parameter counts, reading, refusing."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import pytest
import torch
from original_nvae import DATA, original_state_dict, write_original

from benchmarks.storage.fit import load_weights
from benchmarks.storage.published.checkpoint import PublishedModel
from benchmarks.storage.published.registry import read_published
from kernels.reference.backend import REFERENCE
from models.nvae import NVAE
from models.nvae.presets import PRESETS
from models.nvae.published import setup_from_arguments
from models.output import Draw, Model
from models.presets import ModelSetup
from models.registry import build as build_model

LAYOUTS = json.loads((DATA / "checkpoint_layout.json").read_text())["configs"]
PRESET_OF_ROW = {
    "mnist": "nvae-mnist",
    "cifar10": "nvae-cifar10",
    "celeba_64": "nvae-celeba64",
    "imagenet_32": "nvae-imagenet32",
    "celeba_256": "nvae-celebahq256",
    "celeba_256_24ch": "nvae-celebahq256-24ch",
    "ffhq": "nvae-ffhq256",
}


def build_meta(setup: ModelSetup) -> NVAE:
    with torch.device("meta"):
        return NVAE(setup.config, setup.image, setup.likelihood, REFERENCE)


def published() -> list[dict[str, str]]:
    with (DATA / "presets.csv").open() as file:
        return list(csv.DictReader(file))


def typed(row: dict[str, str]) -> dict[str, object]:
    """A row's arguments with their types."""
    truth = {"True": True, "False": False}
    typed: dict[str, object] = {k: truth.get(v, int(v) if v.isdecimal() else v) for k, v in row.items()}
    return typed | {k: float(row[k]) for k in ("weight_decay_norm", "weight_decay_norm_init")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_reproduced(name: str) -> None:
    layout = LAYOUTS[name]
    model = build_meta(setup_from_arguments(layout["config"]))
    state = original_state_dict(model)
    assert [[key, list(value.shape), str(value.dtype)[6:]] for key, value in state.items()] == layout["state_dict"]
    assert [key for key in state if key.endswith(".weight_normalized")] == layout["alias_keys"]
    assert [key for key, _ in model.named_parameters()] == layout["optimizer_param_order"]
    assert sum(p.numel() for p in model.parameters()) == layout["n_params"]
    named = dict(model.named_modules())
    convs = [key for key, module in named.items() if isinstance(module, torch.nn.Conv2d)]
    norms = [key for key, module in named.items() if isinstance(module, torch.nn.BatchNorm2d)]
    assert convs == layout["conv_layers_in_spectral_order"]
    assert norms == layout["bn_layers_in_order"]


@pytest.mark.parametrize("row", published(), ids=lambda row: row["preset"])
def test_preset_equals_the_published_model(row: dict[str, str]) -> None:
    preset = PRESETS[PRESET_OF_ROW[row["preset"].split()[0]]]
    setup = setup_from_arguments(typed(row))
    assert ModelSetup(preset.model, preset.config, preset.image, preset.likelihood) == setup
    model = build_meta(setup)
    assert sum(p.numel() for p in model.parameters()) == int(row["params_measured"]) == preset.parameters
    assert len(original_state_dict(model)) == int(row["state_dict_entries"])
    assert len(model.latent_shapes) == int(row["total_groups"])
    assert sum(shape.count for shape in model.latent_shapes) == int(row["total_latent_variables"])
    assert model.image.dims == int(row["data_dims"])


def small_arguments() -> dict[str, object]:
    return LAYOUTS["extra_mbconv_enc"]["config"]


def small_model() -> NVAE:
    torch.manual_seed(0)
    setup = setup_from_arguments(small_arguments())
    return NVAE(setup.config, setup.image, setup.likelihood, REFERENCE).eval()


def build(published: PublishedModel) -> Model:
    """The model with the checkpoint's weights."""
    setup = published.setup
    model = build_model(setup.model, setup.config, setup.image, setup.likelihood, REFERENCE)
    load_weights(model, published.state)
    return model.eval()


@torch.no_grad()
def test_checkpoint_file_gives_the_same_model(tmp_path: Path) -> None:
    model = small_model()
    reader, published = read_published(write_original(tmp_path / "checkpoint.pt", model, small_arguments()))
    loaded = build(published)
    x = (torch.rand(2, 1, 28, 28) < 0.3).float()
    draw = Draw(torch.tensor(1))
    torch.testing.assert_close(loaded(x, draw).likelihood.mean(), model(x, draw).likelihood.mean(), rtol=0, atol=0)
    assert reader.label == "NVAE (original)"


def test_arguments_missing_from_early_checkpoints_have_defaults() -> None:
    arguments = dict(LAYOUTS["mnist_bernoulli"]["config"])
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        del arguments[name]
    assert setup_from_arguments(arguments).config.groups_fine_to_coarse == (2, 2)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, arguments = small_model(), small_arguments() | {"num_latent_per_group": 5}
    path = write_original(tmp_path / "checkpoint.pt", model, arguments, surplus=torch.zeros(1))
    with pytest.raises(ValueError, match=r"unexpected: surplus; of another shape: enc_sampler.0.weight"):
        build(read_published(path)[1])
    with pytest.raises(ValueError, match=r"missing: prior_ftr0, stem.weight, stem.bias, \.\.\."):
        load_weights(model, {})


class Unsafe:
    """Not a tensor, container or Namespace."""


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"args": Unsafe()}, "read safely"),
        ({"state_dict": {}}, "expected an original NVAE checkpoint"),
        ({"state_dict": {"prior_ftr0": 1}, "args": argparse.Namespace()}, "expected an original NVAE checkpoint"),
        ([1, 2], "expected an original NVAE checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, contents: object, message: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(contents, path)
    with pytest.raises(ValueError, match=message):
        read_published(path)


def test_corrupt_files_are_refused(tmp_path: Path) -> None:
    path = write_original(tmp_path / "checkpoint.pt", small_model(), small_arguments())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="read safely"):
        read_published(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="read safely"):
        read_published(path)


def test_missing_arguments_are_named() -> None:
    arguments = dict(small_arguments())
    del arguments["use_se"]
    with pytest.raises(ValueError, match="use_se"):
        setup_from_arguments(arguments)
