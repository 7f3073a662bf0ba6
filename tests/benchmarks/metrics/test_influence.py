"""Intervals of values on features: derivatives in closed form, what pairs share, shares near 0 and 1, coverage."""

import math

import pytest
import torch

from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.metrics.influence import (
    Influence,
    of_frechet,
    of_inception_score,
    of_kernel,
    of_precision,
    of_recall,
)
from benchmarks.records.uncertainty import normal_interval, share_interval

N, DIMS = 400, 6
STEP = 1e-4  # of a weight: derivatives by differences are right to about its size
FOUR_DEVIATIONS = 4.0  # of a binomial count: fails once in 16,000 seeds, and the seeds are fixed


def sides(n=N, seed=0, scale=0.7, shift=0.3):
    source = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, DIMS, generator=source, dtype=torch.float64) for _ in range(2))
    return a * scale + shift, b * torch.linspace(0.5, 2, DIMS, dtype=torch.float64)


def weighted(features, weights):
    """Statistics of features under weights that sum to 1."""
    mean = weights @ features
    centred = features - mean
    return FeatureStatistics(mean, (centred * weights[:, None]).T @ centred, len(features))


@pytest.mark.parametrize("side", [0, 1])
def test_an_influence_is_the_derivative_by_the_images_weight(side):
    a, b = sides()
    found = of_frechet(a, b)
    flat = torch.full((N,), 1 / N, dtype=torch.float64)
    whole = [weighted(a, flat), weighted(b, flat)]
    before = frechet_distance(*whole)
    for image in (0, 17):
        heavier = flat * (1 - STEP)
        heavier[image] += STEP
        changed = [*whole]
        changed[side] = weighted((a, b)[side], heavier)
        slope = (frechet_distance(*changed) - before) / STEP
        influence = (found.samples, found.reference)[side][image]
        assert slope == pytest.approx(float(influence), rel=0.05, abs=0.01)


def test_the_kernel_distances_influences_are_those_of_its_sums():
    a, b = sides(n=30)

    def value(a, b):
        kernels = [(x @ y.T / DIMS + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
        own = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
        return float(own[0] + own[1] - 2 * kernels[2].mean())

    found = of_kernel(a, b)
    left_out = torch.tensor([value(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(len(a))], dtype=torch.float64)
    jackknife = (len(a) - 1) * (left_out.mean() - left_out)
    torch.testing.assert_close(found.samples, jackknife, rtol=0.1, atol=0.1 * float(jackknife.abs().max()))


def test_equal_sets_have_no_spread():
    a, _ = sides()
    assert of_frechet(a, a.clone(), paired=True).standard_error == pytest.approx(0, abs=1e-9)


def test_pairs_that_cancel_vary_less_than_their_sides():
    a, b = sides()
    near = a + 0.1 * b
    assert of_frechet(a, near, paired=True).standard_error < 0.5 * of_frechet(a, near).standard_error


def test_shares_vary_as_counts_do_and_more():
    a, b = sides(scale=1.0, shift=0.0)
    for found in (of_precision(a, b), of_recall(a, b)):
        inside, centres = found.by_image if found.samples.unique().numel() == 2 else reversed(found.by_image)
        share = 1 - float(inside.max())
        assert 0 < share < 1
        counted = share * (1 - share) / N
        assert found.standard_error**2 == pytest.approx(counted * N / (N - 1) + float(centres.var()) / N)
        assert centres.var() > 0


def share(points, centres):
    """Of points in the balls of centres, by the definition."""
    radii = exact(centres, centres).kthvalue(4).values
    return (exact(points, centres) <= radii).any(dim=1).double().mean()


def exact(a, b):
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("n", "dims"), [(60, 2), (60, DIMS), (12, 2)])
def test_a_centres_influence_is_what_leaving_it_out_changes(n, dims, paired):
    a, b = (side[:, :dims] for side in sides(n=n, scale=1.5, shift=0.0))
    a = b + 0.5 * a if paired else a
    kept = [torch.arange(n) != i for i in range(n)]
    changed = torch.stack([share(a, b) - share(a[keep] if paired else a, b[keep]) for keep in kept])
    found = of_precision(a, b, paired)
    expected = (changed - changed.mean()) * (n - 1)
    influence = found.by_image[0] if paired else found.reference
    assert influence.std() > 0
    torch.testing.assert_close(influence, expected, rtol=0, atol=1e-9)


def test_an_influence_is_of_test_images_where_there_are_some():
    a, b = sides(n=40)
    assert torch.equal(of_precision(a, b).by_reference, of_precision(a, b).reference)
    assert of_inception_score(a, 2.0).by_reference is None
    assert torch.equal(of_recall(a, b).by_reference, of_recall(a, b).reference)
    assert of_precision(a, b, paired=True).by_reference is not None
    both = of_frechet(a, b, paired=True)
    assert torch.equal(both.by_reference, both.samples + both.reference)


def test_a_constant_feature_moves_nothing():
    a, b = sides()
    constant = torch.ones(N, 1, dtype=torch.float64)
    with_it = of_frechet(torch.cat([a, constant], 1), torch.cat([b, constant], 1))
    assert with_it.standard_error == pytest.approx(of_frechet(a, b).standard_error)
    assert of_frechet(constant, constant + 1).standard_error == 0


def test_the_fewest_images_have_intervals():
    a, b = sides(n=10)
    for way in (of_frechet, of_kernel, of_precision, of_recall):
        assert math.isfinite(way(a, b).standard_error)


def test_an_interval_of_a_share_stays_within_its_bounds():
    for share, error in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.02), (0.99, 0.01), (0.5, 0.05)):
        low, high = share_interval(share, error, 100)
        assert 0 <= low <= share <= high <= 1
        assert high > low
    normal = normal_interval(0.5, 0.01)
    assert share_interval(0.5, 0.01, 10_000) == (
        pytest.approx(normal.low, abs=1e-3),
        pytest.approx(normal.high, abs=1e-3),
    )


def covered(draw, value, influence, draws):
    """How many of the draws' 95 % intervals hold the mean of all values."""
    values, errors = [], []
    for seed in range(draws):
        pair = draw(seed)
        values.append(value(*pair))
        errors.append(influence(*pair).standard_error)
    mean = sum(values) / draws
    return sum(abs(v - mean) < 1.96 * error for v, error in zip(values, errors, strict=True))


@pytest.mark.parametrize("way", ["frechet", "score"])
def test_intervals_hold_what_they_should(way):
    """Of 200 draws from known distributions; other metrics and sizes: tests/helpers/interval_coverage.py."""
    draws = 200
    least = 0.95 * draws - FOUR_DEVIATIONS * (draws * 0.95 * 0.05) ** 0.5
    if way == "frechet":

        def distance(a, b):
            return frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))

        assert covered(lambda seed: sides(seed=seed), distance, of_frechet, draws) >= least
        return

    def score(logits):
        p = logits.softmax(1)
        return float((p * (p / p.mean(0)).log()).sum(1).mean().exp())

    def draw(seed):
        return (sides(seed=seed)[1],)

    assert covered(draw, score, lambda logits: of_inception_score(logits, score(logits)), draws) >= least


def test_intervals_are_no_wider_than_needed():
    """The mean standard error is the values' own deviation within a quarter: 200 draws know it to a twentieth."""
    values, errors = [], []
    for seed in range(200):
        a, b = sides(seed=seed)
        values.append(frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)))
        errors.append(of_frechet(a, b).standard_error)
    deviation = float(torch.tensor(values).std())
    assert sum(errors) / len(errors) == pytest.approx(deviation, rel=0.25)


def test_influences_of_two_sides_add_up():
    ones = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert Influence(ones, ones).standard_error == pytest.approx(2**0.5)
    assert Influence(ones, -ones, paired=True).standard_error == 0
    assert Influence(ones, None, besides=3.0).standard_error == pytest.approx(2.0)
