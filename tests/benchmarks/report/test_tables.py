"""Tables: dashes, bold, floors, rulers, captions and footnotes, from synthetic records."""

import dataclasses
import io

import pandas as pd
import pytest

from benchmarks.records.record import LatentGroupInfo
from benchmarks.report import tables
from benchmarks.report.layout import WIDTH
from benchmarks.report.rows import gather
from benchmarks.suites.config import build_suite, read_suite, to_dict

EXTRACTOR = {"extractor": "mnist-cnn-v1", "weights_sha256": "5f" * 32}


def text_of(records):
    return "\n".join(tables.markdown(part) for part in tables.sections(records))


def trials_of(records, title="Quality"):
    """The table of that title with its first column as index."""
    (part,) = tables.sections(records)
    table = next(t for t in part.tables if t.title == title)
    return table.cells.set_index("Model")


def pair(make_record, make_value, a, b, **fields):
    """Records of two rows, `a` and `b`, that measured only one MSE each: (value, half width)."""
    return [
        make_record(row, 0, [make_value("mse", value, half, n=1000, unit="0-1")], **fields)
        for row, (value, half) in (("a", a), ("b", b))
    ]


def test_rows_keep_the_order_of_the_records(suite_records):
    assert list(trials_of(suite_records[::-1]).index)[:4] == ["NVAE", "Residual VAE", "VAE", "AE"]
    assert list(trials_of(suite_records).index) == ["AE", "VAE", "Residual VAE", "NVAE", "real images"]


def test_headings_have_arrows_units_and_the_name_of_the_extractor(suite_records):
    assert list(trials_of(suite_records).columns) == [
        "ELBO ↑ (nats)",
        "IWAE(50) ↑ (nats)",
        "MSE ↓ (0-1)",
        "Active units",
        "FID[mnist-cnn-v1] ↓",
        "rFID[mnist-cnn-v1] ↓",
    ]
    assert list(trials_of(suite_records, "Cost").columns) == [
        "Params",
        "MMACs/img",
        "Images seen",
        "Train (s)",
        "Train ↑ (img/s)",
        "Encode ↑ (img/s)",
        "Recon. ↑ (img/s)",
        "Sample ↑ (img/s)",
        "Peak ↓ (MiB)",
    ]


def test_the_rate_that_buys_an_mse_stands_beside_it_and_is_not_ranked(suite_records, make_value):
    rated = [
        dataclasses.replace(record, measurements=[*record.measurements, make_value("rate", rate, 0.1, unit="nats")])
        for record, rate in zip(suite_records[1:], (23.7, 16.8, 35.7), strict=True)
    ]
    table = trials_of([suite_records[0], *rated])
    place = list(table.columns).index("MSE ↓ (0-1)")
    assert list(table.columns)[place + 1 : place + 3] == ["Rate (nats)", "Active units"]
    assert list(table["Rate (nats)"]) == ["-", "23.70 ± 0.10", "16.80 ± 0.10", "35.70 ± 0.10", "-"]
    (part,) = tables.sections(rated)
    assert [t.title for t in part.tables if "Rate (nats)" in t.cells] == ["Quality"]


def test_a_value_that_does_not_apply_is_a_dash_with_its_reason_below(suite_records):
    quality, cost = trials_of(suite_records), trials_of(suite_records, "Cost")
    assert list(quality.loc["AE"][["ELBO ↑ (nats)", "IWAE(50) ↑ (nats)", "FID[mnist-cnn-v1] ↓"]]) == ["-"] * 3
    assert cost.loc["AE", "Sample ↑ (img/s)"] == "-"
    assert "- AE: no prior (ELBO, IWAE, FID)" in text_of(suite_records)


def test_a_metric_that_is_defined_for_no_row_has_no_column(suite_records):
    assert "bits/dim" not in text_of(suite_records).split("### Quality\n")[1].split("### Cost")[0]


def test_a_column_of_dashes_is_left_out_and_a_note_says_what_to_do(make_record, make_value):
    note = "needs --inception-weights PATH"
    record = make_record(measurements=[make_value("sample_fid", None, note=note), make_value("mse", 0.1, 0.01)])
    assert list(trials_of([record]).columns) == ["MSE ↓"]
    assert "- no column, as no row has a value: FID\n" in text_of([record])
    assert f"- VAE: {note} (FID)" in text_of([record])


def with_prior_statistics(records, make_value, row):
    """The records, of which that row has the distance with prior statistics."""
    details = EXTRACTOR | {"prior_batches": 10, "prior_batch_size": 100}
    refitted = make_value("sample_fid_prior_statistics", 3.4, n=1000, details=details)
    missing = make_value("sample_fid_prior_statistics", None, note="no prior")
    return [r.with_measurements([*r.measurements, refitted if r.row == row else missing]) for r in records]


def test_prior_statistics_have_a_column_where_some_row_has_them(suite_records, make_value):
    heading = "FID (prior BN) ↓"
    assert heading not in trials_of(suite_records, "Quality, continued").columns
    assert "prior BN" not in text_of(suite_records)
    records = with_prior_statistics(suite_records, make_value, "nvae")
    assert list(trials_of(records, "Quality, continued")[heading]) == ["-", "-", "-", "3.400", "0.128"]
    said = " ".join(text_of(records).split())
    assert "measured on images drawn from the prior (10 batches of 100) in place of those of training." in said


def test_only_inception_may_be_called_a_bare_fid(make_record, make_value):
    details = {"extractor": "inception", "weights_sha256": "67" * 32}
    record = make_record(measurements=[make_value("sample_fid", 30.0, n=5000, details=details)])
    assert "FID ↓" in trials_of([record]).columns


def test_extractors_and_their_weights_never_share_a_column(make_record, make_value):
    def scored(row, name, sha):
        details = {"extractor": name, "weights_sha256": sha * 32}
        return make_record(row, 0, [make_value("sample_fid", 5.0, n=5000, details=details)])

    table = trials_of([scored("a", "cnn", "11"), scored("b", "cnn", "22"), scored("c", "other", "33")])
    assert list(table.columns) == [
        "FID[cnn@11111111] ↓",
        "FID[cnn@22222222] ↓",
        "FID[other] ↓",
    ]
    assert list(table.iloc[0]) == ["5.000", "-", "-"]


def test_bounds_with_different_k_never_share_a_column(make_record, make_value):
    records = [
        make_record(row, 0, [make_value("iwae_bound", -90.0, 1.0, unit="nats", details={"k": k})])
        for row, k in (("a", 5), ("b", 50))
    ]
    assert set(trials_of(records).columns) == {"IWAE(5) ↑ (nats)", "IWAE(50) ↑ (nats)"}


@pytest.mark.parametrize(
    ("a", "b", "bold"),
    [
        ((0.010, 0.001), (0.020, 0.001), ["a"]),
        ((0.020, 0.001), (0.010, 0.001), ["b"]),
        ((0.010, 0.006), (0.020, 0.006), []),  # intervals overlap
        ((0.010, None), (0.020, None), []),  # no interval is known
        ((0.010, 0.001), (0.020, None), []),
        ((0.010, 0.001), (0.010, 0.001), []),  # equal
    ],
)
def test_bold_only_beyond_the_spread(make_record, make_value, a, b, bold):
    column = trials_of(pair(make_record, make_value, a, b))["MSE ↓ (0-1)"]
    assert [name.lower() for name, text in column.items() if text.startswith("**")] == bold


def test_a_third_row_with_a_wide_interval_takes_the_bold_away(make_record, make_value):
    records = pair(make_record, make_value, (0.010, 0.001), (0.020, 0.001))
    wide = make_record("c", 0, [make_value("mse", 0.03, 0.025, n=1000, unit="0-1")])
    assert "**" in text_of(records)
    assert "**" not in text_of([*records, wide])


def test_rows_under_different_beta_are_not_ranked(make_record, make_value):
    def rows(*betas):
        return [
            make_record(row, 0, [make_value("mse", value, 0.001)], config={"objective": {"beta": beta}})
            for row, value, beta in zip("ab", (0.01, 0.02), betas, strict=True)
        ]

    assert "**" in text_of(rows(1.0, 1.0))
    swept = text_of(rows(1.0, 4.0))
    assert "**" not in swept
    assert "rows differ in beta" in swept


def test_the_head_says_what_each_row_scores_and_under_which_beta(make_record, make_value):
    def row(name, likelihood, spec, beta):
        config = {"likelihood": likelihood, "likelihood_spec": spec, "objective": {"beta": beta}}
        return make_record(name, 0, [make_value("elbo", -100.0, 1.0)], config=config)

    density = row("a", "gaussian", {"scale": 0.5}, 1.0)
    binary = row("b", "bernoulli", {}, 1.0), row("c", "bernoulli", {}, 0.5)
    text = text_of([density, *binary])
    assert "A: Gaussian (scale 0.5), density over pixels in 0-1, beta 1;" in " ".join(text.split())
    assert "B: Bernoulli, probability of pixels binarised by their brightness, beta 1;" in " ".join(text.split())
    assert "beta 0.5. Values under different likelihoods are not comparable." in " ".join(text.split())
    assert "not comparable" not in text_of(binary)
    levels = text_of([row("a", "logistic-mixture", {"bits": 5, "mixtures": 3}, 1.0)])
    assert "mixture of 3 logistics, probability of 5-bit levels" in levels


def test_an_autoencoder_has_no_beta_to_differ_in(make_record, make_value):
    ae = make_record("ae", 0, [make_value("mse", 0.01, 0.001)], latent_groups=[], config={"objective": {"beta": 1.0}})
    vae = make_record("vae", 0, [make_value("mse", 0.02, 0.001)], config={"objective": {"beta": 2.0}})
    assert "**" in text_of([ae, vae])


def test_higher_is_better_for_the_elbo(suite_records):
    column = trials_of(suite_records)["ELBO ↑ (nats)"]
    assert column["NVAE"] == "**-101.1 ± 0.9**"
    assert column["VAE"] == "-107.8 ± 0.9"


def test_distances_of_one_seed_and_cost_are_never_bold(suite_records):
    quality = trials_of(suite_records)
    assert not quality["FID[mnist-cnn-v1] ↓"].str.contains(r"\*").any()
    assert not trials_of(suite_records, "Cost").map(lambda text: "*" in text).any(axis=None)


def test_distances_over_different_numbers_of_images_are_not_ranked(make_record, make_value):
    def seeds(row, value, n):
        return [make_record(row, s, [make_value("sample_fid", value + s / 10, n=n, details=EXTRACTOR)]) for s in (0, 1)]

    assert "**" in text_of(seeds("a", 4.0, 5000) + seeds("b", 9.0, 5000))
    different = text_of(seeds("a", 4.0, 5000) + seeds("b", 9.0, 3000))
    assert "**" not in different
    assert "different n (3,000, 5,000) are not ranked" in different


def test_the_floor_is_the_last_row_and_that_of_reconstructions_is_zero(suite_records):
    floor = trials_of(suite_records).iloc[-1]
    assert floor["FID[mnist-cnn-v1] ↓"] == "0.13"
    assert floor["rFID[mnist-cnn-v1] ↓"] == "0 (paired)"
    assert floor["MSE ↓ (0-1)"] == "-"
    assert "1,000 training images against the test split" in text_of(suite_records)


def test_samples_compared_with_training_images_are_said_to_be(make_record, make_value):
    details = {**EXTRACTOR, "reference_split": "train", "n_reference": 50_000}
    found = [make_value(metric, 9.0, n=10_000, details=details) for metric in ("sample_fid", "fid_floor")]
    text = text_of([make_record(measurements=found)])
    assert "FID: samples against 50,000 training images" in text
    assert "the floor of FID: 10,000 test images against 50,000 training images" in text


def test_few_images_are_flagged_and_enough_are_not(make_record, make_value):
    def flagged(n):
        record = make_record(measurements=[make_value("sample_fid", 9.0, n=n, details=EXTRACTOR)])
        return f"n = {n:,} < 2,000 images" in text_of([record])

    assert flagged(1999)
    assert not flagged(2000)


def test_seeds_are_one_row_with_mean_and_standard_deviation(make_record, make_value):
    records = [
        make_record("vae", seed, [make_value("mse", value, 0.5, n=1000, unit="0-1")])
        for seed, value in ((0, 1.0), (1, 2.0), (2, 3.0))
    ]
    table = trials_of(records)
    assert list(table.index) == ["VAE"]
    assert table.loc["VAE", "MSE ↓ (0-1)"] == "2.000 ± 1.000"
    text = text_of(records)
    assert "3 seeds (0, 1, 2)" in text
    assert "one standard deviation over seeds (MSE)" in text
    assert "bootstrap" not in text


def test_one_seed_is_labelled_as_a_bootstrap_interval(suite_records):
    assert "half the 95 % bootstrap interval over test images (ELBO, IWAE, MSE, PSNR)" in text_of(suite_records)


def test_a_configuration_that_differs_in_more_than_the_seed_is_a_row_of_its_own(make_record):
    records = [make_record("vae", 0), make_record("vae", 1, config={"width": 8}, config_hash="c0ffee00")]
    assert {"VAE (vae-0-)", "VAE (c0ffee)"} < set(trials_of(records).index)


def test_the_newest_record_of_a_seed_counts_and_the_others_are_mentioned(make_record, make_value):
    old, new = (make_record(measurements=[make_value("mse", v, unit="0-1")]) for v in (0.5, 0.25))
    later = dataclasses.replace(new.environment, date="2026-11-23T00:00:00+00:00", torch="2.15.0")
    records = [dataclasses.replace(new, environment=later), old]
    assert trials_of(records).loc["VAE", "MSE ↓ (0-1)"] == "0.2500"
    assert "- VAE: 1 older record of the same seed and configuration left out" in text_of(records)


def test_different_likelihoods_empty_the_likelihood_columns_and_no_other(make_record, make_value):
    def row(name, likelihood):
        details = {"likelihood": likelihood, "k": 50}
        return make_record(
            name,
            0,
            [
                make_value("elbo", -100.0, 1.0, unit="nats", details=details),
                make_value("iwae_bound", -98.0, 1.0, unit="nats", details=details),
                make_value("bits_per_dim", 1.3, 0.01, unit="bits/dim", details=details),
                make_value("mse", 0.01, 0.001, unit="0-1"),
            ],
        )

    records = [row("a", "bernoulli"), row("b", "logistic-mixture(bits=8)")]
    table = trials_of(records)
    assert list(table.columns) == ["MSE ↓ (0-1)"]
    assert "- no column, as no row has a value: ELBO, bits/dim, IWAE\n" in text_of(records)
    assert list(table["MSE ↓ (0-1)"]) == ["0.01000 ± 0.00100"] * 2
    assert "likelihoods differ, so values do not compare (A: bernoulli; B: logistic-mixture(bits=8))" in " ".join(
        text_of(records).split()
    )
    assert "-100.0 ± 1.0" in text_of([row("a", "bernoulli"), row("b", "bernoulli")])


def test_different_data_are_different_sections(make_record):
    parts = tables.sections([make_record("a"), make_record("b", data_hash="ff" * 32)])
    assert [[row.label for row in part.rows] for part in parts] == [["A"], ["B"]]


@pytest.mark.parametrize(
    ("shapes", "flag"),
    [
        ([(2, 1.0), (4, 1.0), (8, 1.0), (8, 1.0)], None),
        ([(2, 1.0), (4, 1.0), (8, 1.0)], "3 groups over 3 resolutions"),
        ([(4, 1.0)] * 4, "4 groups over 1 resolutions"),
        ([(2, 0.01), (4, 1.0), (8, 1.0), (8, 1.0)], None),
        ([(2, 1.0), (4, 0.009), (8, 1.0), (8, 1.0)], "collapsed: latent group 2 of 4 (4x4) carries 0.009 nats"),
        ([(1, 5.0)], None),
        ([(1, 0.001)], "collapsed: latent group 1 of 1 (1x1) carries 0.001 nats"),
        ([], None),
    ],
)
def test_hierarchies_that_are_none_are_flagged(make_record, shapes, flag):
    record = make_record(latent_groups=[LatentGroupInfo(4, side, side, rate) for side, rate in shapes])
    text = text_of([record])
    if flag is None:
        assert "hierarchy" not in text
        assert "collapsed" not in text
    else:
        assert f"VAE: {flag}" in text.replace("not counted as a hierarchy: ", "")


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_unfinished_rows_are_printed_with_their_reason(make_record, status):
    broken = make_record("nvae", 0, [], status=status, error="Traceback\nValueError: loss is not finite")
    text = text_of([make_record(), broken])
    assert f"NVAE ({status})" in text
    assert f"- NVAE: {status} (seed 0) after 32,000 images: ValueError: loss is not finite" in text
    assert list(trials_of([make_record(), broken]).loc[f"NVAE ({status})"]) == ["-"] * 5


def test_a_failed_seed_does_not_hide_the_others(make_record, make_value):
    good = [make_record("vae", seed, [make_value("mse", 1.0 + seed, unit="0-1")]) for seed in (0, 1)]
    text = text_of([*good, make_record("vae", 2, [], status="failed", error="out of memory")])
    assert "1.500 ± 0.707" in text
    assert "- VAE: failed (seed 2) after 32,000 images: out of memory" in text


def test_a_row_that_is_trained_only_says_so(make_record):
    assert "- VAE: trained (seed 0), not evaluated yet" in text_of([make_record(measurements=[], status="trained")])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "Equal images: every row trained on 32,000"),
        ({"images_seen": 96_000, "training_seconds": 33.0}, "Equal seconds: every row trained for about 33 s"),
        ({"images_seen": 96_000, "training_seconds": 300.0}, "Neither equal images (32,000 to 96,000) nor equal"),
    ],
)
def test_the_caption_says_what_was_equal_in_training(make_record, other, said):
    assert said in text_of([make_record("a"), make_record("b", **other)])


@pytest.mark.parametrize(
    ("budget", "busy", "said"),
    [
        ({"cpu_seconds": 30.0}, (30.0, 31.0), "Equal processor time: every row trained for about 31 CPU-seconds, on"),
        ({"cpu_seconds": 30.0}, (30.0, 40.0), "is not equal: rows took 30.0 to 40.0 CPU-seconds, on 32,000 to 96,000"),
        ({"cpu_seconds": 30.0}, (30.0, None), "Neither equal images (32,000 to 96,000) nor equal"),
        ({"seconds": 30.0}, (30.0, 31.0), "Neither equal images (32,000 to 96,000) nor equal"),
    ],
)
def test_processor_time_is_called_equal_where_it_was_the_budget_and_was_kept(make_record, budget, busy, said):
    """On a busy machine the clock of one row ran twice as long."""
    rows = [
        make_record(row, config={"training": budget}, images_seen=n, training_seconds=s, training_cpu_seconds=cpu)
        for row, n, s, cpu in zip("ab", (32_000, 96_000), (40.0, 80.0), busy, strict=True)
    ]
    assert said in " ".join(text_of(rows).split())


def test_the_caption_says_where_it_was_measured(suite_records):
    text = " ".join(text_of(suite_records).split())
    for said in (
        "Suite quick, data mnist-5k (hash ab12cd34), 1,000 test images, seed 0.",
        "Device cpu (AMD EPYC 7B13), threads 1 of 2 cores, precision float32; torch 2.14.1+cpu",
        "commit 0123456789+dirty, 2026-11-22",
        "Rates: median, batch 32; threads 1; precision float32; load average 0.3.",
    ):
        assert said in text


def test_notes_on_values_and_records_are_printed(make_record, make_value):
    noted = make_value("mse", 0.1, 0.01, unit="0-1", note="against the grey digits")
    text = text_of([make_record("a", 0, [noted], notes=["3 steps undone"]), make_record("b")])
    assert "- MSE of A: against the grey digits" in text
    assert "- A: 3 steps undone" in text


def test_every_line_fits_the_terminal(suite_records):
    assert max(map(len, text_of(suite_records).splitlines())) <= WIDTH


def test_the_csv_holds_numbers_with_units_and_intervals(suite_records):
    frame = pd.read_csv(io.StringIO(tables.csv(tables.sections(suite_records)))).set_index("row")
    assert list(frame.index) == ["ae", "vae", "residual", "nvae"]
    assert frame.loc["nvae", "elbo (nats)"] == -101.1
    assert frame.loc["nvae", "elbo low (nats)"] == -102.0
    assert frame.loc["nvae", "elbo high (nats)"] == pytest.approx(-100.2)
    assert frame.loc["nvae", "elbo spread"] == "bootstrap 95%"
    assert pd.isna(frame.loc["ae", "elbo (nats)"])
    assert frame.loc["vae", "sample_fid[mnist-cnn-v1@5f5f5f5f]"] == 9.17
    assert frame.loc["vae", "parameters"] == 119_000
    assert frame.loc["vae", "train_throughput (img/s)"] == 1004.0


def test_metrics_the_tables_do_not_know_are_in_the_csv(make_record, make_value):
    record = make_record(measurements=[make_value("novelty", 0.4, 0.1, unit="share")])
    frame = pd.read_csv(io.StringIO(tables.csv(tables.sections([record]))))
    assert frame.loc[0, "novelty (share)"] == 0.4


def test_a_spread_over_subsets_of_one_set_of_samples_is_printed_but_wins_nothing(make_record, make_value):
    def row(name, value):
        spread = {"low": value - 0.01, "high": value + 0.01, "spread_kind": "std over subsets"}
        return make_record(name, 0, [make_value("kid", value, n=5000, details=EXTRACTOR, **spread)])

    records = [row("a", 0.1), row("b", 0.9)]
    assert list(trials_of(records, "Quality, continued")["KID[mnist-cnn-v1] ↓"]) == [
        "0.1000 ± 0.0100",
        "0.9000 ± 0.0100",
    ]
    assert "one standard deviation over random subsets (KID)" in text_of(records)


def test_the_extractor_is_named_once_beside_precision_and_recall(make_record, make_value):
    found = [make_value(name, 0.5, n=5000, details=EXTRACTOR) for name in ("precision", "recall")]
    assert list(trials_of([make_record(measurements=found)], "Quality, continued").columns[:2]) == [
        "Latents",
        "precision ↑",
    ]
    assert "Features by mnist-cnn-v1 (weights 5f5f5f5f)." in text_of([make_record(measurements=found)])
    other = make_record("b", 0, [make_value("recall", 0.5, n=5000, details={"extractor": "inception"})])
    both = trials_of([make_record(measurements=found), other], "Quality, continued").columns
    assert {"recall ↑", "recall[mnist-cnn-v1] ↑"} < set(both)


def test_a_value_that_flags_its_own_small_n_is_not_flagged_twice(make_record, make_value):
    note = "n = 500 < 2000: biased upwards"
    found = [make_value(m, 3.0, n=500, details=EXTRACTOR, note=note) for m in ("sample_fid", "reconstruction_fid")]
    text = text_of([make_record(measurements=found)])
    assert f"- FID, rFID: {note}" in text
    assert text.count("biased upwards") == 1


def test_a_trial_that_failed_before_its_data_was_read_stays_in_its_table(make_record):
    failed = make_record("nvae", 0, [], data_hash="", status="failed", error="out of memory")
    (part,) = tables.sections([make_record(), failed])
    assert {row.label for row in part.rows} == {"VAE", "NVAE"}


@pytest.mark.parametrize(("load", "busy"), [(2.0, False), (3.1, True)])
def test_a_busy_machine_is_mentioned(make_record, make_value, load, busy):
    rate = make_value("train_throughput", 100.0, unit="images/s", details={"batch": 32, "load": load})
    assert ("The machine was busy" in text_of([make_record(measurements=[rate])])) == busy


def test_different_batches_are_mentioned(make_record, make_value):
    records = [
        make_record(row, 0, [make_value("train_throughput", 100.0, unit="images/s", details={"batch": batch})])
        for row, batch in (("a", 32), ("b", 64))
    ]
    assert "batch 32, 64. The conditions differ between rows." in text_of(records)


def test_a_code_without_latents_has_no_count(suite_records):
    assert trials_of(suite_records, "Quality, continued").loc["AE", "Latents"] == "-"
    assert "- AE: a code without noise, no latents (Latents)" in text_of(suite_records)


def test_the_caption_says_how_a_users_own_files_were_read(make_record):
    note = "80 files, split by hash of file name; 3 turned by EXIF orientation"
    text = " ".join(text_of([make_record(data="folder:own", data_note=note)]).split())
    assert f"Data: {note}." in text
    assert "Data:" not in text_of([make_record(data_note="where the digits came from")])


def test_seeds_of_records_older_and_newer_than_a_field_make_one_row(make_record):
    """A field that came later, at its default, is no other setting; away from it, it is one."""
    config = to_dict(build_suite(*read_suite("quick"), ["vae"]).trials[0])
    training = config["training"]
    older = {**config, "training": {key: training[key] for key in training if key != "back_offs"}}
    other = {**config, "seed": 2, "training": {**training, "back_offs": 1}}
    records = [make_record(config=older, seed=0), make_record(config={**config, "seed": 1}, seed=1)]
    assert [len(row.records) for row in gather(records)] == [2]
    assert [len(row.records) for row in gather([*records, make_record(config=other, seed=2)])] == [2, 1]


def test_who_is_best_is_said_first(make_record, make_value):
    def rows(half):
        values = {"a": (-100, 0.02), "b": (-90, 0.01), "c": (-95, 0.005)}
        found = {row: [make_value("elbo", a, half), make_value("mse", b, 0.001)] for row, (a, b) in values.items()}
        return [make_record(row, 0, measured) for row, measured in found.items()]

    paragraphs = [" ".join(text.split()) for text in text_of(rows(1.0)).split("\n\n")]
    assert paragraphs.index("Best beyond the spread: B in ELBO; C in MSE.") == 3  # below title, data and training
    assert "Best beyond the spread: C in MSE." in text_of(rows(9.0))
    assert "Best beyond" not in text_of(rows(1.0)[:1])


def test_a_note_that_rows_share_is_said_once(make_record):
    records = [make_record(row, 0, notes=["evaluated again"]) for row in "ab"]
    assert "- A, B: evaluated again\n" in text_of(records)
