"""Evaluation: independent of batch size, bounded by what the engine says, honest about what it lacks."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import DataSet
from benchmarks.evaluation.evaluate import evaluate, feature_metrics
from benchmarks.storage.weights import build_model, load_model, save_weights
from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.training import cost
from benchmarks.training.cost import macs_per_image, parameter_count
from kernels.reference.backend import REFERENCE
from models.output import Draw, ImageShape

CPU = torch.device("cpu")
FLOAT32 = 2e-4  # relative; convolutions pick their algorithm by batch size
SHAPES = {
    "quick": ImageShape(1, 28, 28),
    "fashion-mnist": ImageShape(1, 28, 28),
    "mnist-binary": ImageShape(1, 28, 28),
    "patches": ImageShape(3, 32, 32),
}


def trials(name, *assignments):
    name, table = read_suite(name)
    for assignment in assignments:
        set_path(table, assignment)
    return {trial.row: trial for trial in build_suite(name, table).trials}


@pytest.fixture
def colour():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=gen) for n in (20, 10, 23)]
    return DataSet("noise", SHAPES["patches"], *splits, "hash", None, "random pixels")


def silent(done, total, phase):
    pass


@pytest.mark.parametrize("row", ["ae", "vae", "nvae"])
def test_batch_size_moves_nothing(row, colour):
    trial = trials("patches", "evaluation.iwae_samples=2")[row]
    model = build_model(trial, colour.image, CPU)
    results = []
    for size in (23, 7):
        smaller = dataclasses.replace(trial, evaluation=dataclasses.replace(trial.evaluation, batch_size=size))
        results.append(evaluate(model, smaller, colour, silent).per_image)
    assert results[0].keys() == results[1].keys()
    for name, values in results[0].items():
        assert values.shape == (23,)
        np.testing.assert_allclose(values, results[1][name], rtol=FLOAT32, err_msg=name)


def inputs(trial, data):
    """Every batch that the model was shown in an evaluation, in order."""
    model, shown = build_model(trial, data.image, CPU), []
    padded = model.padded
    model.padded = lambda x: shown.append(x) or padded(x)
    evaluate(model, trial, data, silent)
    return shown


def test_pixels_are_binarised_once_an_evaluation_by_the_seed():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (20, 10, 23)]
    grey = DataSet("noise", SHAPES["quick"], *splits, "hash", None, "random pixels")
    one, other = (
        trials("quick", f"evaluation.iwae_samples={k}", f"first_seed={s}")["vae"] for k, s in ((3, 0), (1, 1))
    )
    shown = inputs(one, grey)
    assert len(shown) == 3  # once for all draws of the bound, the reconstruction, the use of latents
    assert set(shown[0].unique().tolist()) == {0.0, 1.0}
    again = inputs(dataclasses.replace(one, evaluation=dataclasses.replace(one.evaluation, iwae_samples=1)), grey)
    assert all(torch.equal(x, shown[0]) for x in [*shown, *again])
    assert not torch.equal(inputs(other, grey)[0], shown[0])


def test_colour_without_an_extractor_says_what_it_needs(colour):
    trial = trials("patches", "evaluation.iwae_samples=1")["vae"]
    found = {m.metric: m for m in evaluate(build_model(trial, colour.image, CPU), trial, colour, silent).measurements}
    for metric in feature_metrics():
        assert found[metric].value is None
        assert "--inception-weights PATH" in found[metric].note
    assert found["bits_per_dim"].value == pytest.approx(-found["elbo"].value / (3072 * np.log(2)))


def test_weights_and_config_survive_the_disk(colour, tmp_path):
    trial = trials("patches")["nvae"]
    model = build_model(trial, colour.image, CPU)
    save_weights(model, trial, colour.content_hash, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors", CPU)
    assert loaded.trial == trial
    assert loaded.data_hash == "hash"
    for (key, a), b in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", SHAPES)
def test_residual_vae_matches_nvae_in_size_in_every_suite(name):
    counts = {
        row: parameter_count(build_model(trial, SHAPES[name], CPU))
        for row, trial in trials(name).items()
        if row in ("nvae", "residual-vae")
    }
    assert abs(counts["residual-vae"] / counts["nvae"] - 1) < 0.10


def test_macs_are_those_of_convolutions_and_linear_layers():
    """A convolution: output pixels times weights; a linear layer: its weights."""
    model = build_model(trials("quick")["ae"], SHAPES["quick"], CPU).eval()
    counted = []

    def count(module, inputs, output):
        counted.append(module.weight.numel() * (output.shape[2:].numel() if output.ndim == 4 else 1))

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    expected = macs_per_image(build_model(trials("quick")["ae"], SHAPES["quick"], CPU), SHAPES["quick"])
    model(torch.zeros(1, 1, 28, 28), Draw(torch.tensor(0)))
    assert sum(counted) == expected


@pytest.mark.parametrize("row", ["vae", "nvae", "vdvae"])
def test_macs_are_those_of_torchs_own_counter_on_either_device(row, monkeypatch):
    trial, image = trials("quick")[row], SHAPES["quick"]
    model = build_model(trial, image, torch.device("meta"))
    model.ops = REFERENCE
    draw = Draw(torch.zeros((), dtype=torch.int64, device="meta"), at_mean=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin = copy.deepcopy(model).eval().requires_grad_(False)
        twin(torch.zeros(1, *dataclasses.astuple(image), device="meta"), draw)
    expected = counter.get_total_flops() // 2
    assert macs_per_image(model, image) == expected > 0
    monkeypatch.setattr(cost, "SMALL", 0)
    assert macs_per_image(model, image) == expected
