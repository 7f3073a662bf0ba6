import itertools

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.data import load, load_labels
from benchmarks.evaluation.evaluate import feature_metrics
from benchmarks.metrics import sample_quality
from benchmarks.metrics.extractors import open_extractor
from benchmarks.metrics.features import cached_features
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.metrics.influence import Influence
from benchmarks.metrics.ladder import LADDER, Rung, bias, bias_table, damaged, insert, ladder_table
from benchmarks.metrics.on_features import ON_FEATURES, OnFeatures
from benchmarks.metrics.sample_quality import (
    fid_floor,
    reconstruction_quality,
    sample_metrics,
    training_images,
)
from benchmarks.records.catalogue import METRICS, Metric

N = 500
FAMILIES = sorted({rung.family for rung in LADDER})


@pytest.fixture(scope="module")
def digits():
    return load("mnist-5k")


@pytest.fixture(scope="module")
def labels():
    return load_labels("mnist-5k")


@pytest.fixture(scope="module")
def ruler():
    return open_extractor("mnist-cnn-v1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


def distance(images, reference, ruler, cache=None):
    """The Frechet distance by its steps: features, their statistics, the distance."""
    found = ruler.features(images), cached_features(reference, ruler, cache)
    return frechet_distance(*(FeatureStatistics.of(one.values) for one in found))


@pytest.fixture(scope="module")
def scored(digits, labels, ruler, cache):
    """Sample metrics of undamaged training images, and of those of five classes, against test images."""
    whole, half = Rung("real", "train"), Rung("classes", "5 of 10", classes=5)
    reference = digits.test[:N]
    return {
        rung.label: {m.metric: m for m in sample_metrics(images, reference, ruler, cache)}
        for rung in (whole, half)
        for images in [damaged(rung, digits.train, labels.train, N)]
    }


def test_images_have_distance_exactly_zero_to_themselves(digits, ruler, cache):
    same = reconstruction_quality(digits.test[:N].clone(), digits.test[:N], ruler, cache)
    fid, kid, precision, recall = same
    assert (fid.value, precision.value, recall.value) == (0.0, 1.0, 1.0)
    assert kid.value < 0  # an image of both subsets is nearer to itself than the unbiased kernel distance expects
    assert {m.details["pairing"] for m in same} == {"with their own originals"}


def test_reconstructions_are_scored_as_samples_are_under_names_of_their_own(digits, ruler, cache):
    blurred = damaged(next(rung for rung in LADDER if rung.family == "blur"), digits.test, None, N)
    ours = reconstruction_quality(blurred, digits.test[:N], ruler, cache)
    samples = sample_metrics(blurred, digits.test[:N], ruler, cache)[:4]
    assert [m.metric for m in ours] == [f"reconstruction_{name}" for name in ("fid", "kid", "precision", "recall")]
    assert [m.value for m in ours] == [m.value for m in samples]
    assert [(m.unit, m.higher_is_better) for m in ours] == [(m.unit, m.higher_is_better) for m in samples]
    assert not any("pairing" in m.details for m in samples)


def test_dropping_five_classes_lowers_recall_and_not_precision(scored):
    whole, half = scored["real train"], scored["classes 5 of 10"]
    standard_error = (0.25 / N) ** 0.5
    assert half["recall"].value < whole["recall"].value - 0.2
    assert half["precision"].value > whole["precision"].value - 3 * standard_error
    assert half["inception_score"].value < 0.7 * whole["inception_score"].value
    assert half["sample_fid"].value > 10 * whole["sample_fid"].value
    assert half["kid"].value > whole["kid"].high


def test_every_value_tells_what_it_depends_on(scored, ruler):
    for measured in scored["real train"].values():
        assert (measured.unit, measured.higher_is_better) == (
            METRICS[measured.metric].unit,
            METRICS[measured.metric].higher_is_better,
        )
        assert measured.n == measured.details["n"] == measured.details["n_reference"] == N
        assert measured.details["extractor"] == "mnist-cnn-v1"
        assert measured.details["weights_sha256"] == ruler.weights_sha256
        assert measured.details["preprocessing"] == ruler.preprocessing
        assert measured.details["reference_split"] == "test"
        assert ("n = 500 < 2,000" in measured.note) == (measured.metric != "kid")  # which is unbiased
    assert scored["real train"]["kid"].details["subset"] == N // 2


def test_torch_fidelitys_value_stands_beside_ours(scored):
    for found in scored.values():
        fid = found["sample_fid"]
        assert fid.details["torch_fidelity_fid"] == pytest.approx(fid.value, rel=1e-6)


def test_the_distance_by_its_steps_equals_the_one_among_the_others(digits, ruler, cache, scored, labels):
    half = damaged(Rung("classes", "5 of 10", classes=5), digits.train, labels.train, N)
    assert distance(half, digits.test[:N], ruler, cache) == scored["classes 5 of 10"]["sample_fid"].value


def test_the_floor_takes_as_many_training_images_and_is_repeatable(digits, ruler, cache):
    floors = [fid_floor(digits.train, digits.test[:N], ruler, folder) for folder in (cache, None)]
    assert floors[0] == floors[1]
    assert floors[0].n == floors[0].details["n_reference"] == N
    assert 0 < floors[0].value < 2


def test_training_images_are_all_others_or_a_fixed_draw_of_them(digits, monkeypatch):
    everything = torch.cat([digits.train, digits.validation])
    assert torch.equal(training_images(digits.train, digits.validation), everything)
    monkeypatch.setattr(sample_quality, "MOST_TRAINING_IMAGES", 300)
    some = training_images(digits.train, digits.validation)
    assert torch.equal(some, training_images(digits.train, digits.validation))
    rows = {bytes(image.numpy()) for image in everything}
    drawn = {bytes(image.numpy()) for image in some}
    held_out = {bytes(image.numpy()) for image in digits.validation}
    assert len(some) == 300
    assert drawn <= rows
    assert 10 < len(drawn & held_out) < 60  # 400 of 4,000: 30 expected


def test_what_samples_are_compared_with_is_recorded(digits, ruler, cache):
    found = sample_metrics(digits.test[:N], digits.train[:N], ruler, cache, reference_split="train")
    floor = fid_floor(digits.test[:N], digits.train[: 2 * N], ruler, cache, reference_split="train")
    assert {one.details["reference_split"] for one in [*found, floor]} == {"train"}
    assert (floor.n, floor.details["n_reference"]) == (N, 2 * N)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_damage_is_further_away(digits, labels, ruler, cache, scored, family):
    sets = [damaged(rung, digits.train, labels.train, N) for rung in LADDER if rung.family == family]
    distances = [distance(images, digits.test[:N], ruler, cache) for images in sets]
    assert all(milder < harsher for milder, harsher in itertools.pairwise([undamaged(scored), *distances]))


def undamaged(scored):
    return scored["real train"]["sample_fid"].value


def test_too_few_images_are_one_line(digits, ruler):
    with pytest.raises(UserError, match="at least 10"):
        sample_metrics(digits.test[:9], digits.test, ruler)
    with pytest.raises(UserError, match="at least 10"):
        reconstruction_quality(digits.test[:9], digits.test[:9], ruler)
    with pytest.raises(UserError, match="at least 2"):
        distance(digits.test[:1], digits.test[:20], ruler)


def test_a_small_set_says_that_its_covariance_is_singular(digits, ruler, cache):
    fid, *_ = sample_metrics(digits.test[:100], digits.test[:N], ruler, cache)
    assert "128 feature dimensions" in fid.note


def test_every_metric_on_features_is_in_the_catalogue():
    assert set(feature_metrics()) <= set(METRICS)


def test_a_metric_of_two_sets_of_features_is_added_by_its_name(digits, ruler, cache, monkeypatch):
    """With an interval where the influences are known; of reconstructions where the catalogue has their name."""

    def value(a, b):
        return float(a.mean() - b.mean())

    def moved(a, b, paired):
        sides = [side.mean(dim=1) - side.mean() for side in (a, b)]
        return Influence(sides[0], -sides[1], paired)

    for name in ("shift", "reconstruction_shift", "bare"):
        monkeypatch.setitem(METRICS, name, Metric("", None, "difference of mean features"))
    monkeypatch.setitem(ON_FEATURES, "shift", OnFeatures(value, moved))
    monkeypatch.setitem(ON_FEATURES, "bare", OnFeatures(value))
    kept = {}
    images, reference = digits.train[:N], digits.test[:N]
    of_samples = {m.metric: m for m in sample_metrics(images, reference, ruler, cache, keep=kept.__setitem__)}
    a, b = (ruler.features(side).values for side in (images, reference))
    shift, bare = of_samples["shift"], of_samples["bare"]
    assert shift.value == bare.value == value(a, b)
    error = float(a.mean(dim=1).var() / N + b.mean(dim=1).var() / N) ** 0.5
    assert (shift.high - shift.low) / 2 == pytest.approx(1.96 * error, rel=1e-3)
    assert (bare.low, bare.high) == (None, None)
    assert {"shift"} == kept.keys() & {"shift", "bare"}
    found = [m.metric for m in reconstruction_quality(images, reference, ruler, cache)]
    assert found[4:] == ["reconstruction_shift"]
    assert {"shift", "bare", "reconstruction_shift"} <= set(feature_metrics())


def test_the_ladder_asks_for_what_it_needs(digits):
    with pytest.raises(UserError, match="class labels"):
        damaged(LADDER[-1], digits.train, None, 10)
    with pytest.raises(UserError, match="needs 5000 images"):
        damaged(LADDER[0], digits.train, None, 5000)


def test_the_bias_falls_with_n_and_both_tables_are_written(digits, ruler, scored):
    points = bias(ruler, digits)
    assert [n for n, _ in points] == [125, 250, 500, 1000]
    values = [value for _, value in points]
    assert values == sorted(values, reverse=True)
    assert f"| 1000 | {values[-1]:.4g} |" in bias_table({"mnist-cnn-v1": points})
    rows = [(label, list(found.values())) for label, found in scored.items()]
    table = ladder_table("mnist-cnn-v1", "mnist-5k", N, rows)
    assert f"| real train | {rows[0][1][0].value:.4g} | 1 |" in table


def test_the_generated_part_of_the_page_is_replaced_in_place():
    page = insert(
        "head\n<!-- generated by python -m benchmarks.metrics.ladder -->\nold\n<!-- end of the generated part -->\n",
        "new",
    )
    assert page.startswith("head")
    assert "new" in page
    assert "old" not in page
    assert insert(page, "new") == page
    with pytest.raises(UserError, match="marks"):
        insert("no marks", "new")


@pytest.mark.slow
def test_more_damage_is_further_away_on_clothing(tmp_path):
    data, classes, ruler = load("fashion-mnist"), load_labels("fashion-mnist"), open_extractor("fashion-mnist-cnn-v1")
    for family in FAMILIES:
        rungs = [Rung("real", "train"), *(rung for rung in LADDER if rung.family == family)]
        images = [damaged(rung, data.train, classes.train, 2000) for rung in rungs]
        distances = [distance(x, data.test[:2000], ruler, tmp_path) for x in images]
        assert torch.tensor(distances).diff().min() > 0, (family, distances)
