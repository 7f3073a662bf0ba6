"""Folders of runs: what an older version began is found and continued."""

import dataclasses
import re

import numpy as np
import pytest
from tiny_run import write_suite

from benchmarks.base.errors import UserError
from benchmarks.storage.weights import build_model, read_config, record_head, write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials import schedule
from benchmarks.trials.schedule import plan
from models.fields import added_later
from models.registry import MODELS
from models.vanilla.vae import VAEConfig


@dataclasses.dataclass(frozen=True)
class GrownVAEConfig(VAEConfig):
    """The vanilla VAE's configuration of a later version."""

    spread: float = added_later(1.0)


@pytest.fixture
def weightless(table):
    """The suite of the table, to be scored by an extractor whose weights nobody gave."""
    return build_suite("mine", {**table, "evaluation": {"extractor": "inception"}})


@pytest.fixture
def table(tmp_path):
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", train=images, validation=images, test=images)
    row = {"channels": 2, "latent_size": 2}
    return {"data": f"npz:{tmp_path / 'data.npz'}", "likelihood": {"name": "bernoulli"}, "models": {"vae": row}}


def test_what_an_older_version_began_continues_in_its_folder(table, tmp_path, monkeypatch):
    (old,) = plan(build_suite("mine", table), tmp_path).trials
    write_config(old.trial, old.folder)
    monkeypatch.setitem(MODELS, "vae", dataclasses.replace(MODELS["vae"], config=GrownVAEConfig))
    planned = plan(build_suite("mine", table), tmp_path)
    (new,) = planned.trials
    assert new.folder == old.folder
    assert read_config(new.folder) == new.trial
    assert record_head(read_config(new.folder), new.folder)["config_hash"] == old.folder.name.rsplit("-", 1)[-1]
    assert build_model(read_config(new.folder), planned.data.image, "cpu").config == new.trial.model_config


def test_a_later_field_that_is_set_takes_a_folder_of_its_own(table, tmp_path, monkeypatch):
    (old,) = plan(build_suite("mine", table), tmp_path).trials
    monkeypatch.setitem(MODELS, "vae", dataclasses.replace(MODELS["vae"], config=GrownVAEConfig))
    table["models"]["vae"]["spread"] = 2.0
    (new,) = plan(build_suite("mine", table), tmp_path).trials
    assert new.folder != old.folder


def test_weights_that_are_missing_stop_a_run_before_it_trains_but_not_its_plan(weightless, tmp_path):
    with pytest.raises(UserError, match=r"^extractor 'inception'[^\n]*--inception-weights[^\n]*$"):
        plan(weightless, tmp_path)
    (line,) = plan(weightless, tmp_path, to_run=False).missing
    assert "--inception-weights" in line


@pytest.mark.parametrize(("most", "measured"), [(10**15, (8, 32)), (0, (2, 2))])
def test_long_steps_are_estimated_on_few_images_in_proportion(most, measured, table, tmp_path, monkeypatch):
    asked = []

    def measure(model, trial, data, steps):
        asked.append((steps, trial.training.batch_size))
        return 0.5

    monkeypatch.setattr(schedule, "MOST_MEASURED", most)
    monkeypatch.setattr(schedule, "seconds_per_step", measure)
    planned = plan(build_suite("mine", table), tmp_path)
    seconds = schedule.estimated_seconds(planned.trials[0], planned.data)
    assert asked == [measured]
    assert seconds == 0.5 * 32 / measured[1] * (32_000 / 32)


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
