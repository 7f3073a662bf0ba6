"""Steps that are not finite are explained; trainings at the paper's learning rate have none."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.cli.parser import run_command
from benchmarks.data import DataSet, load
from benchmarks.machine import environment
from benchmarks.records.record import load_record
from benchmarks.storage.weights import build_model, write_config
from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.training.loop import note_trouble, train
from benchmarks.training.state import TrainingState, build_optimizer
from benchmarks.trials import refusals
from benchmarks.trials.trial import run_trial
from models.output import ImageShape

CPU = torch.device("cpu")
MNIST = ImageShape(1, 28, 28)
PAPER = ["training.optimizer=adamax", "training.learning_rate=1e-2", "training.epsilon=1e-3"]


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (40, 10, 12)]
    return DataSet("noise", ImageShape(1, 28, 28), *splits, "hash", None, "random pixels")


def make_trial(suite, row, *assignments):
    name, table = read_suite(suite)
    table["models"][row].pop("training", None)
    for assignment in assignments:
        set_path(table, assignment)
    return build_suite(name, table, [row]).trials[0]


def silent(done, total, phase):
    pass


def interrupt(*arguments):
    raise KeyboardInterrupt


def broken_from(call):
    """A forward hook whose layer gives infinities from its `call`-th step on."""
    calls = []

    def hook(module, inputs, output):
        calls.append(1)
        return output / 0 if len(calls) >= call else output

    return hook


@pytest.mark.parametrize("row", ["vae", "nvae"])
def test_the_layer_that_breaks_is_named(row, data, tmp_path):
    trial = make_trial("quick", row, "training.images=40", "training.batch_size=8", "training.validations=0")
    model = build_model(trial, data.image, CPU)
    layer = {"vae": "decoder.head", "nvae": "enc_tower.0"}[row]
    model.get_submodule(layer).register_forward_hook(broken_from(3))
    result = train(model, trial, data, tmp_path, silent, lambda: False)
    assert result.skipped == 3
    assert result.trouble.startswith("step 3 replayed after step 3: ")
    assert result.trouble.endswith(f"in the output of {layer}")


def test_a_gradient_that_breaks_is_named(data, tmp_path):
    """The square root of 0 is finite, and its slope is not."""
    trial = make_trial("quick", "vae", "training.images=8", "training.batch_size=8", "training.validations=0")
    model = build_model(trial, data.image, CPU)
    model.decoder.head.register_forward_hook(lambda module, inputs, output: output + torch.sqrt(output * 0))
    result = train(model, trial, data, tmp_path, silent, lambda: False)
    assert "in the gradient of " in result.trouble


def test_a_step_that_cannot_be_repeated_is_said_to_be_finite(data):
    trial = make_trial("quick", "vae", "training.batch_size=8")
    model = build_model(trial, data.image, CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = torch.tensor([1.0, torch.nan, 1.0, torch.nan])
    state = TrainingState(model, build_optimizer(trial.training, model, CPU), losses, 4, step=3)
    note_trouble(state, trial, data.train, torch.tensor(0))
    assert state.trouble == "step 2 replayed after step 3: it is finite with the weights of now"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_finite_training_has_nothing_to_explain(data, tmp_path):
    trial = make_trial("quick", "vae", "training.images=16", "training.batch_size=8")
    result = train(build_model(trial, data.image, CPU), trial, data, tmp_path, silent, lambda: False)
    assert (result.skipped, result.trouble) == (0, "")


def test_the_record_says_where_a_training_broke(tmp_path, monkeypatch):
    trial = make_trial("quick", "vae", "training.images=64", "training.learning_rate=1e18", "training.warmup=0")
    write_config(trial, tmp_path)
    monkeypatch.setattr("benchmarks.trials.trial.StopSignal", lambda: lambda: False)
    monkeypatch.setattr("benchmarks.trials.trial.evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_trial(tmp_path)
    (note,) = load_record(tmp_path).notes
    assert "1 training steps were not finite and were undone; step 2 replayed" in note
    assert "in the output of " in note


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux says what its processors can do")
def test_bfloat16_that_is_emulated_is_refused(capsys, monkeypatch, tmp_path):
    arguments = ["run", "--models", "vae", "--set", "training.precision=bfloat16", "--device", "cpu"]
    for flags, lines in (("fpu avx2", 1), ("fpu avx512_bf16", 0)):
        monkeypatch.setattr(environment, "_cpu_info", lambda *fields, flags=flags: flags)
        assert run_command([*arguments, "--dry-run"]) == 0
        assert capsys.readouterr().err.count("refused: vae: expected training.precision=float32") == lines
    monkeypatch.setattr(environment, "_cpu_info", lambda *fields: "fpu avx2")
    assert run_command([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("setting", "got"), [("precision=bfloat16", "bfloat16"), ("compile=on", "on")])
def test_cells_in_c_are_trained_in_float32_and_as_they_are(setting, got, monkeypatch):
    """What slows them down is refused, and only that: no other model, no GPU, nothing where there is no compiler."""
    monkeypatch.setattr(refusals, "emulates_bfloat16", lambda device: False)
    trial, plain = (make_trial("quick", row, f"training.{setting}") for row in ("nvae", "vae"))
    said = refusals.why_refused(trial, MNIST)
    assert said.startswith("nvae: expected training.")
    assert f"on a CPU, got {got}, " in said
    assert "vdvae: expected" in refusals.why_refused(make_trial("quick", "vdvae", f"training.{setting}"), MNIST)
    assert not refusals.why_refused(make_trial("quick", "nvae"), MNIST)
    assert not refusals.why_refused(plain, MNIST)
    assert not refusals.why_refused(dataclasses.replace(trial, device="cuda"), MNIST)
    monkeypatch.setattr(refusals.library, "library", lambda: None)
    assert not refusals.why_refused(trial, MNIST)


def test_precision_is_float32_on_a_cpu_and_bfloat16_on_a_gpu_unless_given(capsys, monkeypatch):
    def precision(*options):
        assert run_command(["run", "--models", "vae", "--device", "cpu", "--dry-run", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)[0]["config"]["training"]["precision"]

    assert precision() == "float32"
    monkeypatch.setattr("benchmarks.cli.run.bfloat16_by_default", lambda device: True)
    assert precision() == "bfloat16"
    assert precision("--set", "training.precision=float32") == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["quick", "patches"])
def test_hundreds_of_steps_at_the_papers_learning_rate_stay_finite(suite, tmp_path):
    trial = make_trial(suite, "nvae", *PAPER, "training.images=9600", "training.validations=1")
    data = load(trial.data)
    result = train(build_model(trial, data.image, CPU), trial, data, tmp_path, silent, lambda: False)
    assert (result.steps, result.skipped) == (300, 0)
    loss = result.curves[0].values
    assert sum(loss[-10:]) < sum(loss[:10])


@pytest.mark.slow
def test_a_tiny_training_in_bfloat16_stays_finite(tmp_path):
    tiny = ["models.nvae.preset=nvae-tiny", "training.precision=bfloat16", "training.images=2400"]
    trial = make_trial("quick", "nvae", *PAPER, *tiny, "training.batch_size=8", "training.validations=1")
    data = load(trial.data)
    result = train(build_model(trial, data.image, CPU), trial, data, tmp_path, silent, lambda: False)
    assert (result.steps, result.skipped) == (300, 0)


def test_a_training_that_was_given_up_at_its_last_step_stays_so(data, tmp_path):
    settings = ("training.images=24", "training.batch_size=8", "training.validations=0", "training.hopeless_after=2")
    trial = make_trial("quick", "vae", *settings)
    for done in (3, 3):  # the second continues where the first stopped
        model = build_model(trial, data.image, CPU)
        model.decoder.head.register_forward_hook(broken_from(2))
        result = train(model, trial, data, tmp_path, silent, lambda: False)
        assert (result.steps, result.skipped) == (done, 2)
        assert result.hopeless.startswith("given up at step 3 of 3: the last 2 steps were not finite")
        assert not result.finished
