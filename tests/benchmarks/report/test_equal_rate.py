"""Rows at equal rate: which rows are a family, what it has between its rates, and what the report says of it."""

import dataclasses

import pytest

from benchmarks.report import equal_rate, tables
from benchmarks.report.rows import gather

FIRST = "VAE, 16 latents"
CURVE = {0.5: (30.0, 0.010, 70.0), 1.0: (20.0, 0.014, 78.0), 4.0: (10.0, 0.030, 96.0)}
"""Rate, MSE and distortion of the first family under each beta."""


def config_of(model, beta, size=16, balancing="none", **training):
    return {
        "model": model,
        "likelihood": "bernoulli",
        "model_config": {"latent_size": size},
        "training": {"images": 9600, "learning_rate": 2e-3} | training,
        "objective": {"beta": beta, "kl_warmup": 0.3, "balancing": balancing},
    }


@pytest.fixture
def make_row(make_record, make_value):
    """`make_row(name, beta, (rate, mse, distortion), ...)`: a record; a value of None is not measured."""

    def build(name, beta, point, label="", seed=0, model="vae", half=0.001, likelihood="bernoulli", **config):
        found = [
            make_value("rate", point[0], 0.5, unit="nats"),
            make_value("mse", point[1], half, unit="0-1"),
            make_value("distortion", point[2], 1.0, unit="nats"),
            make_value("elbo", -sum((point[0], point[2])), 1.0, unit="nats", details={"likelihood": likelihood}),
        ]
        return make_record(
            name,
            seed,
            [m for m in found if m.value is not None],
            label=label or f"{FIRST}, β={beta:g}",
            model=model,
            config=config_of(model, beta, **config),
        )

    return build


@pytest.fixture
def sweep(make_row):
    """The first family, not in the order of its rates."""
    return [make_row(f"vae-{beta}", beta, CURVE[beta]) for beta in (1.0, 4.0, 0.5)]


def family_of(records):
    (family,) = equal_rate.families(gather(records))
    return family


def cells_of(records, title="MSE at equal rate"):
    (part,) = tables.sections(records)
    return next(table for table in part.tables if table.title == title).cells.set_index("Model")


def titles_of(records):
    return [table.title for part in tables.sections(records) for table in part.tables]


def test_a_family_is_named_by_what_its_labels_share_and_lies_in_the_order_of_beta(sweep):
    family = family_of(sweep)
    assert family.name == FIRST
    assert [row.beta for row in family.rows] == [0.5, 1.0, 4.0]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 1),
        ({"learning_rate": 8e-3}, 1),  # tuned for each beta
        ({"size": 32}, 0),
        ({"balancing": "square"}, 0),
        ({"images": 24000}, 0),
        ({"model": "nvae"}, 0),
        ({"beta": 1.0, "learning_rate": 8e-3}, 0),  # nothing swept
    ],
)
def test_rows_of_a_family_differ_in_beta_and_learning_rate_only(make_row, change, count):
    other = {"beta": 2.0} | change
    records = [make_row("a", 1.0, CURVE[1.0]), make_row("b", other.pop("beta"), CURVE[4.0], "other", **other)]
    assert len(equal_rate.families(gather(records))) == count


def test_rows_on_another_device_are_no_family(sweep):
    moved = dataclasses.replace(sweep[0].environment, device="cuda")
    assert not equal_rate.families(gather([sweep[1], dataclasses.replace(sweep[0], environment=moved)]))


@pytest.mark.parametrize(
    ("rate", "mse", "distortion"),
    [(10.0, 0.030, 96.0), (15.0, 0.022, 87.0), (20.0, 0.014, 78.0), (22.5, 0.013, 76.0), (30.0, 0.010, 70.0)],
)
def test_between_two_rates_the_family_lies_on_their_straight_line(sweep, rate, mse, distortion):
    family = family_of(sweep)
    assert family.at(rate, "mse").value == pytest.approx(mse)
    assert family.at(rate, "distortion").value == pytest.approx(distortion)


@pytest.mark.parametrize("rate", [9.99, 30.01])
def test_nothing_is_extrapolated(sweep, rate):
    assert family_of(sweep).at(rate, "mse") is None


def test_the_spread_is_that_of_the_neighbours_in_proportion(make_row):
    records = [make_row("a", 1.0, CURVE[1.0], half=0.002), make_row("b", 4.0, CURVE[4.0], half=0.004)]
    read = family_of(records).at(17.5, "mse")
    assert (read.low, read.high) == (pytest.approx(0.018 - 0.0025), pytest.approx(0.018 + 0.0025))
    unknown = [records[0], make_row("b", 4.0, CURVE[4.0], half=None)]
    assert family_of(unknown).at(17.5, "mse").low is None


def test_a_row_without_a_value_is_no_point_of_the_curve(make_row, sweep):
    gap = make_row("vae-1.0", 1.0, (20.0, None, 78.0))
    read = family_of([gap, *sweep[1:]])
    assert read.at(20.0, "mse").value == pytest.approx(0.020)
    assert read.at(20.0, "distortion").value == pytest.approx(78.0)


def test_seeds_are_averaged_before_the_line_is_drawn(make_row, sweep):
    again = make_row("vae-1.0", 1.0, (22.0, 0.012, 76.0), seed=1)
    assert family_of([*sweep, again]).at(21.0, "mse").value == pytest.approx(0.013)


def test_the_table_holds_each_row_against_the_other_models_curve(make_row, sweep):
    inside = make_row("nvae", 1.0, (25.0, 0.006, 70.0), "NVAE", model="nvae")
    outside = make_row("nvae-wide", 1.0, (35.0, 0.005, 60.0), "wide NVAE", model="nvae", size=64)
    table = cells_of([*sweep, inside, outside])
    assert list(table.columns) == ["Rate (nats)", "MSE ↓ (0-1)", f"{FIRST} ↓ (0-1)"]
    assert list(table.loc["NVAE"]) == ["25.00 ± 0.50", "0.00600 ± 0.00100", "0.01200 ± 0.00100"]
    assert table.loc["wide NVAE", f"{FIRST} ↓ (0-1)"] == "-"
    assert list(table.loc[[r.label for r in sweep], f"{FIRST} ↓ (0-1)"]) == ["-"] * 3
    distortion = cells_of([*sweep, inside], "Distortion at equal rate")
    assert distortion.loc["NVAE", f"{FIRST} ↓ (nats)"] == "74.00 ± 1.00"


def test_the_report_says_how_the_reading_is_made_and_over_which_rates(make_row, sweep):
    inside = make_row("nvae", 1.0, (25.0, 0.006, 70.0), "NVAE", model="nvae")
    (part,) = tables.sections([*sweep, inside])
    text = " ".join(tables.markdown(part).split())
    assert f"nothing is extrapolated ({FIRST}: 10.0 to 30.0 nats over beta 0.5, 1, 4)" in text
    assert "**" not in text


def test_two_latent_sizes_are_two_families_held_against_each_other(make_row, sweep):
    wide = [
        make_row(f"wide-{beta}", beta, (rate, 0.01, 80.0), f"VAE, 64 latents, β={beta:g}", size=64)
        for beta, rate in ((1.0, 21.0), (0.5, 33.0))
    ]
    table = cells_of([*sweep, *wide])
    assert list(table.columns)[2:] == [f"{FIRST} ↓ (0-1)", "VAE, 64 latents ↓ (0-1)"]
    assert table.loc["VAE, 64 latents, β=1", f"{FIRST} ↓ (0-1)"] == "0.01360 ± 0.00100"
    assert table.loc[f"{FIRST}, β=0.5", "VAE, 64 latents ↓ (0-1)"] == "0.01000 ± 0.00100"


def test_families_of_one_name_are_told_apart(make_row):
    records = [
        make_row(f"{size}-{beta}", beta, CURVE[beta], f"VAE β={beta:g}", size=size)
        for size in (16, 32)
        for beta in (1.0, 4.0)
    ]
    assert len({family.name for family in equal_rate.families(gather(records))}) == 2


def test_labels_that_do_not_say_beta_leave_the_name_of_the_model(make_row):
    records = [make_row("a", 1.0, CURVE[1.0], "usual"), make_row("b", 4.0, CURVE[4.0], "strict")]
    assert family_of(records).name == "vae"


def test_a_rate_out_of_every_range_is_a_dash_that_the_note_explains(make_row, sweep):
    far = make_row("nvae", 1.0, (50.0, 0.004, 60.0), "NVAE", model="nvae")
    assert list(cells_of([*sweep, far])[f"{FIRST} ↓ (0-1)"]) == ["-"] * 4


def test_without_a_sweep_or_without_another_row_there_is_no_such_table(make_row, make_value, make_record, sweep):
    far = make_row("nvae", 1.0, (50.0, 0.004, 60.0), "NVAE", model="nvae")
    plain = make_record("ae", 0, [make_value("mse", 0.004, 0.001, unit="0-1")], latent_groups=[])
    for records in (sweep, [*sweep, plain], [sweep[0], far]):
        assert not [title for title in titles_of(records) if "equal rate" in title]


def test_under_different_likelihoods_the_error_is_read_and_the_distortion_is_not(make_row, sweep):
    other = make_row("nvae", 1.0, (25.0, 0.006, 70.0), "NVAE", model="nvae", likelihood="gaussian")
    titles = titles_of([*sweep, other])
    assert "MSE at equal rate" in titles
    assert "Distortion at equal rate" not in titles
