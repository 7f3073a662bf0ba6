"""Training by several processes: what crosses the network is what the code sends; the table says how it scales."""

import json

import pytest
import torch
import torch.distributed as dist
from tiny_run import run_here, write_suite

from benchmarks.speed.scaling.traffic import BUCKET, Traffic, traffic
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import build_suite
from benchmarks.training.state import forward_terms
from models.output import Draw, ImageShape

GREY = ImageShape(1, 28, 28)
NVAE = {"groups_fine_to_coarse": [2, 1], "latent_channels": 2, "channels_encoder": 4, "channels_decoder": 4}
ROWS = {
    "residual-vae": {"channels_encoder": 4, "channels_decoder": 4},
    "nvae": NVAE,
    "recomputed": {"name": "nvae", "recompute": True, **NVAE},
    "vdvae": {"preset": "vdvae-tiny"},
}


def trial_of(row):
    table = {"data": "mnist-5k", "likelihood": {"name": "bernoulli"}, "training": {"batch_size": 16}}
    return build_suite("scaling", {**table, "models": {row: ROWS[row]}}).trials[0]


@pytest.mark.parametrize("row", ROWS)
def test_what_is_counted_is_what_a_step_gives_to_all_reduce(row, monkeypatch):
    """A step of a model of two processes, whose exchanges are counted here and bring nothing back."""
    sent = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: sent.append(tensor.nbytes))
    trial = trial_of(row)
    model = build_model(trial, GREY, torch.device("cpu"), shared=True).train()
    found = forward_terms(model, torch.zeros(2, 1, 28, 28), Draw(torch.tensor(0)), False)
    (found.distortion.mean() + found.rate.mean()).backward()
    counted = traffic(trial, GREY)
    assert counted.norms == sum(sent)
    assert counted.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert counted.terms == 16 * (1 + found.rates.shape[1]) * found.rates.itemsize
    assert counted.exchanges == len(sent) + 2 + -(-counted.gradients // BUCKET)
    assert (counted.norms > 0) == (row != "vdvae")


def test_a_ring_sends_twice_what_the_others_hold():
    one = Traffic(700, 200, 100, 5)
    assert one.ring_seconds(2, 1000.0) == pytest.approx(1.0)
    assert one.ring_seconds(8, 1000.0) == pytest.approx(2 * 7 / 8)
    assert one.ring_seconds(1, 1000.0) == 0


def rows(capsys_out):
    return {(row["target"].rpartition("/")[2], row["ranks"]): row for row in json.loads(capsys_out)}


def test_the_network_is_counted_without_timing(tmp_path):
    suite = write_suite(tmp_path)
    done = run_here(
        "throughput", suite, "--models", "vae", "--what", "network", "--ranks", "1,8", "--link", "1", "--json"
    )
    assert done.returncode == 0, done.stderr
    alone, eight = (rows(done.stdout)["vae", count] for count in (1, 8))
    assert (alone["gradients_bytes"], alone["ring_seconds"], alone["images_per_second_median"]) == (0, 0, None)
    whole = sum(eight[f"{name}_bytes"] for name in ("gradients", "norms", "terms"))
    assert eight["ring_seconds"] == pytest.approx(2 * 7 / 8 * whole / 1e9)
    shown = run_here(
        "throughput", suite, "--models", "vae", "--what", "network", "--ranks", "8", "--csv", tmp_path / "a.csv"
    )
    assert "images/s" not in shown.stdout  # columns without a value
    assert "gradients (MB/step)" in shown.stdout
    assert f"{eight['gradients_bytes']}" in (tmp_path / "a.csv").read_text()


@pytest.mark.slow
def test_processes_are_timed_at_one_batch(tmp_path):
    done = run_here(
        "throughput", write_suite(tmp_path), "--models", "vae", "--ranks", "1,2", "--seconds", "0.2", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["vae", 1]["speedup"] == 1
    two = found["vae", 2]
    assert two["speedup"] == pytest.approx(
        two["images_per_second_median"] / found["vae", 1]["images_per_second_median"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "17"], "--ranks 17: expected an image at least for each, got a batch of 16"),
        (["--ranks", "2", "--what", "sample"], "name of --what beside --ranks"),
        (["--ranks", "2", "--vs", "baseline"], "--vs does not go with --ranks"),
        (["--link", "1"], "--link goes with --ranks"),
        (["--ranks", "0"], "--ranks"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, words, said):
    done = run_here("throughput", write_suite(tmp_path), "--models", "vae", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
