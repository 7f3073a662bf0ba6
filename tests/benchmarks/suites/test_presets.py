"""Presets as rows of a suite, and NVAE's recipes."""

import csv

import pytest
import torch
from original_nvae import DATA

from benchmarks.base.errors import UserError
from benchmarks.suites.config import build_suite, read_suite, set_path
from kernels.reference.backend import REFERENCE
from models.nvae.presets import PRESETS, RECIPE
from models.presets import Recipe
from models.registry import build, presets

OF_ROW = {
    "mnist": "nvae-mnist",
    "cifar10": "nvae-cifar10",
    "celeba_64": "nvae-celeba64",
    "imagenet_32": "nvae-imagenet32",
    "celeba_256": "nvae-celebahq256",
    "celeba_256_24ch (README remark)": "nvae-celebahq256-24ch",
    "ffhq": "nvae-ffhq256",
}


def trial(*assignments):
    name, table = read_suite("quick")
    for assignment in assignments:
        set_path(table, assignment)
    return build_suite(name, table, ["big"]).trials[0]


@pytest.mark.parametrize("name", presets())
def test_a_preset_fills_the_row(name):
    found, preset = trial(f"models.big.preset={name}"), presets()[name]
    assert (found.model, found.label) == (preset.model, name)
    assert found.model_config == preset.config
    assert found.likelihood_spec == preset.likelihood
    recipe = preset.recipe or Recipe()
    assert {key: getattr(found.training, key) for key in recipe.training} == recipe.training
    assert {key: getattr(found.objective, key) for key in recipe.objective} == recipe.objective


@pytest.mark.parametrize("name", OF_ROW)
def test_published_trainings_are_those_of_the_table(name):
    with (DATA / "presets.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["preset"] == name)
    found = trial(f"models.big.preset={OF_ROW[name]}")
    training, objective = found.training, found.objective
    assert training.epochs == int(row["epochs"])
    assert training.batch_size == int(row["batch_size"])
    assert training.warmup * training.epochs == pytest.approx(int(row["warmup_epochs"]))
    assert training.learning_rate == float(row["learning_rate"])
    assert training.final_rate * training.learning_rate == pytest.approx(float(row["learning_rate_min"]))
    assert training.weight_decay == float(row["weight_decay"])
    assert objective.kl_warmup == float(row["kl_anneal_portion"])
    assert objective.kl_constant == float(row["kl_const_portion"])
    assert objective.kl_floor == float(row["kl_const_coeff"])


def test_published_presets_alone_bring_a_training():
    assert [name for name, preset in PRESETS.items() if preset.recipe] == list(OF_ROW.values())
    assert {preset.recipe.objective == RECIPE.objective for preset in PRESETS.values() if preset.recipe} == {True}


@pytest.mark.parametrize("name", [name for name, preset in presets().items() if preset.recipe is None])
def test_presets_know_their_number_of_parameters(name):
    preset = presets()[name]
    with torch.device("meta"):
        model = build(preset.model, preset.config, preset.image, preset.likelihood, REFERENCE)
    assert sum(p.numel() for p in model.parameters()) == preset.parameters


@pytest.mark.parametrize(("name", "parameters"), [("nvae-mnist-small", 5_116_902), ("nvae-color-small", 587_052)])
def test_presets_to_time_have_the_sizes_of_the_timed_originals(name, parameters):
    assert PRESETS[name].parameters == parameters


def test_a_row_overrides_its_preset_field_by_field():
    found = trial("models.big.preset=nvae-cifar10", "models.big.flows=0", "models.big.training.batch_size=8")
    assert found.model_config.flows == 0
    assert found.model_config.channels_encoder == 128
    assert (found.training.batch_size, found.training.optimizer) == (8, "adamax")


def test_small_presets_leave_the_training_to_the_suite():
    assert trial("models.big.preset=nvae-tiny").training == trial("models.big.name=nvae").training


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'nvae-cifar10'"):
        trial("models.big.preset=nvae-cifar")
