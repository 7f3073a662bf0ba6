"""A suite from command to table, and what the same or another command makes of it after that."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from tiny_run import modes, records, run_here, write_suite

from benchmarks.records.record import GALLERY, Measurement, load_record, save_record, save_run
from benchmarks.report.page import build_report
from benchmarks.trials.processes import throughput_of
from benchmarks.trials.trial import run_trial

pytestmark = pytest.mark.usefixtures("unsaved")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder and what the command printed; no clock decides here, so timing is short."""
    folder = tmp_path_factory.mktemp("run")
    suite = write_suite(folder)
    short = lambda trial, flags: throughput_of(trial, [*flags, "--seconds", "0.001"])  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.trials.processes.throughput_of", short)
        result = run_here("run", suite, "--out", folder / "out", umask=0o002)
    assert result.returncode == 0, result.stderr
    return folder, result


def written(out):
    """When each trial's files were written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/*")}


def test_the_table_is_the_last_thing_on_stdout_and_progress_on_stderr(finished):
    _, result = finished
    assert re.search(r"^\| ae +\|", result.stdout, re.M)
    assert re.search(r"^\| vae +\|", result.stdout, re.M)
    assert len(re.findall(r"^tiny: trials 0/2.*ae seed 0: train \d+/4, [\d.]+ nats/image", result.stderr, re.M)) == 1
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


def test_files_of_a_run_are_readable_by_whom_the_umask_lets(finished):
    found = modes(finished[0] / "out")
    assert {"weights.safetensors", "images.npz", "per_image.npz"} <= set(found)
    assert set(found.values()) == {0o664}


def test_the_same_command_runs_nothing_again(finished):
    folder, first = finished
    before = written(folder / "out")
    command = [sys.executable, "-m", "benchmarks", "run", folder / "tiny.toml", "--out", folder / "out"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert before == written(folder / "out")


@pytest.fixture
def without_gallery(finished, tmp_path):
    """A copy of the finished run whose `vae` has no pictures for the page yet; its suite, and the trial's folder."""
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    (trial,) = (tmp_path / "out").glob("vae-seed0-*")
    (trial / GALLERY).unlink()
    return finished[0] / "tiny.toml", trial


def test_a_missing_gallery_is_made_again_and_nothing_else(finished, without_gallery):
    suite, trial = without_gallery
    before = {path.name: path.read_bytes() for path in trial.iterdir() if path.is_file() and path.name != "log.txt"}
    result = run_here("run", suite, "--out", trial.parent)
    assert (result.returncode, result.stdout) == (0, finished[1].stdout)
    after = {path.name: path.read_bytes() for path in trial.iterdir() if path.is_file() and path.name != "log.txt"}
    (first,) = (finished[0] / "out").glob("vae-seed0-*")
    assert after.pop(GALLERY) == (first / GALLERY).read_bytes()
    assert after == before
    assert "not recorded of" not in (trial.parent / "index.html").read_text()


def test_without_weights_a_missing_gallery_is_said_on_the_page(without_gallery):
    suite, trial = without_gallery
    (trial / "weights.safetensors").unlink()
    before = written(trial.parent)
    assert run_here("run", suite, "--out", trial.parent).returncode == 0
    assert written(trial.parent) == before
    assert "are not recorded of vae." in " ".join((trial.parent / "index.html").read_text().split())


def test_a_gallery_that_cannot_be_made_leaves_the_record_as_it_was(without_gallery):
    suite, trial = without_gallery
    (trial / "weights.safetensors").write_bytes(b"nothing")
    before = (trial / "record.json").read_bytes()
    result = run_here("run", suite, "--out", trial.parent)
    assert result.returncode == 2
    assert "weights.safetensors" in result.stderr
    assert (trial / "record.json").read_bytes() == before
    planned = json.loads(run_here("run", suite, "--out", trial.parent, "--dry-run", "--json").stdout)
    assert [row["status"] for row in planned] == ["done", "to draw"]


@pytest.mark.usefixtures("untimed")
def test_another_config_overwrites_nothing(finished):
    folder, _ = finished
    before = {path.name for path in (folder / "out").iterdir() if path.is_dir()}
    options = ("--set", "training.images=32", "--models", "ae", "--out", folder / "out")
    other = run_here("run", folder / "tiny.toml", *options)
    assert other.returncode == 0, other.stderr
    after = {path.name for path in (folder / "out").iterdir() if path.is_dir()}
    assert before < after
    assert len(after - before) == 1
    restored = run_here("run", folder / "tiny.toml", "--out", folder / "out")
    assert restored.stdout == finished[1].stdout


def changed(finished, tmp_path, *options, **texts):
    """A copy of the finished run under a suite of another name in which `texts` are replaced, run with `options`."""
    folder, _ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    text = (folder / "tiny.toml").read_text()
    for old, new in texts.values():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "other.toml").write_text(text)
    before = written(tmp_path / "out")
    result = run_here("run", tmp_path / "other.toml", "--out", tmp_path / "out", *options)
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
    result, files = changed(finished, tmp_path, "--models", "vae", k=("iwae_samples = 2", "iwae_samples = 3"))
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
    again = run_here("run", folder / "tiny.toml", "--out", tmp_path / "out")
    assert again.stdout == first.stdout
    assert "train " not in again.stderr
    assert {path.name[-12:] for path in (tmp_path / "out").glob("*-seed*")} == {"0123456789ab"}


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


def test_verbs_that_take_a_checkpoint(finished, tmp_path):
    folder, _ = finished
    trial = next((folder / "out").glob("vae-*"))
    evaluated = run_here("evaluate", trial, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    stored = {m["metric"]: m["value"] for m in records(folder / "out")["vae"]["measurements"]}
    for row in json.loads(evaluated.stdout):
        if row["value"] is not None:
            assert row["value"] == pytest.approx(stored[row["metric"]], rel=1e-5), row["metric"]
    drawn = run_here("sample", trial / "weights.safetensors", "--n", "9", "--out", tmp_path / "grid.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    compared = run_here("compare", "ae", "vae", "--out", folder / "out")
    assert compared.returncode == 0, compared.stderr
    assert "MSE" in compared.stdout


def test_sampling_an_autoencoder_is_one_error(finished):
    folder, _ = finished
    result = run_here("sample", next((folder / "out").glob("ae-*")))
    assert result.returncode == 2
    assert "no prior" in result.stderr
