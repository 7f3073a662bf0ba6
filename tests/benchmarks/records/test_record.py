"""Records: what is written is what is read."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from benchmarks.records.record import Measurement, from_json, load_records, load_trials, save_record, save_run, to_json


def test_json_round_trip_keeps_every_field(suite_records):
    for record in suite_records:
        assert from_json(to_json(record)) == record


def test_values_that_are_not_finite_become_null(make_record):
    record = make_record(measurements=[Measurement("mse", math.nan, "0-1", False, low=-math.inf, high=math.inf)])
    text = to_json(record)
    assert "NaN" not in text
    assert "Infinity" not in text
    read = from_json(text).measurements[0]
    assert (read.value, read.low, read.high) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "found list"),
        ('{"schema_version": 99}', "found 99"),
        ("{}", "found None"),
        ("{", "Expecting"),
    ],
)
def test_other_text_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        from_json(text)


@pytest.mark.parametrize("field", ["environment", "measurements", "row"])
def test_a_record_without_a_field_is_refused(make_record, field):
    raw = json.loads(to_json(make_record()))
    del raw[field]
    with pytest.raises(ValueError, match=field):
        from_json(json.dumps(raw))


def test_an_unknown_field_is_refused(make_record):
    raw = json.loads(to_json(make_record())) | {"fid": 3.0}
    with pytest.raises(ValueError, match="fid"):
        from_json(json.dumps(raw))


def test_new_measurements_replace_those_of_the_same_name(make_record):
    record = make_record()
    changed = record.with_measurements([Measurement("mse", 0.5, "0-1", False)])
    assert changed.get("mse").value == 0.5
    assert changed.get("elbo") == record.get("elbo")
    assert len(changed.measurements) == len(record.measurements)
    assert record.get("mse").value != 0.5


def test_records_are_found_in_trial_folders_only(tmp_path, make_record):
    save_record(make_record("vae"), tmp_path / "vae-1")
    save_record(make_record("ae"), tmp_path / "ae-1")
    (tmp_path / "figures").mkdir()
    assert [r.row for r in load_records(tmp_path)] == ["ae", "vae"]
    assert [folder.name for folder in load_trials(tmp_path)] == ["ae-1", "vae-1"]


def test_the_latest_run_says_which_trials_count_and_in_which_order(tmp_path, make_record):
    for row in ("ae", "nvae", "vae", "old"):
        save_record(make_record(row), tmp_path / row)
    save_run(tmp_path, ["vae", "planned", "nvae", "ae"])
    assert [r.row for r in load_records(tmp_path)] == ["vae", "nvae", "ae"]


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"cells": 3}'])
def test_an_unreadable_list_of_trials_is_named(tmp_path, make_record, text):
    save_record(make_record(), tmp_path / "trial")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        load_trials(tmp_path)


def test_an_unreadable_record_is_named(tmp_path, make_record):
    save_record(make_record(), tmp_path / "good")
    save_record(make_record(), tmp_path / "bad")
    (tmp_path / "bad" / "record.json").write_text("{half")
    with pytest.raises(ValueError, match=r"bad/record\.json"):
        load_records(tmp_path)


def test_records_and_reports_import_no_torch():
    code = "import sys, benchmarks.records.record, benchmarks.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_records_are_immutable(make_record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().seed = 3
