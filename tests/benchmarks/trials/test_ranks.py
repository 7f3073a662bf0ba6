"""One model trained by several processes: the same losses and weights as in one, whatever is killed on the way."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import records, run_here, write_suite

from benchmarks.data import load
from benchmarks.evaluation.shared import shared_batches
from benchmarks.storage import tensors
from benchmarks.storage.weights import build_model, write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.training.loop import train
from benchmarks.training.ranks import Ranks
from benchmarks.trials import ranks as joining
from benchmarks.trials.ranks import shared_training

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
LOSS = 1e-6
"""Relative: a few roundings of float32 (6e-8), as processes add in another order than one does."""
WEIGHTS = 2e-4
"""Absolute, of weights around 0.1: an optimizer divides by a gradient's size, and with it by its rounding."""
LONG = {"loss": 1e-5, "validation elbo": 1e-5}
"""Relative, after hundreds of steps, each of which starts from the rounding of those before."""
FOUND_BY_TRAINING = ("loss", "validation elbo")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def curves(result):
    return {curve.name: torch.tensor(curve.values) for curve in result.curves}


def test_two_processes_train_as_one(tmp_path):
    """A batch of 15 is shared 8 and 7; the validation split in turns; norms see both."""
    suite = write_suite(tmp_path, images=90)
    suite.write_text(suite.read_text().replace("batch_size = 16", "batch_size = 15\nema = 0.9\nema_batches = 2"))
    (trial,) = build_suite(*read_suite(str(suite)), ["vae"]).trials
    data, found, models = load(trial.data), [], []
    for count in (1, 2):
        folder = tmp_path / str(count)
        write_config(trial, folder)
        with shared_training(folder, count, [], trial.device, 1) as ranks:
            models.append(build_model(trial, data.image, CPU, shared=count > 1))
            assert not ranks.any(False)  # what is trained already is not trained
            result = train(models[-1], trial, data, folder, lambda *event: None, lambda: False, ranks=ranks)
            with shared_batches(models[-1]):
                pass
        assert result.ranks == count
        found.append(curves(result))
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, rtol=LOSS, atol=0)
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=WEIGHTS)
    assert not torch.equal(found[0]["loss"][:1], found[0]["loss"][1:2])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shares_hold_every_image_once(count):
    for n in (7, 15, 64):
        shares = [list(range(n))[Ranks(index, count).share(n)] for index in range(count)]
        assert list(itertools.chain(*shares)) == list(range(n))
        assert 0 < max(map(len, shares)) <= min(map(len, shares)) + 1


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--ranks", "17"], {}, "expected an image at least for each of 17 ranks, got 16"),
        (["--ranks", "0"], {}, "--ranks"),
        (["--ranks", "3"], {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun has started 2"),
        ([], {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "expected the ranks of a model on one machine, got 4"),
    ],
)
def test_ranks_that_cannot_be_are_one_line(tmp_path, monkeypatch, words, environment, said):
    for name, value in ({"TORCHELASTIC_RUN_ID": "1", "RANK": "0"} | environment if environment else {}).items():
        monkeypatch.setenv(name, value)
    done = run_here("run", write_suite(tmp_path), "--out", tmp_path / "out", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_processes_of_torchrun_leave_the_run_to_the_first(tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = run_here("run", write_suite(tmp_path), "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "gpus", "count", "devices", "backend"),
    [
        ("cpu", 0, 3, ["cpu", "cpu", "cpu"], "gloo"),
        ("cuda", 4, 3, ["cuda:0", "cuda:1", "cuda:2"], "cpu:gloo,cuda:nccl"),
        ("cuda:1", 2, 2, ["cuda:1", "cuda:0"], "cpu:gloo,cuda:nccl"),
        ("cuda:0", 2, 3, ["cuda:0", "cuda:1", "cuda:0"], "gloo"),  # NCCL takes one process a GPU
    ],
)
def test_processes_take_gpus_in_turns_and_share_them_by_gloo(monkeypatch, name, gpus, count, devices, backend):
    """What torch is asked for; no GPU is needed."""
    asked, set_to = [], []
    monkeypatch.setattr(joining, "choose_device", torch.device)
    monkeypatch.setattr(joining, "TCPStore", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: set_to.append(str(device)))
    monkeypatch.setattr(joining.dist, "init_process_group", lambda backend, **_: asked.append(backend))
    for index in range(count):
        ranks = Ranks(index, count)
        joining.join(ranks, 1, device := joining.device_of(name, ranks))
        assert str(device) == devices[index]
    assert asked == [backend] * count
    assert set_to == (devices if gpus else [])


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What 1, 2 and 4 processes end with: by number, row and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    for count in (1, 2, 4):
        words = [*TORCHRUN, f"--nproc-per-node={count}", "-m", "rank_training", str(folder / str(count))]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    return lambda count, row, rank: tensors.load(folder / str(count) / row / f"{rank}.safetensors").tensors


@pytest.mark.slow
@pytest.mark.parametrize("row", ["vae", "residual-vae", "nvae", "from-data", "in-passes", "vdvae", "hopeless"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one_and_end_with_the_same_bits(trained, row, count):
    """Spectral vectors and running statistics are among what they end with, and what was skipped or gone back to."""
    alone, first = trained(1, row, 0), trained(count, row, 0)
    for rank in range(1, count):
        other = trained(count, row, rank)
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=0, equal_nan=True)
    for name, value in alone.items():
        of_training = name in FOUND_BY_TRAINING
        if of_training or row != "hopeless":
            near = {"rtol": LOSS, "atol": 0} if of_training else {"rtol": 0, "atol": WEIGHTS}
            torch.testing.assert_close(first[name], value, equal_nan=True, **near)
    if row == "nvae":
        assert any("norms." in name for name in first)
    assert bool(first["loss"].isnan().any()) == (row == "hopeless")


def long_suite(folder):
    """400 steps, with a state on disk every 0.1 s, of a row whose rounding does not grow."""
    suite = write_suite(folder, images=6400)
    suite.write_text(suite.read_text().replace("[training]", "[training]\ncheckpoint_seconds = 0.1\nepsilon = 1e-3"))
    return suite


def near_the_uninterrupted(suite, record):
    """Assert that the record's curves are those of a training in one go by one process."""
    (trial,) = build_suite(*read_suite(str(suite)), ["vae"]).trials
    data = load(trial.data)
    folder = suite.parent / "uninterrupted"
    folder.mkdir()
    result = train(build_model(trial, data.image, CPU), trial, data, folder, lambda *event: None, lambda: False)
    assert (record["status"], record["images_seen"]) == ("done", 6400)
    for curve, expected in zip(record["curves"], result.curves, strict=True):
        np.testing.assert_allclose(curve["values"], expected.values, rtol=LONG[curve["name"]])


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not (found := condition()):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < end, "nothing to kill"
        time.sleep(0.02)
    return found


def state_of(out):
    return next(iter(out.glob(f"vae-*/{tensors.STATE}")), None)


def rank_of(out):
    """The process id of a rank other than the first."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "--rank" in words and any(word.startswith(str(out)) for word in words):
            return int(path.parent.name)
    return None


def start(*words):
    return subprocess.Popen([*map(str, words)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_worker_of_torchrun_that_is_killed_is_restarted_and_continues(tmp_path):
    suite, out = long_suite(tmp_path), tmp_path / "out"
    words = ["--max-restarts=1", "--nproc-per-node=2", "-m", "benchmarks", "run", suite, "--models", "vae"]
    process = start(*TORCHRUN, *words, "--out", out)
    folder = wait_for(lambda: state_of(out), process).parent
    os.kill(json.loads((folder / ".owner.json").read_text())["pid"], signal.SIGKILL)
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said
    starts = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("# ")]
    assert len(starts) == 2
    record = records(out)["vae"]
    assert record["ranks"] == 2
    near_the_uninterrupted(suite, record)


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_training_continues_with_another_number_of_processes(tmp_path, before, after):
    suite, out = long_suite(tmp_path), tmp_path / "out"
    words = ["run", suite, "--models", "vae", "--jobs", 1, "--out", out]
    process = start(sys.executable, "-m", "benchmarks", *words, "--ranks", before)
    wait_for(lambda: state_of(out), process)
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=60), process.returncode)[1] == 130
    interrupted = records(out)["vae"]
    assert (interrupted["status"], interrupted["ranks"]) == ("interrupted", before)
    assert 0 < interrupted["images_seen"] < 6400
    done = run_here(*words, "--ranks", after)
    assert done.returncode == 0, done.stderr
    record = records(out)["vae"]
    assert record["ranks"] == after
    near_the_uninterrupted(suite, record)


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["first", "other"])
def test_a_process_of_a_trial_that_is_killed_brings_all_down_and_the_trial_is_started_once_more(tmp_path, whose):
    suite, out = long_suite(tmp_path), tmp_path / "out"
    process = start(sys.executable, "-m", "benchmarks", "run", suite, "--models", "vae", "--ranks", 2, "--out", out)
    wait_for(lambda: state_of(out), process)
    other = wait_for(lambda: rank_of(out), process)
    parent = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(other if whose == "other" else parent, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{other}").exists(), process)
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said
    assert "it is started once more" in said
    near_the_uninterrupted(suite, records(out)["vae"])


def run_starved(tmp_path, monkeypatch, whose, most):
    """A run whose trial has a process, of two, that takes so many of its 8 images at a time."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "helpers"))
    monkeypatch.setenv("STARVED_RANK", whose)
    monkeypatch.setenv("STARVED_MOST", most)
    words = ["--models", "vae", "--ranks", 2, "--plugin", "starved_rank", "--jobs", 1, "--out", tmp_path / "out"]
    return run_here("run", write_suite(tmp_path), *words), records(tmp_path / "out")["vae"]


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("whose", ["0", "1"])
def test_where_memory_runs_out_in_a_process_all_go_on_with_smaller_passes(tmp_path, monkeypatch, whose):
    done, record = run_starved(tmp_path, monkeypatch, whose, "4")
    assert done.returncode == 0, done.stderr
    assert (record["status"], record["ranks"], record["images_seen"]) == ("done", 2, 64)
    assert any("batches were taken in 2 passes after 1 starts of a fresh process" in note for note in record["notes"])
    assert "a batch takes 2 passes from here on" in done.stderr
    assert not list((tmp_path / "out").glob(f"*/{tensors.STARVED}"))


@pytest.mark.slow
def test_a_process_that_cannot_take_one_image_fails_the_row_and_says_so(tmp_path, monkeypatch):
    done, record = run_starved(tmp_path, monkeypatch, "1", "0")
    assert (done.returncode, record["status"]) == (1, "failed")
    said = "rank 1 of 2: training of one image at a time ran out of memory, after 3 starts of a fresh process"
    assert record["error"].startswith(said)
