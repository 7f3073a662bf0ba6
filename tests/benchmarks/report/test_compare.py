"""Comparing rows: what words name, paired intervals, seeds, corrections, refusals, warnings and forms."""

import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest

from benchmarks.base.errors import UserError
from benchmarks.cli.parser import run_command
from benchmarks.records.record import load_records, save_record
from benchmarks.report.rows import gather
from benchmarks.report.verdict.comparison import as_json, compare, conditions, latex, markdown, text
from benchmarks.report.verdict.contenders import find_row

IMAGES = 400
SHIFT = 0.5  # added to every image of b: tiny against the spread between images, certain when paired
ELSEWHERE = "results/nowhere"


def save_pair(out, make_record, make_value, arrays=None, name="elbo", **fields_of_b):
    """Two rows with an ELBO each; `arrays` are the per-image values of b minus a."""
    rng = np.random.default_rng(0)
    per_image = rng.normal(-100, 20, IMAGES)
    for row, shift in (("a", 0.0), ("b", SHIFT)):
        found = [make_value("elbo", float(per_image.mean()) + shift, 2.0, unit="nats", n=IMAGES)]
        record = make_record(row, 0, found, **(fields_of_b if row == "b" else {}))
        save_record(record, out / row)
        if arrays is not None:
            values = per_image + (arrays if row == "b" else 0.0)
            np.savez(out / row / "per_image.npz", **{name: values})


def save_seeds(out, make_record, make_value, values, metric="sample_fid", **fields):
    """A row for each key of `values`, a record for each of its values."""
    for row, numbers in values.items():
        for seed, number in enumerate(numbers):
            record = make_record(row, seed, [make_value(metric, number, n=1000)], **fields)
            save_record(record, out / f"{row}-{seed}")


def between(out, a="a", b="b"):
    (found,) = compare([a, b], out)
    return {d.column.quantity.metric: d for d in found.found}


def said(out, *words):
    return " ".join(text(compare(words, out)).split())


def test_pairing_sees_a_difference_that_the_spreads_hide(tmp_path, make_record, make_value):
    noise = np.random.default_rng(1).normal(SHIFT, 0.5, IMAGES)
    save_pair(tmp_path, make_record, make_value, noise)
    found = between(tmp_path)["elbo"]
    assert found.basis == "400 test images, paired"
    assert found.better == 1
    assert found.interval.low < noise.mean() < found.interval.high
    error = 0.5 / IMAGES**0.5
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_without_saved_images_both_intervals_count(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value)
    found = between(tmp_path)["elbo"]
    assert found.basis == "both intervals"
    assert found.change == pytest.approx(SHIFT)
    assert found.interval.high - SHIFT == pytest.approx(2**0.5 * 2.0)
    assert found.better is None


def test_arrays_of_different_length_are_not_paired(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, 1.0)
    np.savez(tmp_path / "b" / "per_image.npz", elbo=np.zeros(IMAGES - 1))
    assert between(tmp_path)["elbo"].basis == "both intervals"


def test_influences_of_test_images_are_paired_and_what_else_varies_is_added(tmp_path, make_record, make_value):
    influence = np.random.default_rng(0).normal(0, 10, IMAGES)
    for row, value, shared in (("a", 5.0, 0.0), ("b", 4.0, 0.1)):
        details = {"standard_error": (influence.var(ddof=1) / IMAGES + 0.01) ** 0.5}
        save_record(make_record(row, 0, [make_value("sample_fid", value, n=IMAGES, details=details)]), tmp_path / row)
        np.savez(tmp_path / row / "per_image.npz", sample_fid_influence=influence * (1 + shared))
    found = between(tmp_path)["sample_fid"]
    assert found.change == -1.0
    half = (found.interval.high - found.interval.low) / 2
    assert half == pytest.approx(1.966 * (0.01 * influence.var(ddof=1) / IMAGES + 0.01) ** 0.5, rel=0.05)
    assert found.better == 1


def test_seeds_of_other_models_are_independent(tmp_path, make_record, make_value):
    save_seeds(tmp_path, make_record, make_value, {"a": [6.0, 6.2, 6.4], "b": [4.0, 4.2, 4.4]})
    found = between(tmp_path)["sample_fid"]
    assert found.basis == "3 and 3 seeds"
    assert found.interval.high - found.change == pytest.approx(2.776 * (2 * 0.04 / 3) ** 0.5, rel=1e-3)  # t, 4 degrees
    assert found.better == 1


def test_seeds_of_one_model_are_paired(tmp_path, make_record, make_value):
    save_seeds(tmp_path, make_record, make_value, {"a": [6.0, 7.0, 9.0], "b": [5.9, 6.9, 8.88]}, model="vae")
    found = between(tmp_path)["sample_fid"]
    assert found.basis == "3 seeds, paired"
    assert found.interval.high - found.change == pytest.approx(4.303 * 0.02 / 3, rel=1e-2)  # 2 degrees
    assert found.interval.high < 0


def test_several_seeds_vary_over_images_as_well(tmp_path, make_record, make_value):
    save_seeds(tmp_path, make_record, make_value, {"a": [0.10, 0.11], "b": [0.20, 0.21]}, metric="mse")
    without = between(tmp_path)["mse"].interval
    rng = np.random.default_rng(0)
    for folder in ("a-0", "a-1", "b-0", "b-1"):
        np.savez(tmp_path / folder / "per_image.npz", mse=rng.exponential(1.0, 1000))
    found = between(tmp_path)["mse"]
    assert found.basis == "2 and 2 seeds; 1,000 test images, paired"
    assert found.interval.high - found.interval.low > 1.2 * (without.high - without.low)


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
    assert (found.change, found.p, found.better) == (0, 1.0, None)


def test_what_is_judged_is_corrected_for_its_number(tmp_path, make_record, make_value):
    """Holm: the smallest p of m is taken m times, and none falls below one before it."""
    halves = {"mse": 1.2, "psnr": 0.9, "elbo": 5.0}
    for row, shift in (("a", 0.0), ("b", 1.0)):
        found = [make_value(metric, 2 + shift, half) for metric, half in halves.items()]
        save_record(make_record(row, 0, found), tmp_path / row)
    alone = {}
    for metric, half in halves.items():
        for row, shift in (("a", 0.0), ("b", 1.0)):
            save_record(make_record(row, 0, [make_value(metric, 2 + shift, half)]), tmp_path / metric / row)
        alone[metric] = between(tmp_path / metric)[metric].p
    together = {metric: d.p for metric, d in between(tmp_path).items() if metric in alone}
    assert together["psnr"] == pytest.approx(3 * alone["psnr"])
    assert together["mse"] == pytest.approx(max(2 * alone["mse"], together["psnr"]))
    assert together["elbo"] == pytest.approx(max(alone["elbo"], together["mse"]))


def test_the_verdict_is_one_sentence(run_folder):
    found = compare(["vae", "nvae"], run_folder)[0].verdict
    assert found.startswith("NVAE is better than VAE on 4 of 4 metrics (ELBO, IWAE, MSE, PSNR); 4.2x slower to train")
    assert found.endswith(", at equal images.")
    swapped = compare(["nvae", "vae"], run_folder)[0].verdict
    assert swapped == found


def test_the_verdict_names_what_is_worse_and_undecided(tmp_path, make_record, make_value):
    for row, elbo, mse, seen in (("a", -100.0, 0.01, 100), ("b", -90.0, 0.02, 200)):
        found = [make_value("elbo", elbo, 1.0), make_value("mse", mse, 0.001), make_value("psnr", 20.0, 1.0)]
        save_record(make_record(row, 0, found, images_seen=seen, training_seconds=seen / 10), tmp_path / row)
    found = compare(["a", "b"], tmp_path)[0].verdict
    assert "B is better than A on 1 of 3 metrics (ELBO), worse on 1 (MSE), undecided on 1 (PSNR)" in found
    assert "as fast to train" in found
    assert "at equal" not in found


def test_bits_per_dim_are_not_counted_beside_the_elbo(tmp_path, make_record, make_value):
    for row, elbo in (("a", -100.0), ("b", -90.0)):
        found = [make_value("elbo", elbo, 1.0), make_value("bits_per_dim", -elbo / 100, 0.01)]
        save_record(make_record(row, 0, found), tmp_path / row)
    assert "on 1 of 1 metrics (ELBO)" in compare(["a", "b"], tmp_path)[0].verdict


def test_rows_of_other_beta_are_not_judged(tmp_path, make_record, make_value):
    for row, beta in (("a", 1.0), ("b", 4.0)):
        record = make_record(row, 0, [make_value("mse", beta, 0.1)], config={"objective": {"beta": beta}})
        save_record(record, tmp_path / row)
    assert not between(tmp_path)["mse"].judged
    assert "No metric of B and A can be judged" in compare(["a", "b"], tmp_path)[0].verdict


def test_lower_is_better_for_errors(run_folder):
    line = next(line for line in text(compare(["vae", "nvae"], run_folder)).splitlines() if "| MSE" in line)
    assert "0.01480" in line
    assert "-0.00500" in line
    assert "NVAE better" in line


def test_a_missing_value_is_a_note_with_its_reason(run_folder):
    found = text(compare(["ae", "nvae"], run_folder))
    assert "| ELBO" not in found
    assert re.search(r"^- AE: no prior \(ELBO, ", found, re.M)


def test_a_missing_value_without_a_reason_is_named(tmp_path, make_record, make_value):
    both = make_value("elbo", -90.0, 1.0)
    save_record(make_record("a", 0, [both, make_value("mse", 0.1, 0.01)]), tmp_path / "a")
    save_record(make_record("b", 0, [both]), tmp_path / "b")
    assert "- no value of B (MSE)" in text(compare(["a", "b"], tmp_path))


def test_what_intervals_rest_on_is_said_once(tmp_path, make_record, make_value):
    values = [make_value("elbo", -90.0, 1.0), make_value("mse", 0.1, 0.01)]
    for row in ("a", "b", "c"):
        save_record(make_record(row, 0, values), tmp_path / row)
    found = text(compare(["a", "b", "c"], tmp_path))
    assert found.count("- basis of the interval: both intervals (ELBO, MSE)") == 2  # comparisons
    assert found.count("corrected for the 4 differences") == 1
    assert found.rstrip().endswith("Intervals are of 95 % each.")


def test_values_without_an_interval_are_not_judged(run_folder):
    found = between(run_folder, "vae", "nvae")["sample_fid"]
    assert not found.judged
    assert "no interval" in found.note
    assert "no interval: one seed, measured before there were any (FID, rFID)" in said(run_folder, "vae", "nvae")


def test_the_spread_over_subsets_of_one_set_of_samples_decides_nothing(tmp_path, make_record, make_value):
    for row, value in (("a", 0.1), ("b", 0.9)):
        spread = {"low": value - 0.01, "high": value + 0.01, "spread_kind": "std over subsets"}
        save_record(make_record(row, 0, [make_value("kid", value, **spread)]), tmp_path / row)
    assert between(tmp_path)["kid"].interval is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 500}, "measured on 1,000 and 500 images"),
        ({"details": {"reference_split": "train"}}, "reference_split of the measurement differ"),
    ],
)
def test_values_of_another_kind_are_not_compared(tmp_path, make_record, make_value, changes, reason):
    for row, more in (("a", {}), ("b", changes)):
        one = make_value("sample_fid", 3.0, 0.1, **({"n": 1000, "details": {"reference_split": "test"}} | more))
        save_record(make_record(row, 0, [one]), tmp_path / row)
    found = between(tmp_path)["sample_fid"]
    assert (found.judged, found.interval) == (False, None)
    assert reason in found.note


def test_samples_of_another_temperature_are_not_compared(tmp_path, make_record, make_value):
    for row, heat in (("a", 1.0), ("b", 0.7)):
        values = [make_value("mse", heat, 0.1)]
        for name, more in (("sample_fid", {}), ("reconstruction_fid", {"pairing": "with their own originals"})):
            values.append(make_value(name, heat, 0.1, details={"extractor": "tiny"} | more))
        record = make_record(row, 0, values, config={"evaluation": {"temperature": heat}})
        save_record(record, tmp_path / row)
    found = between(tmp_path)
    assert "samples at temperature 1 and 0.7" in found["sample_fid"].note
    assert found["mse"].judged
    assert found["reconstruction_fid"].judged


def test_times_of_another_machine_are_not_compared(run_folder, make_record):
    environment = dataclasses.replace(make_record().environment, threads=4)
    record = dataclasses.replace(load_records(run_folder)[1], environment=environment, row="wide", label="wide")
    save_record(record, run_folder / "wide")
    (run_folder / "run.json").unlink()
    found = between(run_folder, "nvae", "wide")
    assert found["train_throughput"].note == "not compared: threads of the rows differ"
    assert "to train" not in compare(["nvae", "wide"], run_folder)[0].verdict


def test_an_unknown_row_is_answered_with_the_nearest(run_folder):
    with pytest.raises(UserError, match="unknown row 'nvea'; did you mean 'nvae'"):
        compare(["nvea", "ae"], run_folder)


def test_labels_find_rows_too(run_folder):
    assert find_row(gather(load_records(run_folder)), "residual vae").name == "residual"


def test_an_ambiguous_name_lists_the_labels(tmp_path, make_record):
    save_record(make_record("vae"), tmp_path / "one")
    save_record(make_record("vae", config={"width": 8}, config_hash="c0ffee00"), tmp_path / "two")
    with pytest.raises(UserError, match=r"'VAE \(c0ffee\)'"):
        compare(["vae", "vae"], tmp_path)
    assert "VAE (c0ffee)" in said(tmp_path, "vae (c0ffee)", "VAE (vae-0-)")


def test_rows_on_different_data_are_refused(tmp_path, make_record, make_value):
    save_pair(tmp_path, make_record, make_value, data_hash="ee" * 32)
    with pytest.raises(UserError, match="expected rows on the same data"):
        compare(["a", "b"], tmp_path)


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
def test_differences_of_the_environment_are_warned_of_first(tmp_path, make_record, make_value, field, value):
    environment = dataclasses.replace(make_record().environment, **{field: value})
    save_pair(tmp_path, make_record, make_value, environment=environment)
    found = text(compare(["a", "b"], tmp_path))
    warning = f"warning: {field} differs: A {getattr(make_record().environment, field)}, B {value}"
    assert 0 < found.index(warning) < found.index("| Metric")
    assert found.count("warning") == 1


def test_equal_environments_are_not_warned_of(run_folder):
    assert "warning" not in text(compare(["vae", "nvae"], run_folder))


def test_rows_of_other_runs_records_and_runs_are_named_by_their_paths(run_folder):
    trial = next(run_folder.glob("nvae*"))
    for words in (["vae", "nvae"], [f"{run_folder}/vae", str(trial)], [f"{run_folder}/VAE", f"x={run_folder}/nvae"]):
        (found,) = compare(words, run_folder if "/" not in words[0] else run_folder / ELSEWHERE)
        assert [one.row.name for one in found.pair] == ["vae", "nvae"]


def test_two_runs_are_compared_row_by_row(run_folder):
    found = compare([str(run_folder), f"new={run_folder}"], run_folder)
    assert [[one.row.name for one in comparison.pair] for comparison in found] == [
        [name, name] for name in ("ae", "vae", "residual", "nvae")
    ]
    assert {d.better for comparison in found for d in comparison.found} == {None}
    assert conditions(["new.nvae.fid > base.nvae.fid"], found) == {"new.nvae.fid > base.nvae.fid": False}
    assert text(found).startswith("- AE ")  # the verdicts together


def test_one_run_is_compared_with_its_first_row(run_folder):
    found = compare([str(run_folder)], run_folder)
    assert [comparison.pair[1].row.name for comparison in found] == ["vae", "residual", "nvae"]
    assert {comparison.pair[0].row.name for comparison in found} == {"ae"}


def test_a_commit_holds_runs_too(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    record = next(record for record in load_records(run_folder) if record.row == "nvae")
    save_record(dataclasses.replace(record, measurements=record.measurements[3:]), run_folder / record.config_hash)
    (found,) = compare(["HEAD:./nvae", f"{run_folder}/nvae"], run_folder)
    named = {d.column.quantity.metric: d for d in found.found}
    assert (named["elbo"].a, named["elbo"].b) == (-101.1, None)
    with pytest.raises(UserError, match="expected a commit and a path in it, got 'nope:run'"):
        compare(["nope:run", "nvae"], run_folder)


def test_words_that_name_too_little_are_one_line(run_folder):
    with pytest.raises(UserError, match="expected two rows or more, got nvae"):
        compare(["nvae"], run_folder)
    with pytest.raises(UserError, match="there is no run in"):
        compare(["nvae", "vae"], run_folder / "empty")


def test_json_holds_numbers_and_conditions(run_folder):
    found = compare(["vae", "nvae"], run_folder)
    read = json.loads(as_json(found, {"nvae.fid > 1": True}))
    elbo = next(one for one in read["comparisons"][0]["metrics"] if one["metric"] == "elbo")
    assert (elbo["base"], elbo["other"], elbo["better"]) == (-107.8, -101.1, "other")
    assert elbo["low"] < elbo["difference"] < elbo["high"]
    assert read["conditions"] == [{"condition": "nvae.fid > 1", "holds": True}]


def test_latex_has_the_rules_of_booktabs_and_no_bare_signs(run_folder):
    made = latex(compare(["vae", "residual"], run_folder))
    assert all(made.count(rule) == 1 for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"ELBO $\uparrow$ (nats)" in made
    assert r"95 \% interval" in made
    assert r"& $-$107.8 & $-$112.2 & $-$4.4 &" in made
    assert "VAE is better than Residual VAE" in made.splitlines()[1]


def test_markdown_is_not_broken_into_lines(run_folder):
    made = markdown(compare(["vae", "nvae"], run_folder))
    assert compare(["vae", "nvae"], run_folder)[0].verdict in made.splitlines()


@pytest.mark.parametrize(("condition", "code"), [("nvae.fid > 1.05 * base.fid", 0), ("nvae.fid < base.fid", 1)])
def test_a_condition_that_holds_is_exit_code_1(run_folder, capsys, condition, code):
    assert run_command(["compare", "vae", "nvae", "--out", str(run_folder), "--fail-if", condition]) == code
    assert (f"--fail-if holds: {condition}" in capsys.readouterr().err) == bool(code)


def test_a_condition_that_is_none_is_exit_code_2(run_folder, capsys):
    assert run_command(["compare", "vae", "nvae", "--out", str(run_folder), "--fail-if", "nvea.fid > 1"]) == 2
    assert "unknown row of --fail-if 'nvea'; did you mean 'nvae'?" in capsys.readouterr().err
