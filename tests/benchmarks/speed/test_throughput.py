"""The verb `throughput`: what it can time, and what it prints. No clock decides any of these tests."""

import csv
import dataclasses
import json

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.cli.parser import run_command
from benchmarks.report.speed import measurements_text
from benchmarks.speed import clock
from benchmarks.speed.spread import NO_WINNER
from benchmarks.speed.target import preset_target, resolve
from benchmarks.speed.throughput import Settings, Variant, measure
from benchmarks.speed.work import OURS, job_of
from benchmarks.storage.weights import save_weights, write_config

CPU = torch.device("cpu")
ROUNDING = 1e-9  # shares are float64 sums of a few terms
QUICK = ("--seconds", "0.001")

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture(autouse=True)
def threads():
    """The number of threads that the verb sets is given back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# What can be timed


def test_targets_by_name():
    assert [target.row for target in resolve("quick", ["nvae", "vae"])] == ["vae", "nvae"]
    (preset,) = resolve("nvae-tiny")
    assert (preset.name, preset.trial.model, preset.trial.training.optimizer) == ("nvae-tiny", "nvae", "adamax")


def test_a_trained_model_is_timed_under_overrides(tmp_path):
    target = preset_target("nvae-tiny").overridden(["training.batch_size=3"])
    model = target.build(CPU)
    save_weights(model, target.trial, "", tmp_path / "weights.safetensors")
    write_config(target.trial, tmp_path)
    for source in (tmp_path, tmp_path / "weights.safetensors"):
        (found,) = resolve(str(source))
        found = found.overridden(["training.precision=bfloat16", "model.residual_gain=0.5"])
        assert (found.trial.training.batch_size, found.trial.training.precision) == (3, "bfloat16")
        assert found.trial.model_config.residual_gain == 0.5
        assert torch.equal(found.build(CPU).prior_ftr0, model.prior_ftr0)


@pytest.mark.parametrize("setting", ["training.images=5", "training.hopeless_after=2", "evaluation.temperature=0.7"])
def test_a_setting_that_changes_nothing_that_is_timed_is_refused(setting):
    with pytest.raises(UserError, match="changes nothing that is timed"):
        preset_target("nvae-tiny").overridden([setting])
    assert preset_target("nvae-tiny").overridden(["evaluation.iwae_samples=3"]).trial.evaluation.iwae_samples == 3


def test_weights_that_do_not_fit_an_override_are_an_error(tmp_path):
    target = preset_target("nvae-tiny")
    save_weights(target.build(CPU), target.trial, "", tmp_path / "weights.safetensors")
    (found,) = resolve(str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match="do not fit"):
        found.overridden(["model.latent_channels=3"]).build(CPU)


def test_a_small_data_set_is_repeated():
    target = resolve("quick", ["ae"])[0]
    images = target.images(10_000)
    assert images.shape == (10_000, 1, 28, 28)
    assert torch.equal(images[:100], images[3600:3700])


def test_every_verb_runs_and_leaves_the_model_alone():
    target = preset_target("nvae-tiny").overridden(["training.batch_size=2"])
    job = job_of(target, CPU, draws=2)
    before = {key: value.clone() for key, value in job.model.state_dict().items()}
    for name, verb in OURS.items():
        call = verb(job)
        assert call is not None, name
        call()
    assert all(torch.equal(value, before[key]) for key, value in job.model.state_dict().items())


def test_an_autoencoder_has_neither_samples_nor_a_bound():
    target = resolve("quick", ["ae"])[0].overridden(["training.batch_size=2"])
    rows = measure([Variant("ours", target)], Settings(CPU, ("sample", "iwae"), 0.001))
    assert [(row.metric, row.value, row.note) for row in rows] == [
        ("sample_throughput", None, "no prior"),
        ("iwae_throughput", None, "no prior"),
    ]


def test_what_came_of_compiling_is_noted(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.work.compile_step", lambda *_: "ran eagerly, for a reason")
    target = preset_target("nvae-tiny").overridden(["training.batch_size=2", "training.compile=on"])
    train, encode = measure([Variant("ours", target)], Settings(CPU, ("train", "encode"), 0.001))
    assert (train.note, train.details["compile"], encode.note) == ("ran eagerly, for a reason", "on", "")


# The command


def test_a_model_beside_its_plain_implementation(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    flags = ["--what", "train,encode,iwae,breakdown", "--iwae", "2", "--vs", "baseline"]
    flags += ["--batch", "2", "--threads", "1", *QUICK]
    assert run_command(["throughput", "nvae-tiny", *flags, "--csv", str(file), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["metric"], row["details"]["variant"]) for row in rows if not row["metric"].endswith("_share")] == [
        ("train_throughput", "ours"),
        ("train_throughput", "baseline"),
        ("train_speedup", "ours"),
        ("encode_throughput", "ours"),
        ("iwae_throughput", "ours"),
        ("iwae_throughput", "baseline"),
        ("iwae_speedup", "ours"),
    ]
    for row in rows:
        if not row["metric"].endswith("_share"):
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] >= clock.MIN_ROUNDS
            assert {"batch", "threads", "precision", "device", "load", "load_after", "other_cpu"} <= set(row["details"])
    speedups = [row["details"] for row in rows if row["metric"].endswith("_speedup")]
    assert all(details["over"] == "baseline" and details["cpu_ratio"] > 0 for details in speedups)
    shares = [row["value"] for row in rows if row["metric"].endswith("_share")]
    assert sum(shares) == pytest.approx(1, abs=ROUNDING)
    written = list(csv.DictReader(file.open()))
    assert [row["metric"] for row in written] == [row["metric"] for row in rows]
    assert {"value", "unit", "low", "high", "n", "variant", "batch", "threads", "load"} <= set(written[0])


def test_a_configuration_beside_its_own_variant(capsys):
    flags = ["--what", "train", "--batch", "2,3", "--vs-set", "model.squeeze_excitation=false"]
    assert run_command(["throughput", "nvae-tiny", *flags, *QUICK]) == 0
    text = capsys.readouterr().out
    assert text.count("nvae-tiny: batch") == 2
    assert text.count("x model.squeeze_excitation=false") == 2
    assert "load" in text


@pytest.mark.parametrize(
    ("flags", "other"),
    [
        (["--vs", "nvae-tiny"], "nvae-tiny"),
        (["--vs", "quick"], "quick/nvae again"),
        (["--vs", "quick", "--vs-set", "model.residual_gain=0.5"], "quick/nvae model.residual_gain=0.5"),
    ],
)
def test_a_model_beside_another(flags, other, capsys):
    always = ["--what", "sample", "--batch", "2", "--models", "nvae", "--json"]
    assert run_command(["throughput", "quick", *always, *flags, *QUICK]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["details"]["variant"] for row in rows] == ["quick/nvae", other, "quick/nvae"]


def test_a_tie_is_said_in_the_text():
    target = preset_target("nvae-tiny").overridden(["training.batch_size=2"])
    rows = measure([Variant("ours", target)], Settings(CPU, ("encode",), 0.001))
    tie = dataclasses.replace(rows[0], metric="encode_speedup", unit="x baseline", note=NO_WINNER)
    assert NO_WINNER in measurements_text([*rows, tie])
