"""The suites that ship: they parse, every row can be built, and heads say the sizes that rows have."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.report import published
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import SUITES, build_suite, read_suite, suite_names
from benchmarks.training.cost import parameter_count
from models.nvae.presets import PRESETS, RECIPE
from models.output import ImageShape

DIGITS, COLOUR32, COLOUR64 = ImageShape(1, 28, 28), ImageShape(3, 32, 32), ImageShape(3, 64, 64)
IMAGES = {
    "mnist-5k": DIGITS,
    "mnist": DIGITS,
    "fashion-mnist": DIGITS,
    "patches": COLOUR32,
    "cifar10": COLOUR32,
    "imagenet32": COLOUR32,
    "celeba64": COLOUR64,
}
GPU_SUITES = ("cifar10", "celeba64", "imagenet32")
ROW = re.compile(r"^#   (\S.*?) +(\d[\d,]{5,})  .*$", re.M)
OTHERS = "all others"
PUBLISHED = {"cifar10": "8 V100 x 55 h", "celeba64": "8 V100 x 92 h", "imagenet32": "24 V100 x 70 h"}


def trials(name):
    return build_suite(*read_suite(name)).trials


def stated(name):
    """Parameters by label, as the suite's head says them."""
    found = ROW.findall((SUITES / f"{name}.toml").read_text(encoding="utf-8"))
    return {label: int(count.replace(",", "")) for label, count in found}


@pytest.mark.parametrize("name", suite_names())
def test_every_row_can_be_built_and_has_the_parameters_of_the_head(name):
    said = stated(name)
    for trial in trials(name):
        model = build_model(trial, IMAGES[trial.data], torch.device("meta"))
        assert next(model.parameters()).is_meta
        if said:
            assert parameter_count(model) == said.get(trial.label, said.get(OTHERS)), trial.label


def test_heads_state_sizes():
    assert {name for name in suite_names() if stated(name)} == {"ablation", *GPU_SUITES}
    for name in GPU_SUITES:
        assert list(stated(name)) == [trial.label for trial in trials(name)]


@pytest.mark.parametrize("name", GPU_SUITES)
def test_suites_for_a_gpu_end_with_the_published_model_and_its_recipe(name):
    *others, last = trials(name)
    preset = PRESETS[f"nvae-{name}"]
    assert preset.recipe is not None
    assert last.model_config == preset.config
    assert last.likelihood_spec == preset.likelihood
    assert {key: getattr(last.training, key) for key in preset.recipe.training} == preset.recipe.training
    assert {key: getattr(last.objective, key) for key in RECIPE.objective} == RECIPE.objective
    assert {trial.training.epochs for trial in others} == {last.training.epochs}
    assert PUBLISHED[name] in (SUITES / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GPU_SUITES)
def test_suites_for_a_gpu_score_as_the_literature_does(name):
    for trial in trials(name):
        assert trial.training.compile == "graph"
        assert trial.likelihood == "logistic-mixture"
        assert trial.bits == 8
        found = trial.evaluation
        assert (found.extractor, found.samples, found.reference_split) == ("inception", 50_000, "train")
    large = {trial.row for trial in trials(name) if trial.training.precision == "bfloat16"}
    assert large == {"strong-vae", "residual-vae", "nvae-medium", "nvae-published"}


@pytest.mark.parametrize("name", GPU_SUITES)
def test_published_values_stand_beside(name):
    frame = published.read(Path(__file__).parents[3] / "results" / "published.csv")
    rows = published.for_data(frame, trials(name)[0].data)
    assert {("NVAE" in model, metric) for model, metric in zip(rows["model"], rows["metric"], strict=True)} >= {
        (True, "bits/dim")
    }
    assert len(set(rows["data"])) == 1
