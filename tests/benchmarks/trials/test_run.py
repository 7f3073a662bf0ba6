"""A suite from command to table, in processes of their own as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.base.errors import UserError
from benchmarks.records.record import Measurement, load_record, save_record, save_run
from benchmarks.report.page import build_report
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials.processes import execute
from benchmarks.trials.schedule import plan
from benchmarks.trials.trial import run_trial

SUITE = """
title = "Tiny"
data = "npz:{data}"
[likelihood]
name = "bernoulli"
[training]
images = {images}
batch_size = 16
validations = 2
[evaluation]
iwae_samples = 2
batch_size = 20
{evaluation}
[models.ae]
channels = 4
[models.ae.likelihood]
name = "gaussian"
[models.vae]
channels = 4
latent_size = 3
"""


def write_suite(folder, images=64, evaluation=""):
    rng = np.random.default_rng(0)
    splits = {name: rng.integers(0, 256, (n, 28, 28), np.uint8) for name, n in (("train", 64), ("validation", 20))}
    np.savez(folder / "data.npz", test=rng.integers(0, 256, (40, 28, 28), np.uint8), **splits)
    text = SUITE.format(data=folder / "data.npz", images=images, evaluation=evaluation)
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"


def command(*arguments):
    return [sys.executable, "-m", "benchmarks", *map(str, arguments)]


def call(*arguments, umask=-1, **environment):
    variables = {**os.environ, **environment}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=variables, umask=umask)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder and what the command printed."""
    folder = tmp_path_factory.mktemp("run")
    suite = write_suite(folder)
    result = call("run", suite, "--out", folder / "out", umask=0o002)
    assert result.returncode == 0, result.stderr
    return folder, result


def written(out):
    """When each trial's files were written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/*")}


def records(out):
    return {json.loads(p.read_text())["row"]: json.loads(p.read_text()) for p in out.glob("*/record.json")}


def test_the_table_is_the_last_thing_on_stdout_and_progress_on_stderr(finished):
    _, result = finished
    assert re.search(r"^\| ae +\|", result.stdout, re.M)
    assert re.search(r"^\| vae +\|", result.stdout, re.M)
    assert "train 100 %" in result.stderr
    assert "|" not in result.stderr


def test_records_hold_every_metric(finished):
    folder, _ = finished
    found = records(folder / "out")
    assert set(found) == {"ae", "vae"}
    vae = {m["metric"]: m for m in found["vae"]["measurements"]}
    assert found["vae"]["status"] == "done"
    for metric in ("elbo", "iwae_bound", "mse", "psnr", "train_throughput", "sample_throughput", "peak_memory"):
        assert vae[metric]["value"] is not None, metric
    assert vae["elbo"]["value"] <= vae["iwae_bound"]["value"] + 1
    assert vae["elbo"]["n"] == 40
    assert vae["sample_fid"]["note"].endswith("--inception-weights PATH")


def test_the_autoencoder_prints_dashes_where_it_has_no_prior(finished):
    folder, _ = finished
    ae = {m["metric"]: m for m in records(folder / "out")["ae"]["measurements"]}
    for metric in ("elbo", "iwae_bound", "bits_per_dim", "sample_throughput"):
        assert ae[metric]["value"] is None
        assert ae[metric]["note"] == "no prior"


def test_files_of_a_run(finished):
    out = finished[0] / "out"
    for name in ("table.md", "table.csv", "index.md", "index.html", "run.json"):
        assert (out / name).stat().st_size > 0
    assert len(list((out / "figures").glob("*.png"))) >= 3
    assert len(list(out.glob("*/weights.safetensors"))) == 2
    assert not list(out.rglob("*.pt")) + list(out.rglob("*.pkl")) + list(out.glob("*/training.safetensors"))


def modes(out):
    """The modes of everything that a run writes: record, config, weights, images, log, tables, pages, figures."""
    found = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert {"record.json", "config.json", "log.txt", "run.json", "table.md", "index.html"} <= set(found)
    return found


def test_files_of_a_run_are_readable_by_whom_the_umask_lets(finished):
    found = modes(finished[0] / "out")
    assert {"weights.safetensors", "images.npz", "per_image.npz"} <= set(found)
    assert set(found.values()) == {0o664}


def test_the_same_command_runs_nothing_again(finished):
    folder, first = finished
    before = written(folder / "out")
    again = call("run", folder / "tiny.toml", "--out", folder / "out")
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert before == written(folder / "out")


def test_another_config_overwrites_nothing(finished):
    folder, _ = finished
    before = {path.name for path in (folder / "out").iterdir() if path.is_dir()}
    options = ("--set", "training.images=32", "--models", "ae", "--out", folder / "out")
    other = call("run", folder / "tiny.toml", *options)
    assert other.returncode == 0, other.stderr
    after = {path.name for path in (folder / "out").iterdir() if path.is_dir()}
    assert before < after
    assert len(after - before) == 1
    restored = call("run", folder / "tiny.toml", "--out", folder / "out")
    assert restored.stdout == finished[1].stdout


def changed(finished, tmp_path, **texts):
    """A copy of the finished run under a suite of another name in which `texts` are replaced, run again."""
    folder, _ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    text = (folder / "tiny.toml").read_text()
    for old, new in texts.values():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "other.toml").write_text(text)
    before = written(tmp_path / "out")
    result = call("run", tmp_path / "other.toml", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    after = written(tmp_path / "out")
    assert before.keys() == after.keys()
    return result, {path.name for path in after if before[path] != after[path]}


def test_a_label_and_the_name_of_the_suite_change_nothing_but_the_table(finished, tmp_path):
    label = ("[models.vae]", '[models.vae]\nlabel = "my VAE"')
    saving = ("[training]", "[training]\ncheckpoint_seconds = 5.0")
    result, files = changed(finished, tmp_path, label=label, saving=saving)
    assert files == {"record.json", "config.json"}
    assert re.search(r"^\| my VAE +\|", result.stdout, re.M)
    first, now = records(finished[0] / "out")["vae"], records(tmp_path / "out")["vae"]
    assert (now["suite"], now["label"]) == ("other", "my VAE")
    assert now["measurements"] == first["measurements"]


def test_an_evaluation_setting_evaluates_the_weights_again(finished, tmp_path):
    result, files = changed(finished, tmp_path, k=("iwae_samples = 2", "iwae_samples = 3"))
    assert "train " not in result.stderr
    assert "training.safetensors" not in files
    first, now = (records(out / "out")["vae"] for out in (finished[0], tmp_path))
    old, new = ({m["metric"]: m for m in record["measurements"]} for record in (first, now))
    assert new["iwae_bound"]["details"]["k"] == 3
    for same in ("mse", "psnr", "train_throughput", "peak_memory"):
        assert new[same]["value"] == old[same]["value"], same
    assert (now["curves"], now["training_seconds"]) == (first["curves"], first["training_seconds"])
    assert any(note.startswith("evaluated again") for note in now["notes"])


def test_a_folder_named_after_its_whole_config_is_found(finished, tmp_path):
    folder, first = finished
    for name in json.loads((folder / "out" / "run.json").read_text())["cells"]:
        shutil.copytree(folder / "out" / name, tmp_path / "out" / (name[:-12] + "0123456789ab"))
    again = call("run", folder / "tiny.toml", "--out", tmp_path / "out")
    assert again.stdout == first.stdout
    assert "train " not in again.stderr
    assert {path.name[-12:] for path in (tmp_path / "out").glob("*-seed*")} == {"0123456789ab"}


FOUND_BEFORE = {
    "unknown extractor": ('extractor = "mnist-cnn-v2"', "mnist-cnn-v1"),
    "no weights": ('extractor = "inception"', "--inception-weights"),
    "few images": ('extractor = "mnist-cnn-v1"\nimages = 9', "at least 10"),
    "few samples": ('extractor = "mnist-cnn-v1"\nsamples = 3', "at least 10"),
    "large batch": ("[models.ae.training]\nbatch_size = 65", "64 training images"),
}


@pytest.mark.parametrize("case", FOUND_BEFORE)
def test_what_would_stop_a_trial_later_is_found_in_its_plan(case, tmp_path):
    text, said = FOUND_BEFORE[case]
    suite = build_suite(*read_suite(str(write_suite(tmp_path, evaluation=text))))
    with pytest.raises(UserError, match=re.escape(said)):
        plan(suite, tmp_path / "out")


def test_an_extractor_of_another_size_is_found_in_the_plan(tmp_path):
    np.savez(
        tmp_path / "odd.npz", **{name: np.full((12, 20, 20), 7, np.uint8) for name in ("train", "validation", "test")}
    )
    text = write_suite(tmp_path, evaluation='extractor = "mnist-cnn-v1"').read_text()
    (tmp_path / "odd.toml").write_text(text.replace("data.npz", "odd.npz").replace("batch_size = 16", "batch_size = 4"))
    with pytest.raises(UserError, match="28x28, got 1 x 20 x 20"):
        plan(build_suite(*read_suite(str(tmp_path / "odd.toml"))), tmp_path / "out")


@pytest.fixture
def signals():
    """Puts the handlers back that a trial takes."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_what_an_evaluation_worked_out_stays_when_a_part_of_it_fails(finished, tmp_path, monkeypatch):
    """The table says which part failed; the next run evaluates again, from the weights."""

    def fails(*arguments):
        raise RuntimeError("no space left")

    for path in (finished[0] / "out").glob("vae-*"):
        shutil.copytree(path, tmp_path / path.name)
    (folder,) = tmp_path.glob("vae-*")
    stale = Measurement("kid_prior_statistics", 1.0, "", False)  # of evaluation settings that are no longer asked for
    save_record(load_record(folder).with_measurements([stale]), folder)
    weights = (folder / "weights.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.evaluation.evaluate.draw_samples", fails)
        failed = run_trial(folder)
    assert failed.status == "trained"
    assert failed.error == "evaluation failed: samples: no space left"
    assert failed.get("kid_prior_statistics") is None
    assert failed.get("train_throughput").value is not None
    assert failed.get("elbo").value == load_record(next((finished[0] / "out").glob("vae-*"))).get("elbo").value
    save_run(tmp_path, [folder.name])
    assert "evaluation failed: samples: no space left" in build_report(tmp_path, None)
    mended = run_trial(folder)
    assert (mended.status, mended.error) == ("done", "")
    assert (folder / "weights.safetensors").read_bytes() == weights


NVAE_ROW = """
[models.nvae]
groups_fine_to_coarse = [1, 1]
latent_channels = 2
channels_encoder = 4
channels_decoder = 4
"""


def quality(record):
    """The measurements that do not depend on the machine's state."""
    return [m for m in record["measurements"] if m["metric"] != "peak_memory"]


def test_two_processes_give_the_same_quality_and_weights_bit_for_bit(tmp_path):
    """As two clones on one machine would: nothing is shared but the configuration, no cache either."""
    suite = write_suite(tmp_path, images=32, evaluation='extractor = "mnist-cnn-v1"')
    suite.write_text(suite.read_text() + NVAE_ROW)
    (trial,) = build_suite(*read_suite(str(suite)), ["nvae"]).trials
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name / "trial"
        write_config(trial, folder)
        result = call("trial", folder, XDG_CACHE_HOME=str(tmp_path / f"cache-{name}"), OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        found.append((records(tmp_path / name)["nvae"], (folder / "weights.safetensors").read_bytes()))
    (first, weights), (second, same_weights) = found
    valued = {m["metric"] for m in first["measurements"] if m["value"] is not None}
    assert {"elbo", "iwae_bound", "mse", "sample_fid", "kid", "recall", "reconstruction_kid"} <= valued
    assert quality(first) == quality(second)
    assert [curve["values"] for curve in first["curves"]] == [curve["values"] for curve in second["curves"]]
    assert weights == same_weights


def test_verbs_that_take_a_checkpoint(finished, tmp_path):
    folder, _ = finished
    trial = next((folder / "out").glob("vae-*"))
    evaluated = call("evaluate", trial, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    stored = {m["metric"]: m["value"] for m in records(folder / "out")["vae"]["measurements"]}
    for row in json.loads(evaluated.stdout):
        if row["value"] is not None:
            assert row["value"] == pytest.approx(stored[row["metric"]], rel=1e-5), row["metric"]
    drawn = call("sample", trial / "weights.safetensors", "--n", "9", "--out", tmp_path / "grid.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    compared = call("compare", "ae", "vae", "--out", folder / "out")
    assert compared.returncode == 0, compared.stderr
    assert "MSE" in compared.stdout


def test_sampling_an_autoencoder_is_one_error(finished):
    folder, _ = finished
    result = call("sample", next((folder / "out").glob("ae-*")))
    assert result.returncode == 2
    assert "no prior" in result.stderr


def test_ctrl_c_keeps_what_is_done_and_the_same_command_continues(tmp_path):
    suite = write_suite(tmp_path, images=6400)
    arguments = command("run", suite, "--models", "vae", "--out", tmp_path / "out")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if re.search(r"train \d\d? %", line):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert records(tmp_path / "out")["vae"]["status"] == "interrupted"
    state = next((tmp_path / "out").glob("vae-*/training.safetensors"))
    assert state.stat().st_size > 0
    continued = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert continued.returncode == 0, continued.stderr
    assert records(tmp_path / "out")["vae"]["images_seen"] == 6400


def test_a_hopeless_trial_is_a_row_and_the_sweep_goes_on(tmp_path):
    suite = write_suite(tmp_path, images=160)
    hopeless = "training = { learning_rate = 1e30, warmup = 0.0, hopeless_after = 3 }"
    suite.write_text(suite.read_text().replace("[models.ae]\n", f"[models.ae]\n{hopeless}\n"))
    result = call("run", suite, "--out", tmp_path / "out", umask=0o027)
    assert result.returncode == 1  # nothing was wrong with the input
    assert len(re.findall("ae seed 0: a training step was not finite and is undone", result.stderr)) == 1
    assert re.search(r"ae seed 0: given up at step \d of 10: the last 3 steps were not finite.*1e\+30", result.stderr)
    found = records(tmp_path / "out")
    assert found["ae"]["status"] == "failed"
    assert found["ae"]["steps"] < 10
    assert "lower training.learning_rate" in found["ae"]["error"]
    assert found["vae"]["status"] == "done"
    assert "failed" in result.stdout
    assert set(modes(tmp_path / "out").values()) == {0o640}


def test_a_log_keeps_what_earlier_starts_said_and_the_error_is_that_of_the_last(tmp_path, monkeypatch):
    python = tmp_path / "python"
    monkeypatch.setattr("benchmarks.trials.processes.sys.executable", str(python))
    planned = plan(build_suite(*read_suite(str(write_suite(tmp_path))), ["ae"]), tmp_path / "out")
    reasons = []
    for said in ("echo 'error: the disk is full' >&2", "true"):
        python.write_text(f"#!/bin/sh\n{said}\nexit 3\n")
        python.chmod(0o755)
        reasons += execute(planned, jobs=1).failed
    assert "the disk is full" in reasons[0]
    assert "exit code 3" in reasons[1]
    head, first, second = (planned.trials[0].folder / "log.txt").read_text().splitlines()
    assert first == "error: the disk is full"
    for line in (head, second):
        assert re.fullmatch(r"# \d{4}-\d\d-\d\dT\S+ \S+ -m benchmarks trial \S+", line)
