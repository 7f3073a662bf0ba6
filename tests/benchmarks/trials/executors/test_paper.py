"""What a plan will take, before anything is handed over."""

import json

import pytest
from tiny_run import run_here, write_suite

from benchmarks.suites.config import build_suite
from benchmarks.trials.executors import paper
from benchmarks.trials.executors.choice import Wanted
from benchmarks.trials.schedule import plan


def test_the_rate_of_a_gpu_is_the_recorded_one_of_the_published_preset():
    head = (paper.ROOT / "benchmarks" / "suites" / "cifar10.toml").read_text()
    (line,) = (line for line in head.splitlines() if line.startswith("#   NVAE as published"))
    assert f" {paper.FOUND_MACS / 1e6:,.0f} million" in line
    assert json.loads(paper.FOUND.read_text())["facts"]["preset"] == "nvae-cifar10"
    assert 100 < paper.found_images() < 1000
    assert f"{paper.found_images():.0f} images/s" in paper.proportion()


def test_a_suite_on_gpus_elsewhere(tmp_path):
    """GPUs that this machine does not have; the suite is trained on so many images that a job's limit is too short."""
    words = "--executor slurm --device cuda --seeds 5 --jobs 64 --hours 1 --set training.images=100000000000 --dry-run"
    said = run_here("run", write_suite(tmp_path), *words.split(), "--out", tmp_path / "out")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].startswith("Tiny: npz:")
    assert [line.split()[:3] for line in lines[1:3]] == [["ae", "5", "trials"], ["vae", "5", "trials"]]
    assert "trials: 10 to train, 0 trained before; 64 at a time" in lines
    assert "a job: 1 GPU, 1 cores, 1 h" in lines
    assert "10 trials take longer than that and go on after a requeue" in lines
    assert f"basis of hours: {paper.proportion()} (ae, vae)" in lines
    assert not (tmp_path / "out").exists()


def test_sums_for_programs(tmp_path):
    words = ("--executor", "slurm", "--device", "cuda", "--seeds", "5", "--jobs", "2", "--dry-run", "--json")
    (found,) = json.loads(run_here("run", write_suite(tmp_path), *words, "--out", tmp_path / "out").stdout)
    each = {row["row"]: row for row in found["rows"]}
    images = 64
    assert each["vae"]["hours"] == pytest.approx(
        each["vae"]["macs_per_image"] * images / (paper.found_images() * paper.FOUND_MACS) / 3600
    )
    assert found["hours"] == pytest.approx(5 * sum(row["hours"] for row in found["rows"]))
    assert found["wall_hours"] == pytest.approx(found["hours"] / 2)
    assert found["disk"] == pytest.approx(5 * sum(row["disk"] for row in found["rows"]))
    largest = max(row["peak_disk"] - row["disk"] for row in found["rows"])
    assert found["peak_disk"] == pytest.approx(found["disk"] + 2 * largest)


def test_several_data_sets_together(tmp_path):
    suite = write_suite(tmp_path)
    data = f"mnist-5k,npz:{tmp_path / 'data.npz'}"
    words = ("--data", data, *["--executor", "ray", "--device", "cuda", "--seeds", "3", "--jobs", "64", "--dry-run"])
    found = json.loads(run_here("run", suite, *words, "--json").stdout)
    assert [one["data"] for one in found] == data.split(",")
    last = run_here("run", suite, *words).stdout.splitlines()[-1]
    assert last.startswith("together: 12 trials on 2 data sets, ")
    assert "by the clock with 64 at a time" in last


def test_bases_a_budget_and_another_seed_s_record_and_what_is_done(planned, finish):
    first = planned.trials[0]
    finish(first, training_seconds=100.0, steps=10)
    found = paper.paper_plan(planned, Wanted("slurm", jobs=1))
    (row,) = found.rows
    assert (found.trials, found.finished, row.basis) == (1, 1, paper.RECORDED)
    steps = 32_000 / 32
    assert row.hours * 3600 == pytest.approx(10.0 * steps)
    table = {"data": planned.suite.data, "likelihood": {"name": "bernoulli"}, "training": {"seconds": 7.0}}
    timed = plan(build_suite("timed", table | {"models": {"vae": {"channels": 2}}}), planned.out)
    assert [(row.hours * 3600, row.basis) for row in paper.paper_plan(timed, Wanted("ray")).rows] == [
        (7.0, paper.BUDGET)
    ]


def test_the_estimate_of_disk_covers_what_a_run_has_left():
    """Of the shipped results, whose weights are kept."""
    runs = paper.ROOT / "results" / "fashion-mnist"
    kept = {path: sum(file.stat().st_size for file in path.iterdir()) for path in runs.glob("*-seed0-*")}
    assert len(kept) > 5
    for path, size in kept.items():
        parameters = json.loads((path / "record.json").read_text())["parameters"]
        estimate = paper.FLOAT * parameters + paper.PICTURES * 28 * 28 + paper.PER_IMAGE * 10_000
        assert size < estimate < 3 * size, path
