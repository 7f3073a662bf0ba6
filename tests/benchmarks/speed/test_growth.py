"""The growth suite: its plan, counted arithmetic, fits and verdicts, and a run that goes on. No clock decides here."""

import csv
import dataclasses
import json

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.cli.parser import run_command
from benchmarks.metrics.extractors import open_extractor
from benchmarks.speed.growth import fit, plan, suite
from benchmarks.speed.growth.point import Measured, measure, measured
from benchmarks.speed.growth.verbs import METRICS, MODELS, TRAINING_PASSES
from benchmarks.speed.spread import Spread
from benchmarks.speed.target import resolve
from benchmarks.training.cost import macs_of, macs_per_image
from models.elbo import importance_weighted

ROUNDING = 1e-9  # of logarithms in float64
SUITE = """
title = "Tiny"
seconds = 0.001

[[curve]]
axis = "batch"
target = "nvae-tiny"
what = ["sample", "iwae"]
values = [1, 2]
draws = 2

[[curve]]
axis = "width"
label = "channels"
target = "nvae-tiny"
set = ["model.channels_encoder={}", "model.channels_decoder={}"]
what = ["reconstruct"]
values = [4, 8]
batch = 2

[[curve]]
axis = "n"
target = "mnist-cnn-v1"
what = ["distance"]
values = [20, 40]
rounds = 1
"""


@pytest.fixture
def growth_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE)
    return path


def spreads(*medians, width=0.0):
    return [Spread(m * (1 - width), m, m * (1 + width), 5) for m in medians]


def test_a_power_is_found_with_its_residual():
    x = [1, 10, 100, 1000]
    exact = fit.fit(x, [3 * value**1.25 for value in x])
    assert exact.exponent == pytest.approx(1.25, abs=ROUNDING)
    assert exact.residual == pytest.approx(0, abs=ROUNDING)
    swaying = fit.fit(x, [1.1, 1 / 1.1, 1 / 1.1, 1.1])
    assert swaying.exponent == pytest.approx(0, abs=ROUNDING)
    assert swaying.residual == pytest.approx(0.1, abs=ROUNDING)


def test_verdicts_hold_time_against_arithmetic():
    x, linear = [10, 100, 1000], [1.0, 10.0, 100.0]
    assert fit.verdict(x, spreads(2, 21, 190), linear) == fit.SAME
    steep = [10 ** (1.3 * step) for step in range(3)]
    assert fit.verdict(x, spreads(*steep), linear) == "worse than its arithmetic: exponent 1.30 against 1.00"
    assert fit.verdict(x, spreads(5, 6, 7), linear).startswith("grows less than its arithmetic: exponent 0.07")
    # slow at first, which hides in the slope of the whole that the last step is quadratic
    late = fit.verdict([1, 10, 100, 1000], spreads(1, 1.1, 1.2, 25), [1.0, 1.0, 1.0, 10.0])
    assert late == "worse than its arithmetic from 100 to 1,000: exponent higher by 0.32"


def test_a_step_counts_only_beyond_the_quartiles():
    x, flat = [1, 2, 4, 8], [1.0] * 4
    seconds = [1.0, 1.0, 1.35, 1.0]
    assert "from 2 to 4" in fit.verdict(x, spreads(*seconds), flat)
    assert fit.verdict(x, spreads(*seconds, width=0.1), flat) == fit.SAME


def test_arithmetic_of_models_is_counted():
    (target,) = resolve("nvae-tiny")
    model = target.build(torch.device("cpu"))
    forward = macs_per_image(model, model.image)
    assert MODELS["train"](model, 1) == TRAINING_PASSES * forward
    assert MODELS["reconstruct"](model, 1) == MODELS["iwae"](model, 1) == forward
    assert 0 < MODELS["sample"](model, 1) < forward
    assert 0 < MODELS["encode"](model, 1) < forward
    three = macs_of(model, model.image, lambda twin, x, draw: importance_weighted(twin, x, draw, 3))
    assert MODELS["iwae"](model, 3) == three < 3 * forward


def test_arithmetic_of_features():
    extractor = open_extractor("mnist-cnn-v1")
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    stages = 28 * 28 * 9 * 16 + 14 * 14 * 9 * 16 * 32 + 7 * 7 * 9 * (32 * 64 + 64 * 128)
    assert METRICS["features"].arithmetic(extractor, images) == stages + 128 * 10
    few, many = (METRICS["distance"].arithmetic(extractor, images[:1].expand(n, -1, -1, -1)) for n in (100, 10**6))
    assert many == pytest.approx(2 * 128**2, rel=0.01)
    assert (few - many) * 100 == pytest.approx((13 + 1 / 3) * 128**3, rel=0.01)
    assert METRICS["scores"].arithmetic(extractor, images) == 11 * 128 * 4


def test_points_say_all_that_a_process_needs(growth_file):
    read = plan.read_growth_suite(str(growth_file))
    points = plan.points(read, plan.Choice(curves=("channels",), threads=2, seconds=3.0))
    assert [point.value for point in points] == [4, 8]
    expected = ["model.channels_encoder=8", "model.channels_decoder=8", "training.batch_size=2"]
    assert points[1].overrides == expected
    assert (points[1].threads, points[1].seconds, points[1].axis, points[1].curve) == (2, 3.0, "width", "channels")
    batches = plan.points(read, plan.Choice(curves=("batch",)))
    assert [point.overrides for point in batches[:2]] == [["training.batch_size=1"], ["training.batch_size=2"]]
    assert {point.draws for point in batches} == {2}
    assert [point.n for point in plan.points(read, plan.Choice(curves=("n",)))] == [20, 40]
    with pytest.raises(UserError, match="did you mean 'batch'"):
        plan.points(read, plan.Choice(curves=("batsh",)))


def test_the_shipped_suite_names_things_that_there_are():
    read = plan.read_growth_suite("growth")
    points = plan.points(read, plan.Choice())
    assert {point.axis for point in points} == {"batch", "side", "groups", "channels", "draws", "n"}
    for point in (point for point in points if point.what in MODELS):
        assert resolve(point.target, [point.row])[0].overridden(point.overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('what = ["sample", "iwae"]', 'what = ["smaple"]'), "did you mean 'sample'"),
        (("values = [1, 2]", "values = [4, 2]"), "two or more that grow"),
        (("values = [4, 8]", "values = [0, 8]"), ">= 1"),
        (('axis = "width"', 'axes = "width"'), "did you mean 'axis'"),
        (('axis = "batch"', 'axis = "depth"'), "an assignment in set with {}"),
        (('what = ["distance"]', 'what = ["distance", "train"]'), "unknown measurement 'train'"),
        (('axis = "batch"', 'axis = "draws"'), "axis 'draws' changes nothing of sample, iwae: batch, side do"),
        (('axis = "n"', 'axis = "side"'), "axis 'side' changes nothing of distance"),
        (("rounds = 1", "batch = 4"), "expected no row, set or batch"),
    ],
)
def test_a_wrong_plan_is_one_line(growth_file, change, message):
    growth_file.write_text(SUITE.replace(*change))
    with pytest.raises(UserError, match=message):
        plan.read_growth_suite(str(growth_file))


def test_a_curve_that_stands_there_twice_needs_a_label(growth_file):
    growth_file.write_text(SUITE + SUITE[SUITE.index("[[curve]]") :])
    with pytest.raises(UserError, match="give one a label"):
        plan.points(plan.read_growth_suite(str(growth_file)), plan.Choice())


def test_the_command_writes_every_file(growth_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "measure", measured)  # in this process
    out = tmp_path / "out"
    assert run_command(["throughput", "--suite", str(growth_file), "--out", str(out), "--models", "batch,n"]) == 0
    assert (out / "growth.md").read_text().startswith("# Tiny")
    assert "| batch | nvae-tiny    | iwae" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "growth.csv").open()))
    assert [(row["curve"], row["what"], row["value"]) for row in rows] == [
        *(("batch", what, value) for what in ("sample", "iwae") for value in ("1", "2")),
        *(("n", "distance", value) for value in ("20", "40")),
    ]
    assert all(float(row["seconds_median"]) > 0 and float(row["macs"]) > 0 for row in rows)
    document = json.loads((out / "growth.json").read_text())
    assert [one["exponent_of_arithmetic"] for one in document["curves"][:2]] == pytest.approx([0, 0], abs=ROUNDING)
    assert (out / "growth.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "2"], "--batch does not go"),
        (["--threads", "1,2"], "expected one number"),
        (["--set", "a=1"], "say it"),
    ],
)
def test_flags_that_mean_nothing_are_refused(growth_file, capsys, flags, message):
    assert run_command(["throughput", "--suite", str(growth_file), *flags]) == 2
    assert message in capsys.readouterr().err


def test_points_are_kept_and_failures_are_tried_again(growth_file, tmp_path):
    read, asked = plan.read_growth_suite(str(growth_file)), []
    choice = plan.Choice(curves=("channels", "n"))

    def fails_first(point):
        asked.append((point.what, point.value))
        if asked.count((point.what, point.value)) == 1 and point.value == 8:
            raise UserError("no room")
        return Measured(Spread(1.0, 1.0, 1.0, 3), 2.0, 2**20, None)

    first = suite.run(read, choice, tmp_path, fails_first)
    assert first.failed == ["channels: reconstruct at width 8: no room"]
    assert "- channels: reconstruct at width 8: no room" in (tmp_path / "growth.md").read_text()
    before = len(asked)
    second = suite.run(read, choice, tmp_path, fails_first)
    assert asked[before:] == [("reconstruct", 8)]
    assert second.failed == []
    assert [row.memory for row in second.table.rows] == [1.0] * len(plan.points(read, choice))
    slower = suite.run(read, dataclasses.replace(choice, seconds=5.0), tmp_path, fails_first)
    assert len(asked) == before + 1 + len(slower.table.rows)  # of other points nothing is kept


def test_a_run_that_is_stopped_keeps_what_it_had(growth_file, tmp_path):
    read, done = plan.read_growth_suite(str(growth_file)), Measured(Spread(1.0, 1.0, 1.0, 3), 2.0, 2**20, None)
    suite.run(read, plan.Choice(curves=("n",)), tmp_path, lambda point: done)

    def stopped(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.run(read, plan.Choice(), tmp_path, stopped)
    kept = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert [row["point"]["curve"] for row in kept] == ["n", "n"]


def test_points_of_another_commit_are_measured_again(growth_file, tmp_path):
    read, asked = plan.read_growth_suite(str(growth_file)), []

    def counted(point):
        asked.append(point)
        return Measured(Spread(1.0, 1.0, 1.0, 3), 2.0, 2**20, None)

    suite.run(read, plan.Choice(curves=("n",)), tmp_path, counted)
    path = tmp_path / "growth.json"
    document = json.loads(path.read_text())
    document["environment"]["commit"] = "another"
    path.write_text(json.dumps(document))
    suite.run(read, plan.Choice(curves=("n",)), tmp_path, counted)
    assert len(asked) == 4


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{}], "environment": {}}', '{"rows": []}'])
def test_a_file_of_something_else_is_one_line(growth_file, tmp_path, text):
    (tmp_path / "growth.json").write_text(text)
    with pytest.raises(UserError, match="move that file away"):
        suite.run(plan.read_growth_suite(str(growth_file)), plan.Choice(), tmp_path, measured)


def test_a_point_is_measured_in_a_process_of_its_own(growth_file):
    (point, _) = plan.points(plan.read_growth_suite(str(growth_file)), plan.Choice(curves=("n",)))
    found = measure(point)
    assert found.seconds.low <= found.seconds.median <= found.seconds.high
    assert found.macs == pytest.approx(METRICS["distance"].arithmetic(open_extractor("mnist-cnn-v1"), torch.zeros(20)))
