"""The verb `tune`: every row gets the same trials, once, and an old log is not mixed with a new one."""

import csv
import dataclasses
from concurrent.futures.process import BrokenProcessPool

import pytest

from benchmarks.base.errors import UserError
from benchmarks.suites.config import build_suite
from benchmarks.trials import tune as tuning


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setattr(tuning, "LEARNING_RATES", (1e-3, 2e-3))
    training = {"images": 8, "batch_size": 8}
    models = {"ae": {"channels": 2, "likelihood": {"name": "gaussian"}}, "vae": {"channels": 2}}
    table = {"data": "mnist-5k", "likelihood": {"name": "bernoulli"}, "training": training, "models": models}
    return build_suite("tiny", table)


def lines(log):
    with log.open(newline="") as file:
        return [(line["row"], float(line["learning_rate"]), float(line["kl_warmup"])) for line in csv.DictReader(file)]


def test_every_row_gets_the_same_trials_once(suite, tmp_path):
    log = tmp_path / "log.csv"
    tuning.tune(suite, log)
    expected = [("ae", rate, 0.3) for rate in (1e-3, 2e-3)]
    expected += [("vae", rate, warmup) for warmup in tuning.WARMUPS for rate in (1e-3, 2e-3)]
    assert lines(log) == expected
    before = log.read_text()
    tuning.tune(suite, log)
    assert log.read_text() == before
    log.write_text("\n".join(before.splitlines()[:-1]) + "\n")
    tuning.tune(suite, log)
    assert lines(log) == expected


def test_trials_side_by_side_find_the_same(suite, tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    tuning.tune(suite, one)
    tuning.tune(suite, two, jobs=2)
    assert scores(one) == scores(two)


def scores(log):
    with log.open(newline="") as file:
        return {
            (one["row"], one["learning_rate"], one["kl_warmup"]): one["validation_elbo"] for one in csv.DictReader(file)
        }


def test_a_log_of_other_columns_is_left_alone(suite, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("row,learning_rate\nvae,1e-3\n")
    with pytest.raises(UserError, match="kl_warmup"):
        tuning.tune(suite, log)
    assert log.read_text() == "row,learning_rate\nvae,1e-3\n"


def test_a_training_that_is_given_up_has_no_score(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "LEARNING_RATES", (1e30,))
    (trial,) = (one for one in suite.trials if one.row == "vae")
    training = dataclasses.replace(trial.training, hopeless_after=1, images=64, warmup=0.0)
    log = tmp_path / "log.csv"
    tuning.tune(dataclasses.replace(suite, trials=(dataclasses.replace(trial, training=training),)), log)
    with log.open(newline="") as file:
        assert [line["validation_elbo"] for line in csv.DictReader(file)] == ["", ""]
    assert "given up" in capsys.readouterr().err


def test_a_killed_process_is_one_line(suite, tmp_path, monkeypatch):
    def killed(futures):
        raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(tuning, "as_completed", killed)
    with pytest.raises(UserError, match="the log goes on where it stopped"):
        tuning.tune(suite, tmp_path / "log.csv", jobs=2)
