"""Precision and compilation change how a step is computed, within stated tolerances, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.base.streams import seed_tensor
from benchmarks.data import DataSet
from benchmarks.records.record import load_record
from benchmarks.storage.weights import build_model, write_config
from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.training.loop import train, training_batch
from benchmarks.training.step import loss_of, weights_at
from benchmarks.trials.trial import run_trial
from models.output import Draw, ImageShape

CPU = torch.device("cpu")
HELPER = Path(__file__).parents[2] / "helpers" / "compiled_step.py"
COMPILED_LOSS, COMPILED_GRADIENT = 1e-5, 1e-3  # float32 sums in another order; batch norm over few values amplifies
BFLOAT16_LOSS = 0.02  # of the float32 loss: products of 8 bits, sums of hundreds
BFLOAT16_DIRECTION = 0.95  # cosine of the two gradients
COMPILE_SECONDS = 1800
TINY = [
    "training.images=48",
    "training.batch_size=8",
    "training.validations=0",
    "models.ae.channels=4",
    "models.vae.channels=4",
    *(f"models.{row}.channels_{side}=4" for row in ("nvae", "residual-vae") for side in ("encoder", "decoder")),
    *(f"models.{row}.channel_cap=8" for row in ("nvae", "residual-vae")),
]


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (40, 10, 12)]
    return DataSet("noise", ImageShape(1, 28, 28), *splits, "hash", None, "random pixels")


def make_trial(row, *assignments):
    name, table = read_suite("quick")
    for assignment in [*TINY, *assignments]:
        set_path(table, assignment)
    return build_suite(name, table, [row]).trials[0]


def trained(trial, data, folder):
    model = build_model(trial, data.image, CPU)
    return model, train(model, trial, data, folder, lambda done, total, phase: None, lambda: False)


def broken(*arguments, **options):
    """A compiler that fails when its product is called, as torch.compile does."""

    def fail(*arguments):
        raise RuntimeError("no C++ compiler\nfound")

    return fail


@pytest.mark.parametrize(
    "name",
    ["ae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vae", "residual-vae", "nvae", "vdvae"))],
)
def test_a_compiled_step_is_the_eager_one(name):
    command = [sys.executable, str(HELPER), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["note"].startswith("compiled by torch.compile"), found["note"]
    assert found["kept"]
    assert abs(found["loss"]) < COMPILED_LOSS
    assert found["gradient"] < COMPILED_GRADIENT


def test_without_a_compiler_training_is_eager_and_says_so_once(data, tmp_path, monkeypatch, capsys):
    plain, _ = trained(make_trial("vae"), data, tmp_path / "off")
    capsys.readouterr()
    monkeypatch.setattr(torch, "compile", broken)
    model, result = trained(make_trial("vae", "training.compile='on'"), data, tmp_path / "on")
    assert result.compilation == "compile = on, but the training ran eagerly, for RuntimeError: no C++ compiler found"
    assert capsys.readouterr().err.splitlines() == [result.compilation]
    for (key, value), other in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_the_record_says_what_came_of_compilation(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    trial = make_trial("ae", "training.compile='on'", "training.images=16")
    write_config(trial, tmp_path)
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr("benchmarks.trials.trial.StopSignal", lambda: lambda: False)
    monkeypatch.setattr("benchmarks.trials.trial.evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_trial(tmp_path)
    (note,) = load_record(tmp_path).notes
    assert note.startswith("compile = on, but the training ran eagerly")
    assert load_record(tmp_path).config["training"]["compile"] == "on"


@pytest.mark.parametrize("row", ["ae", "vae", "residual-vae", "nvae"])
def test_a_step_in_bfloat16_is_near_the_one_in_float32(row, data):
    found = []
    for precision in ("float32", "bfloat16"):
        trial = make_trial(row, f"training.precision='{precision}'")
        model = build_model(trial, data.image, CPU).train()
        x = training_batch(trial, data.train, torch.arange(8), 0)
        loss = loss_of(model, trial, x, Draw(seed_tensor(0, "t", CPU)), weights_at(trial.objective, 1.0))
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (exact, gradient), (rounded, other) = found
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=BFLOAT16_LOSS)
    assert torch.cosine_similarity(gradient, other, dim=0) > BFLOAT16_DIRECTION
