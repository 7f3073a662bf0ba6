"""Bad input on the command line: one line, exit code 2, nothing lost."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.cli import info
from benchmarks.cli.parser import run_command
from benchmarks.cli.run import _graph_hint
from benchmarks.suites.config import build_suite, read_suite
from models.nvae.presets import PRESETS
from models.registry import MODELS, presets


def fails(capsys, *arguments):
    """The one line of an error."""
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run", "quik"], "did you mean 'quick'"),
        (["run", "absent.toml"], "cannot read suite"),
        (["run", "--models", "nvea"], "did you mean 'nvae'"),
        (["run", "--data", "minst-5k"], "did you mean 'mnist-5k'"),
        (["run", "--data", "npz:absent.npz"], "absent.npz"),
        (["run", "--data", "folder:absent"], "absent"),
        (["run", "--set", "training.bach_size=3"], "did you mean 'batch_size'"),
        (["run", "--set", "training.batch_size=x"], "expected int"),
        (["run", "--set", "nonsense"], "a.b=value"),
        (["run", "--device", "tpu"], "auto, cpu or cuda"),
        (["run", "--treads", "2"], "did you mean '--threads'"),
        (["run", "--threads", "0"], "--threads: expected a whole number >= 1"),
        (["run", "--threads", "two"], "whole number"),
        (["run", "--epochs", "-1"], "> 0"),
        (["run", "--epochs", "1", "--budget", "seconds=3"], "one of them"),
        (["run", "--budget", "minutes=3"], "seconds=N"),
        (["run", "--budget", "seconds=nan"], "--budget seconds: expected a number > 0"),
        (["run", "--budget", "cpu_seconds=0"], "cpu_seconds: expected a number > 0"),
        (["run", "--budget", "cpu_seconds=3", "--epochs", "1"], "one of them"),
        (["run", "--set", "training.cpu_seconds=3", "--set", "training.seconds=3"], "'vae' has training.cpu_seconds"),
        (["run", "--seeds", "0"], "seeds"),
        (["run", "--latent-size", "0"], "--latent-size: expected a whole number >= 1"),
        (["run", "--inception-weights", "absent.pth"], "absent.pth"),
        (["run", "quick", "extra"], "unexpected argument 'extra'"),
        (["rum"], "run"),
        ([], "VERB"),
        (["evaluate", "absent"], "absent"),
        (["throughput", "absent.safetensors"], "found none"),
        (["throughput"], "got none"),
        (["throughput", "nvae-tny"], "did you mean 'nvae-tiny'"),
        (["throughput", "quick", "--models", "nvea"], "did you mean 'nvae'"),
        (["throughput", "nvae-tiny", "--models", "nvae"], "expected a suite"),
        (["throughput", "nvae-tiny", "--what", "trian"], "did you mean 'train'"),
        (["throughput", "nvae-tiny", "--set", "training.bach_size=2"], "did you mean 'batch_size'"),
        (["throughput", "nvae-tiny", "--set", "trainig.batch_size=2"], "did you mean 'training'"),
        (["throughput", "nvae-tiny", "--set", "batch_size=2"], "TABLE.KEY=VALUE"),
        (["throughput", "nvae-tiny", "--batch", "0"], ">= 1 and <= 1,000,000, got '0'"),
        (["throughput", "nvae-tiny", "--threads", "1,x"], ">= 1 and <= 1,024, got 'x'"),
        (["throughput", "nvae-tiny", "--seconds", "nan"], "> 0 and <= 1e+09, got 'nan'"),
        (["throughput", "nvae-tiny", "--precision", "fp16"], "bfloat16"),
        (["throughput", "nvae-tiny", "--device", "tpu"], "auto, cpu or cuda"),
        (["throughput", "nvae-tiny", "--vs", "baselin"], "unknown target 'baselin'"),
        (["throughput", "nvae-tiny", "--vs", "quick"], "expected one model"),
        (["throughput", "quick", "--models", "ae", "--vs", "baseline"], "not of ae"),
        (["throughput", "nvae-tiny", "--batch", "1,2", "--trace", "t.json"], "one file"),
        (["throughput", "nvae-tiny", "--pythae", "python"], "goes with --suite"),
        (["throughput", "--suite", "sped"], "did you mean 'speed'"),
        (["throughput", "--suite", "absent.toml"], "cannot read speed suite"),
        (["throughput", "--suite", "speed", "--models", "nvae-mnist-smal"], "did you mean 'nvae-mnist-small'"),
        (["throughput", "--suite", "speed", "--vs", "baseline"], "does not go with --suite"),
        (["throughput", "nvae-tiny", "--suite", "speed"], "got 'nvae-tiny' as well"),
        (["run", "--set", "training.learning_rate=1e8"], "changes nothing: 'ae' has models.ae.training.learning_rate"),
        (["run", "--models", "vae", "--set", "models.nvae.arch=x"], "row 'nvae' is not run"),
        (["sample", "absent.safetensors"], "found none"),
        (["sample", "absent", "--n", "0"], "--n: expected a whole number >= 1"),
        (["report", "absent"], "absent"),
        (["compare", "vae", "nvae", "--out", "absent"], "absent"),
        (["list", "modles"], "models"),
        (["env", "--device", "gpu"], "auto, cpu or cuda"),
        (["profile", "--targets", "sm_9"], "did you mean 'sm_90'"),
        (["profile", "--dtypes", "fp31"], "did you mean 'fp32'"),
    ],
)
def test_bad_input_is_one_line(arguments, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hint in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_corrupt_checkpoint(capsys, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not a checkpoint at all")
    assert "readable safetensors" in fails(capsys, "evaluate", str(path))


def test_foreign_safetensors(capsys, tmp_path):
    import safetensors.torch
    import torch

    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    assert "not one that this suite wrote" in fails(capsys, "sample", str(path))


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_unwritable_folder(capsys, tmp_path):
    """A file where a folder should be cannot be written below, whoever runs this."""
    (tmp_path / "file").write_text("")
    assert "file is a file" in fails(capsys, "run", "--out", str(tmp_path / "file" / "out"))


@pytest.mark.parametrize("what", ["models", "datasets", "metrics", "suites"])
def test_list_prints_a_line_each(what, capsys):
    assert run_command(["list", what]) == 0
    text = capsys.readouterr().out
    assert run_command(["list", what, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert len(text.strip().splitlines()) == len(table)
    assert all(description for description in table.values())
    if what == "models":
        assert set(table) == {*MODELS, *presets()}
        assert "33,363,134 parameters" in table["nvae-mnist"]


def test_the_kept_list_of_models_is_that_of_the_registry():
    """`python -m benchmarks.cli.info` writes it anew."""
    assert json.loads(info.MODELS_FILE.read_text()) == info.described_models()


def test_models_of_a_plugin_are_listed_beside_the_others(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from models.registry import MODELS\nMODELS['mine'] = MODELS['vae']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("models.registry.MODELS", dict(MODELS))
    assert run_command(["list", "models", "--json", "--plugin", "mine"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {*MODELS, *presets(), "mine"}


@pytest.mark.parametrize("options", [[], ["--memory"]])
def test_memory_of_presets_is_estimated_on_request(options, capsys, monkeypatch):
    monkeypatch.setattr("models.registry.presets", lambda: {"nvae-tiny": PRESETS["nvae-tiny"]})
    assert run_command(["list", "models", *options]) == 0
    assert ("MiB an image" in capsys.readouterr().out) == bool(options)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
from benchmarks.__main__ import main
sys.argv[1:] = {arguments!r}
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "VERB"),
        (["run", "--help"], "--budget"),
        (["list", "models"], "nvae-mnist"),
        (["list", "metrics"], "iwae_bound"),
    ],
)
def test_texts_come_without_torch(arguments, said):
    code = WITHOUT_TORCH.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_env_is_json(capsys):
    assert run_command(["env"]) == 0
    environment = json.loads(capsys.readouterr().out)
    assert environment["torch"]
    assert environment["cores"] >= 1


def test_dry_run_plans_without_writing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(["run", "--models", "vae,ae", "--epochs", "1", "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in rows] == ["ae", "vae"]
    assert all(row["estimated_training_seconds"] > 0 for row in rows)
    assert all(row["estimated_memory_mib"] > 4 * 4 * row["parameters"] / 2**20 for row in rows)
    assert rows[1]["latents"] == 16
    assert rows[1]["images"] == 112 * 32  # 3,600 / 32 = 112.5 steps, rounded to even
    assert list(tmp_path.iterdir()) == []


def test_a_budget_of_processor_time_is_a_field_of_the_training_and_not_of_a_gpu(capsys, monkeypatch):
    flags = ["run", "--models", "vae", "--budget", "cpu_seconds=7", "--dry-run", "--json"]
    assert run_command(flags) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["steps"], row["estimated_training_seconds"]) == (None, 7)
    assert (row["config"]["training"]["cpu_seconds"], row["config"]["training"]["seconds"]) == (7, None)
    monkeypatch.setattr("benchmarks.cli.run.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("benchmarks.cli.run.bfloat16_by_default", lambda device: False)
    assert run_command(flags) == 2
    assert "cpu_seconds: expected --device cpu" in capsys.readouterr().err


def test_latent_size_is_the_users(capsys):
    assert run_command(["run", "--models", "vae", "--latent-size", "7", "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["latents"] == 7
    assert "nvae" in captured.err


def test_how_a_users_own_files_were_read_is_said(capsys, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.arange(90 * 28 * 28).reshape(90, 28, 28) % 2)
    assert run_command(["run", "--models", "vae", "--data", f"npz:{tmp_path / 'x.npz'}", "--dry-run"]) == 0
    assert "zeros and ones (int64): binary pixels, 0 and 255" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "compile_", "work", "hinted"),
    [
        ("cuda", "off", "train", True),
        ("cuda", "graph", "train", False),
        ("cuda", "off", "nothing", False),
        ("cpu", "off", "train", False),
    ],
)
def test_a_training_on_a_gpu_is_told_of_graphs(device, compile_, work, hinted):
    name, table = read_suite("quick")
    suite = build_suite(name, table | {"seeds": 1})
    trials = [
        dataclasses.replace(one, device=device, training=dataclasses.replace(one.training, compile=compile_))
        for one in suite.trials
    ]
    planned = SimpleNamespace(
        suite=dataclasses.replace(suite, trials=tuple(trials)),
        trials=[SimpleNamespace(trial=trial, work=work) for trial in trials],
    )
    assert ("training.compile=graph" in _graph_hint(planned)) == hinted
