"""What must not move when code moves: names of runs, and the table that is made of their records."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.records.record import load_record, run_folders
from benchmarks.report.page import build_report
from benchmarks.suites.config import build_suite, read_suite, trial_from_dict

ROOT = Path(__file__).resolve().parent.parent
SEEDS = {"quick": 3, "fashion-mnist": 3, "rate-distortion": 1}
RUNS = {suite: ROOT / "results" / suite for suite in SEEDS}

FIRST = json.loads((ROOT / "tests" / "data" / "first_runs.json").read_text())
"""Folders and configurations of the first runs, named by the hash of their whole configuration."""


def shipped(suite):
    return [(folder, load_record(folder)) for folder in run_folders(RUNS[suite])]


def versions_of(record):
    return f"torch {record.environment.torch}, operations {record.environment.operations}"


@pytest.mark.parametrize("suite", RUNS)
def test_a_suite_still_names_its_runs_alike(suite):
    """The suite file of today, in the environment of the records, stands for the folders in results."""
    name, table = read_suite(suite)
    trials = {(trial.row, trial.seed): trial for trial in build_suite(name, table | {"seeds": SEEDS[suite]}).trials}
    records = shipped(suite)
    assert len(records) == len(trials)
    for folder, record in records:
        identity = trials[record.row, record.seed].identity(record.data_hash, versions_of(record))
        assert folder.name == f"{record.row}-seed{record.seed}-{identity}"


def test_a_first_run_still_has_its_name():
    for run in FIRST:
        identity = trial_from_dict(run["config"]).first_identity(run["data_hash"], run["versions"])
        assert run["folder"] == f"{run['row']}-seed{run['seed']}-{identity}"


def test_the_hash_of_a_training_is_that_of_the_day_it_came():
    """A change of it trains everyone's rows again."""
    found = {run["row"]: trial_from_dict(run["config"]).identity(run["data_hash"], run["versions"]) for run in FIRST}
    assert found == {
        "ae": "6ba49a4203cb",
        "vae": "1fb05c352111",
        "residual-vae": "b58626764a4a",
        "nvae": "ec9cab3519c4",
    }


@pytest.fixture(scope="module", params=RUNS)
def rebuilt(request, tmp_path_factory):
    """A run's name and its tables made anew of the committed records."""
    out = tmp_path_factory.mktemp("run") / request.param
    shutil.copytree(RUNS[request.param], out, ignore=shutil.ignore_patterns("table.*", "index.*", "figures"))
    build_report(out, pages=False)
    return request.param, out


@pytest.mark.parametrize("name", ["table.md", "table.csv"])
def test_report_makes_the_committed_table_of_the_committed_records(rebuilt, name):
    suite, out = rebuilt
    assert (out / name).read_text() == (RUNS[suite] / name).read_text()


def test_the_readme_shows_the_table_of_fashion_mnist():
    assert (RUNS["fashion-mnist"] / "table.md").read_text().strip() in (ROOT / "README.md").read_text()
