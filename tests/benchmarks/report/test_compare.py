"""Comparing two rows: paired intervals, spreads, refusals and warnings."""

import dataclasses

import numpy as np
import pytest

from benchmarks.base.errors import UserError
from benchmarks.records.record import load_trials, save_record
from benchmarks.report.compare import PAIRED, SPREADS, compare, differences, find_row

IMAGES = 400
SHIFT = 0.5  # added to every image of b: tiny against the spread between images, certain when paired


def save_pair(out, make_record, make_value, arrays=None, **fields_of_b):
    """Two rows with an ELBO each; `arrays` are the per-image values of b minus a."""
    rng = np.random.default_rng(0)
    per_image = rng.normal(-100, 20, IMAGES)
    for row, shift in (("a", 0.0), ("b", SHIFT)):
        found = [make_value("elbo", float(per_image.mean()) + shift, 2.0, unit="nats", n=IMAGES)]
        record = make_record(row, 0, found, **(fields_of_b if row == "b" else {}))
        save_record(record, out / row)
        if arrays is not None:
            values = per_image + (arrays if row == "b" else 0.0)
            np.savez(out / row / "per_image.npz", elbo=values)


def between(out, a="a", b="b"):
    trials = load_trials(out)
    found = differences(find_row(trials.values(), a), find_row(trials.values(), b), trials)
    return {d.column.quantity.metric: d for d in found}


def test_pairing_sees_a_difference_that_the_spreads_hide(tmp_path, make_record, make_value):
    noise = np.random.default_rng(1).normal(SHIFT, 0.5, IMAGES)
    save_pair(tmp_path, make_record, make_value, noise)
    found = between(tmp_path)["elbo"]
    assert found.basis == PAIRED
    assert found.beyond
    assert found.interval.low < noise.mean() < found.interval.high
    assert found.interval.high - found.interval.low < 0.2  # 2 * 1.96 * 0.5 / sqrt(400) = 0.1


def test_without_saved_images_the_spreads_are_added(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value)
    found = between(tmp_path)["elbo"]
    assert found.basis == SPREADS
    assert found.change == pytest.approx(SHIFT)
    assert (found.interval.low, found.interval.high) == (pytest.approx(SHIFT - 4.0), pytest.approx(SHIFT + 4.0))
    assert not found.beyond


def test_arrays_of_different_length_are_not_paired(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, 1.0)
    np.savez(tmp_path / "b" / "per_image.npz", elbo=np.zeros(IMAGES - 1))
    assert between(tmp_path)["elbo"].basis == SPREADS


def test_several_seeds_use_the_spread_over_seeds(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, 1.0)
    save_record(make_record("b", 1, [make_value("elbo", -90.0, 2.0, unit="nats")]), tmp_path / "b-1")
    assert between(tmp_path)["elbo"].basis == SPREADS


def test_swapping_the_rows_turns_the_sign(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, np.linspace(0, 1, IMAGES))
    one, other = between(tmp_path)["elbo"], between(tmp_path, "b", "a")["elbo"]
    assert one.change == -other.change
    assert (one.interval.low, one.interval.high) == (
        pytest.approx(-other.interval.high),
        pytest.approx(-other.interval.low),
    )


def test_a_row_against_itself_differs_by_nothing(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, 1.0)
    found = between(tmp_path, "a", "a")["elbo"]
    assert found.change == 0
    assert not found.beyond


def test_the_text_says_which_row_is_better(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, np.full(IMAGES, SHIFT))
    assert "B better, beyond the spread" in compare(tmp_path, "a", "b")
    assert "B better, beyond the spread" in compare(tmp_path, "B", "A")


def test_lower_is_better_for_errors(run_folder):
    line = next(line for line in compare(run_folder, "vae", "nvae").splitlines() if "MSE" in line)
    assert "0.01480" in line
    assert "-0.00500" in line
    assert "NVAE better" in line


def test_a_missing_value_is_a_dash_with_its_reason(run_folder):
    text = compare(run_folder, "ae", "nvae")
    line = next(line for line in text.splitlines() if "ELBO" in line)
    assert line.split("|")[2].strip() == "-"
    assert line.split("|")[4].strip() == "-"
    assert "- AE: no prior" in text


def test_values_without_an_interval_are_not_judged(run_folder):
    line = next(line for line in compare(run_folder, "vae", "nvae").splitlines() if "| FID" in line)
    assert "no interval" in line


def test_an_unknown_row_is_answered_with_the_nearest(run_folder):
    with pytest.raises(UserError, match="unknown row 'nvea'; did you mean 'nvae'"):
        compare(run_folder, "nvea", "ae")


def test_labels_find_rows_too(run_folder):
    assert find_row(load_trials(run_folder).values(), "residual vae").name == "residual"


def test_an_ambiguous_name_lists_the_labels(tmp_path, make_record):
    save_record(make_record("vae"), tmp_path / "one")
    save_record(make_record("vae", config={"width": 8}, config_hash="c0ffee00"), tmp_path / "two")
    with pytest.raises(UserError, match=r"'VAE \(c0ffee\)'"):
        compare(tmp_path, "vae", "vae")
    assert "VAE (c0ffee)" in compare(tmp_path, "VAE (c0ffee)", "VAE (vae-0-)")


def test_rows_on_different_data_are_refused(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, data_hash="ee" * 32)
    with pytest.raises(UserError, match="expected two rows on the same data"):
        compare(tmp_path, "a", "b")


def test_different_likelihoods_are_refused_for_the_likelihood_alone(tmp_path, make_record, make_value):
    for row, name in (("a", "bernoulli"), ("b", "gaussian")):
        details = {"likelihood": name}
        found = [make_value("elbo", -90.0, 1.0, details=details), make_value("mse", 0.1, 0.01)]
        save_record(make_record(row, 0, found), tmp_path / row)
    found = between(tmp_path)
    assert found["elbo"].change is None
    assert found["elbo"].note == "likelihoods differ, so values do not compare (A: bernoulli; B: gaussian)"
    assert found["mse"].change == 0.0


@pytest.mark.parametrize(
    ("field", "value"), [("torch", "2.9.0"), ("threads", 4), ("device", "cuda"), ("precision", "bfloat16")]
)
def test_differences_of_the_environment_are_warned_of(tmp_path, make_record, make_value, field, value):
    environment = dataclasses.replace(make_record().environment, **{field: value})
    save_pair(tmp_path, make_record, make_value, environment=environment)
    text = compare(tmp_path, "a", "b")
    assert f"warning: {field} differs: A {getattr(make_record().environment, field)}, B {value}" in text
    assert text.count("warning") == 1


def test_equal_environments_are_not_warned_of(run_folder):
    assert "warning" not in compare(run_folder, "vae", "nvae")


def test_the_spread_over_subsets_of_one_set_of_samples_decides_nothing(tmp_path, make_record, make_value):
    for row, value in (("a", 0.1), ("b", 0.9)):
        spread = {"low": value - 0.01, "high": value + 0.01, "spread_kind": "std over subsets"}
        save_record(make_record(row, 0, [make_value("kid", value, **spread)]), tmp_path / row)
    assert between(tmp_path)["kid"].interval is None
