"""What a plan will take, before anything is handed over."""

import json
from pathlib import Path

import pytest
from tiny_run import run_here, write_suite

from benchmarks.suites.config import build_suite
from benchmarks.trials.executors import paper
from benchmarks.trials.executors.choice import Wanted
from benchmarks.trials.schedule import plan

RESULTS = Path(__file__).resolve().parents[4] / "results" / "gpu" / "nvidia-h100-80gb-hbm3"


def test_the_rate_of_a_gpu_is_the_recorded_one():
    (row,) = json.loads((RESULTS / "training.json").read_text())["rows"]
    assert pytest.approx(row["images_per_s"], abs=0.005) == paper.H100_IMAGES
    head = (RESULTS.parents[2] / "benchmarks" / "suites" / "cifar10.toml").read_text()
    assert f"{paper.H100_MACS / 1e6:,.0f} million" in head
    assert f"{paper.H100_IMAGES * paper.H100_MACS:.1e}" == "9.1e+12"
    assert "9.1e12" in paper.PROPORTION


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
    assert f"basis of hours: {paper.PROPORTION} (ae, vae)" in lines
    assert not (tmp_path / "out").exists()


def test_sums_for_programs(tmp_path):
    words = ("--executor", "slurm", "--device", "cuda", "--seeds", "5", "--jobs", "2", "--dry-run", "--json")
    found = json.loads(run_here("run", write_suite(tmp_path), *words, "--out", tmp_path / "out").stdout)
    each = {row["row"]: row for row in found["rows"]}
    images = 64
    assert each["vae"]["hours"] == pytest.approx(
        each["vae"]["macs_per_image"] * images / (paper.H100_IMAGES * paper.H100_MACS) / 3600
    )
    assert found["hours"] == pytest.approx(5 * sum(row["hours"] for row in found["rows"]))
    assert found["wall_hours"] == pytest.approx(found["hours"] / 2)
    assert found["disk"] == pytest.approx(5 * sum(row["disk"] for row in found["rows"]))
    largest = max(row["peak_disk"] - row["disk"] for row in found["rows"])
    assert found["peak_disk"] == pytest.approx(found["disk"] + 2 * largest)


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
    runs = RESULTS.parents[1] / "fashion-mnist"
    kept = {path: sum(file.stat().st_size for file in path.iterdir()) for path in runs.glob("*-seed0-*")}
    assert len(kept) > 5
    for path, size in kept.items():
        parameters = json.loads((path / "record.json").read_text())["parameters"]
        estimate = paper.FLOAT * parameters + paper.PICTURES * 28 * 28 + paper.PER_IMAGE * 10_000
        assert size < estimate < 3 * size, path
