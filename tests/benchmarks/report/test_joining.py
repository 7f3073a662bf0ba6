"""Runs of several machines as one table, and what may not be in it."""

import dataclasses

import pytest
from tiny_run import run_here

from benchmarks.records.record import load_records, save_record, save_run


@pytest.fixture
def two(tmp_path, make_record):
    """Folders of two runs and `write(run, row, seed, **fields)`."""

    def write(run, row="vae", seed=0, environment=None, **fields):
        record = make_record(row, seed, **fields)
        changed = dataclasses.replace(record.environment, **(environment or {}))
        save_record(dataclasses.replace(record, environment=changed), tmp_path / run / f"{row}-seed{seed}-a")
        (tmp_path / run / f"{row}-seed{seed}-a" / ".owner.json").write_text("{}")
        save_run(tmp_path / run, sorted({path.parent.name for path in (tmp_path / run).glob("*/record.json")}))
        return tmp_path / run

    return write


def merged(tmp_path, *words):
    return run_here("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both", *words)


def test_seeds_of_two_machines_are_one_row_and_their_rates_are_noted(two, tmp_path):
    two("a", seed=0)
    two("b", seed=1, environment={"device_name": "another processor"})
    two("b", seed=0)  # the same trial, trained twice alike
    said = merged(tmp_path)
    assert said.returncode == 0, said.stderr
    assert "2 seeds (0, 1)" in " ".join(said.stdout.split())
    assert [(record.row, record.seed) for record in load_records(tmp_path / "both")] == [("vae", 0), ("vae", 1)]
    assert not list((tmp_path / "both").rglob(".owner.json"))
    assert (tmp_path / "both" / "index.html").exists()


def test_rows_of_two_machines_share_a_table(two, tmp_path):
    two("a", "ae")
    two("b", "vae", environment={"device_name": "another processor"})
    said = merged(tmp_path)
    assert said.returncode == 0
    assert "note: rates, times and memory are not compared: device_name of the rows differ" in said.stderr
    assert {record.row for record in load_records(tmp_path / "both")} == {"ae", "vae"}


def test_a_trial_that_is_done_comes_before_one_that_is_not(two, tmp_path):
    two("a", status="failed", error="out of memory")
    two("b")
    assert merged(tmp_path).returncode == 0
    assert [record.status for record in load_records(tmp_path / "both")] == ["done"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"data_hash": "00" * 32}, "expected the same images of mnist-5k"),
        ({"environment": {"torch": "2.9.0"}}, "expected one torch"),
        ({"environment": {"commit": "fedcba"}}, "--allow commit joins them all the same"),
        ({"environment": {"device": "cuda"}}, "expected one training of vae, got environment.device 'cpu' in"),
        ({"config": {"training": {"precision": "bfloat16"}}}, "expected one training of vae"),
    ],
)
def test_what_does_not_compare_is_refused_with_the_reason(fields, expected, two, tmp_path):
    two("a", seed=0)
    two("b", seed=1, **fields)
    said = merged(tmp_path)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert said.stderr.startswith("error: merge: expected")
    assert expected in said.stderr
    assert not (tmp_path / "both").exists()


def test_one_trial_with_two_results_is_refused(two, tmp_path, make_value):
    two("a", measurements=[make_value("elbo", -100.0)])
    two("b", measurements=[make_value("elbo", -101.0)])
    said = merged(tmp_path)
    assert said.returncode == 2
    assert "expected one result of vae seed 0 on mnist-5k" in said.stderr


def test_what_may_differ_is_allowed_by_name(two, tmp_path):
    two("a", seed=0)
    two("b", seed=1, environment={"commit": "fedcba"})
    assert merged(tmp_path, "--allow", "commit").returncode == 0


def test_an_unknown_field_and_a_folder_that_is_not_empty_are_refused(two, tmp_path):
    two("a", seed=0)
    two("b", seed=1)
    assert "unknown field 'comit'; did you mean 'commit'?" in merged(tmp_path, "--allow", "comit").stderr
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "mine").touch()
    assert "expected a new or an empty folder" in merged(tmp_path).stderr
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["mine"]
