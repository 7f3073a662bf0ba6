"""Suites are read strictly, resolved completely and survive a round trip."""

import dataclasses

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import (
    Suite,
    build_suite,
    read_suite,
    set_path,
    suite_names,
    to_dict,
    trial_from_dict,
    with_overrides,
)
from benchmarks.training import cost
from benchmarks.training.cost import macs_per_image, parameter_count
from models.fields import added_later, named_fields
from models.output import ImageShape
from models.registry import MODELS


def suite(*assignments, name="quick", rows=None):
    name, table = read_suite(name)
    for assignment in assignments:
        set_path(table, assignment)
    return build_suite(name, table, rows)


@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_reads_and_round_trips(name):
    read = suite(name=name)
    assert isinstance(read, Suite)
    for trial in read.trials:
        assert trial_from_dict(to_dict(trial)) == trial


def test_quick_holds_the_five_models_in_order():
    assert [trial.row for trial in suite().trials] == ["ae", "vae", "residual-vae", "nvae", "vdvae"]


def test_rows_of_one_table_share_likelihood_data_and_images():
    for name in suite_names():
        trials = [trial for trial in suite(name=name).trials if MODELS[trial.model].model.has_prior]
        assert len({trial.likelihood_spec for trial in trials}) == 1
        assert len({trial.data for trial in trials}) == 1
        assert len({(trial.training.images, trial.training.epochs) for trial in trials}) == 1


def test_the_ablation_changes_one_part_of_nvae_a_row():
    """Widths follow where a part changes the size; everything else is the first row's."""
    first, *others = (as_fields(trial) for trial in suite(name="ablation").trials)
    widths = {"channels_encoder", "channels_decoder", "channel_cap"}
    changed = [{key for key in row if row[key] != first[key]} - widths for row in others]
    assert len(others) == 12
    assert all(len(parts) == 1 for parts in changed), changed


def test_the_ablation_is_at_equal_compute_or_equal_parameters():
    """Cells at equal multiply-accumulates, latent groups at equal parameters: within 3 %."""
    shape = ImageShape(1, 28, 28)
    models = {c.row: build_model(c, shape, torch.device("cpu")) for c in suite(name="ablation").trials}
    macs = {row: macs_per_image(model, shape) for row, model in models.items() if "groups" not in row}
    counts = {row: parameter_count(model) for row, model in models.items() if "depthwise" not in row}
    assert {row: n / macs["nvae"] for row, n in macs.items()} == pytest.approx(dict.fromkeys(macs, 1), rel=0.03)
    assert {row: n / counts["nvae"] for row, n in counts.items()} == pytest.approx(dict.fromkeys(counts, 1), rel=0.03)


def test_the_rows_of_rate_distortion_differ_in_beta_within_an_architecture():
    trials = suite(name="rate-distortion").trials
    betas = {}
    for trial in trials:
        betas.setdefault((trial.model, trial.model_config), []).append(trial.objective.beta)
    assert len(trials) <= 20
    assert {len(found) for found in betas.values()} == {2, 3, 5}
    assert all(len(set(found)) == len(found) for found in betas.values())
    assert len({(trial.training.images, trial.data, trial.training.batch_size) for trial in trials}) == 1
    assert trials[0].training.images == suite().trials[0].training.images


def as_fields(trial):
    """Model, training and objective of a trial as one flat table."""
    return {f.name: getattr(part, f.name) for part in _parts(trial) for f in dataclasses.fields(part)}


def _parts(trial):
    return trial.model_config, trial.training, trial.objective


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("training.lerning_rate=1e-3", "did you mean 'learning_rate'"),
        ("models.nvae.latent_chanels=4", "did you mean 'latent_channels'"),
        ("objective.free_bits=1", "free_nats"),
        ("tilte='x'", "did you mean 'title'"),
        ("evaluation.iwae_sample=3", "did you mean 'iwae_samples'"),
        ("likelihood.name='bernouli'", "did you mean 'bernoulli'"),
        ("models.nvae.name='nvea'", "did you mean 'nvae'"),
        ("training.optimizer='adamz'", "adam"),
        ("training.compile='onn'", "did you mean 'on'"),
        ("models.vae.hiden=[512]", "did you mean 'hidden'"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(assignment, hint):
    with pytest.raises(UserError, match=hint):
        suite(assignment)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.batch_size='many'", "expected int, got 'many'"),
        ("training.batch_size=0", "batch_size: expected a value >= 1"),
        ("training.warmup=1.5", "warmup: expected a value >= 0 and <= 1, got 1.5"),
        ("training={cpu_seconds=3, seconds=3}", "cpu_seconds: expected without training.seconds"),
        ("training.cpu_seconds=0", "cpu_seconds: expected a value > 0"),
        ("training.batch_size=true", "expected int"),
        ("objective.beta=-1", "beta"),
        ("evaluation.iwae_samples=0", "iwae_samples"),
        ("seeds=0", "seeds"),
        ("likelihood={}", "expected a .likelihood. table"),
        ("models={}", "at least one"),
        ("models.vae=3", "expected a table"),
        ("models.vae.hidden=[512, 0]", "hidden: expected a value >= 1"),
        ("models.vae.hidden=512", "expected tuple"),
        ("models.nvae.groups_fine_to_coarse=[2,'a']", "expected int"),
    ],
)
def test_wrong_values_say_what_was_expected(assignment, expected):
    with pytest.raises(UserError, match=expected):
        suite(assignment)


def test_errors_are_one_line():
    with pytest.raises(UserError) as caught:
        suite("training.lerning_rate=1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("assignment", ["training", "=3", "training..x=1", "training.batch_size.deeper=1"])
def test_malformed_assignments_are_refused(assignment):
    with pytest.raises(UserError, match="--set"):
        suite(assignment)


def test_unknown_suite_and_row():
    with pytest.raises(UserError, match="did you mean 'quick'"):
        read_suite("quik")
    with pytest.raises(UserError, match="did you mean 'nvae'"):
        suite(rows=["nvea"])


def test_broken_toml_is_one_error(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("data = [")
    with pytest.raises(UserError, match="expected TOML"):
        read_suite(str(path))
    with pytest.raises(UserError, match="cannot read suite"):
        read_suite(str(tmp_path / "absent.toml"))


def test_row_tables_override_the_suite():
    trials = {c.row: c for c in suite("models.vae.training.learning_rate=0.123").trials}
    assert trials["vae"].training.learning_rate == 0.123
    assert trials["ae"].training.learning_rate != 0.123
    assert trials["vae"].training.images == trials["ae"].training.images


def test_precision_compilation_and_hidden_layers_are_part_of_the_identity():
    trial = suite(rows=["vae"]).trials[0]
    assert (trial.training.precision, trial.training.compile, trial.model_config.hidden) == ("float32", "off", ())
    changes = ["training.precision='bfloat16'", "training.compile='on'", "models.vae.hidden=[512]"]
    trials = [trial, *(suite(change, rows=["vae"]).trials[0] for change in changes)]
    assert len({one.identity("data", "torch 1") for one in trials}) == len(trials)
    assert all(trial_from_dict(to_dict(one)) == one for one in trials)


def test_identity_depends_on_everything_that_changes_a_number():
    trial = suite().trials[-1]
    base = trial.identity("data", "torch 1")
    changed = [
        dataclasses.replace(trial, seed=1).identity("data", "torch 1"),
        dataclasses.replace(trial, threads=2).identity("data", "torch 1"),
        dataclasses.replace(trial, training=dataclasses.replace(trial.training, images=64)).identity("data", "torch 1"),
        trial.identity("other data", "torch 1"),
        trial.identity("data", "torch 2"),
    ]
    assert trial.identity("data", "torch 1") == base
    assert len({base, *changed}) == len(changed) + 1


def test_overrides_reach_every_trial():
    new = with_overrides(suite(), device="cpu", threads=3, training={"epochs": 2.0})
    assert {(c.threads, c.training.epochs) for c in new.trials} == {(3, 2.0)}


def test_seeds_make_trials():
    assert [c.seed for c in suite("seeds=3", rows=["vae"]).trials] == [0, 1, 2]


@dataclasses.dataclass(frozen=True)
class Before:
    """A model's configuration when its first runs were named."""

    width: int = 4


@dataclasses.dataclass(frozen=True)
class Skip:
    """A table that came later."""

    threshold: float = 400.0


@dataclasses.dataclass(frozen=True)
class After:
    """The same configuration with two more fields."""

    width: int = 4
    gelu: bool = added_later(False)
    skip: Skip = added_later(Skip())


def named_by(config):
    trial = dataclasses.replace(suite(rows=["vae"]).trials[0], model_config=config)
    return trial.identity("data", "torch 1")


@pytest.mark.parametrize("width", [4, 5])
def test_a_field_added_later_leaves_the_names_of_older_runs_alone(width):
    assert named_by(After(width)) == named_by(Before(width))


@pytest.mark.parametrize("changed", [After(gelu=True), After(skip=Skip(200.0)), After(width=5)])
def test_a_field_added_later_counts_once_it_is_set(changed):
    assert named_by(changed) != named_by(After())
    assert named_by(changed) != named_by(Before())


def test_a_field_of_the_first_day_counts_even_at_its_default():
    config = dataclasses.make_dataclass("Grown", [("width", int, 4), ("gelu", bool, False)], frozen=True)()
    assert named_by(config) != named_by(Before())


def test_fields_of_any_depth_are_added_later():
    inner = dataclasses.make_dataclass("Inner", [("size", int, 1), ("new", int, added_later(0))], frozen=True)
    outer = dataclasses.make_dataclass("Outer", [("rows", tuple, ())], frozen=True)
    assert named_fields(outer((inner(), inner(2, 3)))) == {"rows": [{"size": 1}, {"size": 2, "new": 3}]}


def test_a_stored_config_without_a_later_field_reads_at_its_default(monkeypatch):
    monkeypatch.setitem(MODELS, "vae", dataclasses.replace(MODELS["vae"], config=Before))
    old = suite("models.vae={name='vae'}", rows=["vae"]).trials[0]
    monkeypatch.setitem(MODELS, "vae", dataclasses.replace(MODELS["vae"], config=After))
    read = trial_from_dict(to_dict(old))
    assert read.model_config == After()
    assert read.identity("data", "torch 1") == old.identity("data", "torch 1")
    assert to_dict(read)["model_config"] == {"width": 4, "gelu": False, "skip": {"threshold": 400.0}}


@pytest.mark.parametrize("name", ["quick"])
def test_multiply_accumulates_do_not_depend_on_where_they_are_counted(name, monkeypatch):
    shape, found = ImageShape(1, 28, 28), []
    models = [build_model(c, shape, torch.device("cpu")) for c in suite(name=name).trials]
    for most_on_cpu in (cost.SMALL, 0):
        monkeypatch.setattr(cost, "SMALL", most_on_cpu)
        found.append([cost.macs_per_image(model, shape) for model in models])
    assert found[0] == found[1]
    assert all(count > 10**6 for count in found[0])
