"""Figures: which panels there are and what they hold, drawn without pyplot."""

import dataclasses
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from benchmarks.records.record import Curve, LatentGroupInfo, load_record, load_trials, save_record
from benchmarks.report.pictures import charts, figures, saved
from benchmarks.report.rows import gather
from benchmarks.suites.config import build_suite, read_suite, to_dict


def texts(figure):
    """All titles and axis labels of a figure."""
    return [text for axis in figure.axes for text in (axis.get_title(), axis.get_xlabel(), axis.get_ylabel())]


def test_a_grid_holds_every_image_at_its_place():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    picture = figures.tiled(images, columns=3, rows=2)
    assert picture.shape == (5, 11, 1)
    for index in range(6):
        top, left = 3 * (index // 3), 4 * (index % 3)
        assert (picture[top : top + 2, left : left + 3] == index).all()
    assert (picture[2] == 255).all()


def test_a_grid_of_too_few_images_is_white_where_they_lack():
    assert (figures.tiled(np.zeros((1, 2, 2, 3), np.uint8), columns=2, rows=1)[:, 3:] == 255).all()


def test_reconstructions_show_the_originals_once_and_every_model(run_folder):
    trials = load_trials(run_folder)
    shown = saved.images_by_label(gather(trials.values()), trials)
    figure = figures.reconstructions(shown)
    assert [axis.get_ylabel() for axis in figure.axes] == ["Originals", "AE", "VAE", "Residual VAE", "NVAE"]


def test_images_are_found_where_an_older_record_lacks_a_field(run_folder):
    """Its configuration is completed, so that the row holds a copy of the record."""
    (run_folder / "run.json").unlink()  # it lists no other folder
    first = next(run_folder.glob("vae-*"))
    record = load_record(first)
    config = to_dict(build_suite(*read_suite("quick"), ["vae"]).trials[0])
    older = {**config, "training": {key: value for key, value in config["training"].items() if key != "back_offs"}}
    for folder, seed, kept in ((first, 0, older), (run_folder / "again", 1, config)):
        save_record(dataclasses.replace(record, seed=seed, config=kept), folder)
    trials = load_trials(run_folder)
    (row,) = (row for row in gather(trials.values()) if row.name == "vae")
    assert all(record not in row.records for record in trials.values() if record.config == older)
    assert saved.images_by_label([row], trials)["VAE"].seed == 0


def test_originals_are_repeated_for_a_model_that_saw_others(run_folder):
    trials = load_trials(run_folder)
    shown = saved.images_by_label(gather(trials.values()), trials)
    shown["NVAE"] = dataclasses.replace(shown["NVAE"], originals=shown["NVAE"].originals[::-1].copy())
    labels = [axis.get_ylabel() for axis in figures.reconstructions(shown).axes]
    assert labels == ["Originals", "AE", "VAE", "Residual VAE", "Originals", "NVAE"]


def test_samples_leave_out_models_without_a_prior(run_folder):
    trials = load_trials(run_folder)
    figure = figures.samples(saved.images_by_label(gather(trials.values()), trials))
    assert [axis.get_title() for axis in figure.axes] == ["Real test images", "VAE", "Residual VAE", "NVAE"]


def test_samples_with_prior_statistics_have_a_figure_where_there_are_any(run_folder):
    trials = load_trials(run_folder)
    shown = saved.images_by_label(gather(trials.values()), trials)
    assert figures.samples_prior_statistics(shown) is None
    shown["NVAE"] = dataclasses.replace(shown["NVAE"], samples_prior_statistics=shown["NVAE"].samples)
    figure = figures.samples_prior_statistics(shown)
    assert [axis.get_title() for axis in figure.axes] == ["Real test images", "NVAE"]


def test_no_samples_no_figure(run_folder):
    trials = {folder: record for folder, record in load_trials(run_folder).items() if record.row == "ae"}
    assert figures.samples(saved.images_by_label(gather(trials.values()), trials)) is None


def test_colour_images_keep_their_colours(tmp_path):
    red = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    figures.save(figures.reconstructions({"VAE": figures.SavedImages(red, red, None)}), tmp_path / "red.png")
    pixels = matplotlib.image.imread(tmp_path / "red.png")[..., :3].reshape(-1, 3)
    assert (pixels == (1.0, 0.0, 0.0)).all(axis=1).mean() > 0.05


def test_curves_under_different_likelihoods_have_panels_of_their_own(suite_records):
    figure = charts.training_curves(gather(suite_records))
    assert [(axis.get_title(), axis.get_ylabel(), len(axis.lines)) for axis in figure.axes] == [
        ("Likelihood: gaussian", "Loss (nats/image)", 1),
        ("Likelihood: gaussian", "Validation -distortion (nats/image)", 1),
        ("Likelihood: bernoulli", "Loss (nats/image)", 3),
        ("Likelihood: bernoulli", "Validation ELBO (nats/image)", 3),
    ]


def test_a_curve_with_lost_values_is_drawn_without_them(make_record):
    curve = Curve("loss", "nats/image", [1.0, 2.0, 3.0], [5.0, None, 4.0])  # type: ignore[list-item]
    figure = charts.training_curves(gather([make_record(curves=[curve])]))
    assert list(figure.axes[0].lines[0].get_xdata()) == [1.0, 3.0]


def test_bars_are_the_rates_with_their_resolution(suite_records):
    panels = {axis.get_title(): axis for axis in charts.rates_by_group(gather(suite_records)).axes}
    assert set(panels) == {"VAE", "Residual VAE", "NVAE"}
    assert [bar.get_height() for bar in panels["NVAE"].patches] == [2.1, 6.5, 11.0, 9.0]
    assert [tick.get_text() for tick in panels["NVAE"].get_xticklabels()] == ["2×2", "4×4", "8×8", "8×8"]


def test_a_collapsed_group_is_named_so(make_record):
    figure = charts.rates_by_group(gather([make_record(latent_groups=[LatentGroupInfo(4, 1, 1, 0.001)])]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["collapsed"]


def test_quality_against_speed_has_log_axes_and_the_tables_headings(suite_records):
    figure = charts.quality_against_speed(gather(suite_records))
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "MSE ↓ (0-1)",
        "ELBO ↑ (nats)",
        "FID[mnist-cnn-v1] ↓",
    ]
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    assert [len(axis.containers) for axis in figure.axes] == [4, 3, 3]


def test_the_pareto_front_is_a_line_of_steps_through_what_no_row_beats(suite_records):
    """AE is fastest and has the lowest error; by ELBO, NVAE is best and VAE fastest, and residual VAE is neither."""
    error, elbo, distance = charts.quality_against_speed(gather(suite_records)).axes
    fronts = [line for line in elbo.lines if line.get_drawstyle() == "steps-pre"]
    assert [list(line.get_ydata()) for line in fronts] == [[-101.1, -107.8]]
    assert [list(line.get_ydata()) for line in error.lines if line.get_drawstyle() == "steps-pre"] == [[0.006]]
    assert [list(line.get_ydata()) for line in distance.lines if line.get_drawstyle() == "steps-pre"] == [[3.97, 9.17]]


def test_rows_that_are_equal_are_both_on_the_front(make_value):
    same = [charts.RowPoint(i, "", make_value("train_throughput", 10.0), make_value("mse", 1.0)) for i in range(2)]
    slower = charts.RowPoint(2, "", make_value("train_throughput", 9.0), make_value("mse", 1.0))
    assert charts.pareto_front([*same, slower], "low") == same


def test_different_likelihoods_share_no_quality_panel(suite_records):
    other = [m for m in suite_records[1].measurements if m.metric != "elbo"]
    elbo = dataclasses.replace(suite_records[1].get("elbo"), details={"likelihood": "gaussian"})
    changed = dataclasses.replace(suite_records[1], measurements=[elbo, *other])
    figure = charts.quality_against_speed(gather([changed, *suite_records[2:]]))
    assert "ELBO ↑ (nats)" not in texts(figure)


def under_beta(make_record, make_value, model, beta, rate, distortion, likelihood="bernoulli"):
    found = [
        make_value("elbo", -rate - distortion, 1.0, details={"likelihood": likelihood}),
        make_value("rate", rate, 0.5),
        make_value("distortion", distortion, 0.8, details={"likelihood": likelihood}),
    ]
    config = {"model": model, "likelihood": likelihood, "objective": {"beta": beta}}
    return make_record(f"{model}-{beta}", 0, found, model=model, label=f"{model} {beta}", config=config)


@pytest.fixture
def sweep(make_record, make_value):
    """Two models under three and two values of beta, not in the order of beta, and a third under one."""
    points = {"vae": [(1.0, 20, 90), (0.5, 30, 82), (4.0, 9, 110)], "nvae": [(1.0, 25, 80), (2.0, 18, 88)]}
    rows = [(model, *point) for model, found in points.items() for point in found] + [("other", 1.0, 22, 88)]
    return [under_beta(make_record, make_value, *row) for row in rows]


def test_rate_distortion_has_a_line_a_model_in_the_order_of_beta(sweep):
    (axis,) = charts.rate_distortion(gather(sweep)).axes
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"vae", "nvae"}
    assert (list(lines["vae"].get_xdata()), list(lines["vae"].get_ydata())) == ([30, 20, 9], [82, 90, 110])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("Rate (nats/image)", "Distortion (nats/image)")
    assert {"0.5", "1", "2", "4"} <= {text.get_text() for text in axis.texts}


def test_two_architectures_of_one_model_have_a_line_each(sweep):
    def of_size(record, size):
        config = record.config | {"model_config": {"latent_size": size}}
        return dataclasses.replace(record, config=config, row=f"{record.row}-{size}", label=f"{size} β={record.row}")

    vaes = [record for record in sweep if record.model == "vae"]
    (axis,) = charts.rate_distortion(gather([of_size(record, size) for size in (16, 64) for record in vaes])).axes
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert [list(line.get_xdata()) for line in lines] == [[30, 20, 9]] * 2
    assert len({line.get_label() for line in lines}) == 2


def test_lines_of_equal_elbo_are_where_they_say(sweep):
    (axis,) = charts.rate_distortion(gather(sweep)).axes
    named = [text for text in axis.texts if text.get_text().startswith("ELBO")]
    assert len(named) > 2
    for text in named:
        assert -sum(text.xy) == pytest.approx(float(text.get_text().split()[1]))
    falling = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert len(falling) == len(named)
    assert all(np.diff(line.get_ydata()) == pytest.approx(-np.diff(line.get_xdata())) for line in falling)


def test_one_beta_a_model_or_different_likelihoods_have_no_trade_to_show(sweep, make_record, make_value):
    one_each = [record for record in sweep if record.config["objective"]["beta"] == 1.0]
    assert charts.rate_distortion(gather(one_each)) is None
    gaussian = under_beta(make_record, make_value, "vae", 8.0, 5, 130, "gaussian")
    assert charts.rate_distortion(gather([*sweep, gaussian])) is None


def test_more_rows_than_colours_still_look_different(make_record):
    rows = gather([make_record(f"row{i}", label=f"row {i}") for i in range(10)])
    assert len(set(charts.looks(rows).values())) == 10


@pytest.mark.parametrize(
    "draw", [charts.training_curves, charts.rates_by_group, charts.quality_against_speed, charts.rate_distortion]
)
def test_nothing_measured_no_figure(make_record, draw):
    assert draw(gather([make_record(measurements=[], latent_groups=[], curves=[])])) is None


def test_a_row_keeps_its_colour_in_every_chart(suite_records):
    rows = gather(suite_records)
    colours = [look.colour for look in charts.looks(rows).values()]
    assert len(set(colours)) == len(rows)
    lines = [line.get_color() for axis in charts.training_curves(rows).axes[::2] for line in axis.lines]
    assert lines == colours


def test_an_unchanged_chart_is_an_unchanged_file(suite_records, tmp_path):
    for name in ("a.svg", "b.svg"):
        figures.save(charts.rates_by_group(gather(suite_records)), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_drawing_leaves_pyplot_alone():
    code = "import sys, benchmarks.report.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
