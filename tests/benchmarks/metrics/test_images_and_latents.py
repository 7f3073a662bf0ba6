import math

import numpy as np
import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.metrics.latents import LatentUsage, collapsed_groups, latent_metrics
from benchmarks.metrics.reconstruction import mse_per_image, psnr_per_image, reconstruction_metrics, values_per_image
from benchmarks.records.catalogue import METRICS, dash, measurement
from benchmarks.records.uncertainty import bootstrap_interval, over_seeds, per_image
from kernels.ops import PLAIN
from models.output import LatentGroup

EXACT = 1e-12  # float64 sums in another order
GENERATOR = torch.Generator().manual_seed(3)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


# Reconstruction


def test_mse_and_psnr_of_a_known_error():
    originals = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    off = originals.clone()
    off[0] += 51  # a fifth of the range everywhere
    off[1, 0, 0, 0] = 255  # one value of 48
    assert mse_per_image(off, originals).tolist() == pytest.approx([0.04, 1 / 48])
    assert psnr_per_image(off, originals).tolist() == pytest.approx([-10 * math.log10(0.04), 10 * math.log10(48)])


def test_errors_below_zero_do_not_wrap_around():
    low, high = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert mse_per_image(low, high).item() == mse_per_image(high, low).item() == 1.0
    assert psnr_per_image(low, high).item() == 0.0


def test_a_perfect_copy_has_a_finite_psnr_above_every_other():
    original = torch.randint(0, 255, (1, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
    nearly = original.clone()
    nearly[0, 0, 0, 0] += 1
    perfect = psnr_per_image(original, original).item()
    assert math.isfinite(perfect)
    assert perfect == pytest.approx(psnr_per_image(nearly, original).item())


def test_reconstruction_metrics_carry_bootstrap_intervals():
    originals = torch.randint(0, 256, (50, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
    other = torch.randint(0, 256, (50, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
    first, again = (reconstruction_metrics(values_per_image(other, originals), seed=4) for _ in range(2))
    assert first == again
    assert [m.metric for m in first] == ["mse", "psnr"]
    for found in first:
        assert found.low < found.value < found.high
        assert (found.n, found.spread_kind) == (50, "bootstrap 95%")


@pytest.mark.parametrize("other", [torch.zeros(2, 1, 4, 5, dtype=torch.uint8), torch.zeros(2, 1, 4, 4)])
def test_images_that_do_not_pair_are_refused(other):
    with pytest.raises(ValueError, match="uint8 images of one shape"):
        mse_per_image(other, torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


# Uncertainty


def test_the_interval_matches_the_normal_one_for_many_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.exponential(1.0, 150), seed=trial, resamples=300)
        hits += low <= 1.0 <= high
    assert 0.87 <= hits / 200 <= 0.99


def test_the_interval_is_keyed_by_its_seed():
    values = np.arange(30.0)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(np.full(9, 4.0), seed=0) == (4.0, 4.0)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]]])
def test_one_image_has_no_interval(values):
    with pytest.raises(UserError, match="at least 2"):
        bootstrap_interval(values, seed=0)


def test_seeds_give_mean_and_sample_deviation():
    assert over_seeds([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
    assert over_seeds([1.5]) == (1.5, None)
    with pytest.raises(UserError, match="one value per seed"):
        over_seeds([])


def test_measurements_take_unit_and_direction_from_the_catalogue():
    found = per_image("elbo", torch.tensor([-1.0, -3.0]), seed=0, details={"likelihood": "bernoulli"})
    assert (found.value, found.unit, found.higher_is_better, found.n) == (-2.0, "nats", True, 2)
    assert found.details == {"likelihood": "bernoulli", "standard_error": pytest.approx(1.0)}  # sqrt(2) / sqrt(2)
    assert dash("kid", "no prior").value is None
    assert dash("kid", "no prior").note == "no prior"
    with pytest.raises(UserError, match="did you mean 'mse'"):
        measurement("mes", 1.0)
    assert all(metric.description for metric in METRICS.values())


# Latents


def group(mean, log_scale):
    """A latent group with a standard-normal prior; its rate is the closed form, written out again."""
    rate = 0.5 * (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1)
    return LatentGroup((mean, log_scale), None, PLAIN, mean, rate.flatten(1).sum(dim=1))


@pytest.fixture
def hierarchy():
    """40 images: a first group of 3 units, one of them constant but costly, and later groups used and unused."""
    mean = normal(40, 3)
    mean[:, 2] = 1.5  # costs rate, carries nothing
    later = torch.zeros(40, 2, 2, 2, dtype=torch.float64)
    later[:, 0, 0, 0] = 0.5  # one unit of 8 pays rate
    idle = torch.full((40, 1, 2, 2), 1e-3, dtype=torch.float64)
    return [group(mean, torch.full_like(mean, -1.0)), group(later, torch.zeros_like(later)), group(idle, 0 * idle)]


def usage_of(groups, sizes):
    found = LatentUsage()
    for part in zip(*(zip(*(t.split(sizes) for t in g.raw_posterior), strict=True) for g in groups), strict=True):
        found.update([group(*raw) for raw in part])
    return found


def usage(groups, sizes):
    return usage_of(groups, sizes).result()


def test_active_units_follow_the_variance_first_and_the_rate_later(hierarchy):
    infos = usage(hierarchy, [40])
    assert [(i.channels, i.height, i.width, i.units) for i in infos] == [(3, 1, 1, 3), (2, 2, 2, 8), (1, 2, 2, 4)]
    assert [i.active_units for i in infos] == [2, 1, 0]
    for info, member in zip(infos, hierarchy, strict=True):
        assert info.rate == pytest.approx(member.rate.mean().item(), rel=EXACT)


def test_a_channel_is_dead_where_none_of_its_units_is_active(hierarchy):
    """And the rate's spread is its standard deviation over images, in any batches."""
    for sizes in ([40], [7, 32, 1]):
        groups = usage_of(hierarchy, sizes).groups()
        assert [g.info.active_units for g in groups] == [2, 1, 0]
        assert [(g.active_channels, g.dead_channels) for g in groups] == [((0, 1), (2,)), ((0,), (1,)), ((), (0,))]
        for group, member in zip(groups, hierarchy, strict=True):
            assert group.rate_sd == pytest.approx(member.rate.std().item(), rel=EXACT)


def test_usage_does_not_depend_on_the_batches(hierarchy):
    whole, parts = usage(hierarchy, [40]), usage(hierarchy, [7, 32, 1])
    for a, b in zip(whole, parts, strict=True):
        assert a.active_units == b.active_units
        assert a.rate == pytest.approx(b.rate, rel=EXACT)


@pytest.mark.parametrize(("spread", "active"), [(0.11, 1), (0.09, 0)])
def test_the_variance_threshold_is_a_hundredth(spread, active):
    values = spread * torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(500).unsqueeze(1)
    assert usage([group(values, torch.zeros_like(values))], [300, 700])[0].active_units == active


def test_a_collapsed_group_is_named(hierarchy):
    infos = usage(hierarchy, [40])
    assert collapsed_groups(infos) == ["group 3 (1x2x2)"]
    active, collapsed = latent_metrics(infos, n=40)
    assert (active.value, active.details["units"], active.n) == (3.0, 15, 40)
    assert (collapsed.value, collapsed.note) == (1.0, "collapsed: group 3 (1x2x2)")


def test_a_model_without_latents_has_no_usage():
    found = LatentUsage()
    found.update([])
    assert found.result() == []
    assert latent_metrics([], n=10) == []
