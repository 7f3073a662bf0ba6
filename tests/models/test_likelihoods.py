"""Likelihoods: probabilities sum to one, means and samples agree with them."""

import math

import pytest
import torch

from kernels.reference.backend import REFERENCE
from models.likelihoods import LIKELIHOODS, BernoulliSpec, GaussianSpec, LogisticMixtureSpec, SoftClampedNormalSpec

SUM_TO_ONE = 1e-9  # float64 over at most 256 levels
DRAWS = 20_000


def parameters(spec, channels, shape=(2, 2), batch=1, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(batch, spec.parameter_channels(channels), *shape, generator=gen, dtype=torch.float64)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("mixtures", [1, 3, 10])
def test_grey_mixture_sums_to_one_over_levels(bits, mixtures):
    spec = LogisticMixtureSpec(mixtures, bits)
    one = parameters(spec, 1, (1, 1))
    levels = torch.arange(2**bits, dtype=torch.float64).reshape(-1, 1, 1, 1) / (2**bits - 1)
    likelihood = spec.build(one.expand(len(levels), -1, -1, -1), REFERENCE)
    assert float(likelihood.log_prob(levels).exp().sum()) == pytest.approx(1, abs=SUM_TO_ONE)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_colour_mixture_sums_to_one_over_all_colours(bits):
    spec = LogisticMixtureSpec(2, bits)
    one = parameters(spec, 3, (1, 1))
    axis = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    colours = torch.cartesian_prod(axis, axis, axis).reshape(-1, 3, 1, 1)
    likelihood = spec.build(one.expand(len(colours), -1, -1, -1), REFERENCE)
    assert float(likelihood.log_prob(colours).exp().sum()) == pytest.approx(1, abs=SUM_TO_ONE)


def test_original_edges_do_not_sum_to_one():
    """The original's right edge also catches value 254 when a component sits at 0.99."""
    spec = LogisticMixtureSpec(1, 8, original_edges=True)
    levels = torch.arange(256, dtype=torch.float64).reshape(-1, 1, 1, 1) / 255
    totals = []
    for log_scale in (-7.0, -6.0, -5.0, -4.0):
        one = torch.tensor([0.0, 0.99, log_scale], dtype=torch.float64).reshape(1, 3, 1, 1)
        totals.append(float(spec.build(one.expand(256, -1, -1, -1), REFERENCE).log_prob(levels).exp().sum()))
    assert max(totals) > 1.2


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_samples_are_levels_and_follow_the_probabilities(channels):
    """Frequencies of 2-bit levels of the first channel match the summed probabilities."""
    spec = LogisticMixtureSpec(3, 2)
    one = parameters(spec, channels, (1, 1), seed=4)
    gen = torch.Generator().manual_seed(0)
    drawn = spec.build(one.expand(DRAWS, -1, -1, -1), REFERENCE).sample(gen)
    levels = drawn * 3
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-12)
    axis = torch.arange(4, dtype=torch.float64) / 3
    colours = torch.cartesian_prod(*[axis] * channels).reshape(-1, channels, 1, 1)
    probabilities = spec.build(one.expand(len(colours), -1, -1, -1), REFERENCE).log_prob(colours).exp()
    weights = 4 ** torch.arange(channels - 1, -1, -1)
    index = (levels.flatten(1).round().long() * weights).sum(1)
    found = torch.bincount(index, minlength=4**channels).double() / DRAWS
    error = (probabilities * (1 - probabilities) / DRAWS).sqrt().clamp_min(1e-4)
    assert float(((found - probabilities) / error).abs().max()) < 5


def test_grey_mixture_mean_is_the_mean_of_the_clamped_logistic():
    """At 8 bits the mean differs from that of the discretised samples by no more than rounding."""
    spec = LogisticMixtureSpec(3, 8)
    one = parameters(spec, 1, (1, 1), seed=2)
    levels = torch.arange(256, dtype=torch.float64).reshape(-1, 1, 1, 1) / 255
    probabilities = spec.build(one.expand(256, -1, -1, -1), REFERENCE).log_prob(levels).exp()
    mean = float((probabilities * levels.flatten()).sum())
    assert float(spec.build(one, REFERENCE).mean()) == pytest.approx(mean, abs=0.5 / 255)


def test_colour_mixture_mean_follows_the_samples():
    spec = LogisticMixtureSpec(3, 8)
    one = parameters(spec, 3, (1, 1), seed=1) * 0.3
    one[:, 3:] -= 1.0  # narrow scales, means away from the clamp
    gen = torch.Generator().manual_seed(0)
    samples = spec.build(one.expand(DRAWS, -1, -1, -1), REFERENCE).sample(gen)
    gap = (samples.mean(0) - spec.build(one, REFERENCE).mean()[0]).abs()
    assert float((gap / (samples.std(0) / math.sqrt(DRAWS) + 2 / 255)).max()) < 5


@pytest.mark.parametrize(("original", "narrower"), [(False, True), (True, False)])
def test_low_temperature_narrows_pixels_unless_the_originals_rule_is_asked_for(original, narrower):
    spec = LogisticMixtureSpec(1, 8, original_temperature=original)
    one = torch.tensor([0.0, 0.1, -3.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    likelihood = spec.build(one.expand(DRAWS, -1, -1, -1), REFERENCE)
    plain, cold = (likelihood.sample(torch.Generator().manual_seed(0), t).std() for t in (1.0, 0.5))
    assert (cold < 0.75 * plain) == narrower
    assert (cold > 1.25 * plain) != narrower


def test_bernoulli_sums_to_one_and_refuses_grey():
    likelihood = BernoulliSpec().build(torch.randn(1, 1, 1, 1, dtype=torch.float64), REFERENCE)
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert float(likelihood.log_prob(zero).exp() + likelihood.log_prob(one).exp()) == pytest.approx(1)
    with pytest.raises(ValueError, match="binarise"):
        likelihood.log_prob(zero + 0.5)


def test_fixed_gaussian_is_the_squared_error():
    mean, x = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    likelihood = GaussianSpec(0.5).build(mean, REFERENCE)
    constant = 9 * (math.log(0.5) + 0.5 * math.log(2 * math.pi))
    expected = -((x - mean) ** 2).flatten(1).sum(1) / (2 * 0.25) - constant
    torch.testing.assert_close(likelihood.log_prob(x), expected)


def test_learned_gaussian_matches_torch():
    spec = GaussianSpec("learned")
    raw = parameters(spec, 1).float()
    x = torch.rand(1, 1, 2, 2)
    mean, log_scale = raw.chunk(2, dim=1)
    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x).sum()
    torch.testing.assert_close(spec.build(raw, REFERENCE).log_prob(x)[0], expected)


def test_soft_clamped_normal_is_a_density_of_the_rescaled_image():
    spec = SoftClampedNormalSpec()
    raw = parameters(spec, 1)
    x = torch.rand(1, 1, 2, 2, dtype=torch.float64)
    mean, log_scale = (5 * torch.tanh(v / 5) for v in raw.chunk(2, dim=1))
    expected = torch.distributions.Normal(mean, log_scale.exp() + 0.01).log_prob(2 * x - 1).sum()
    torch.testing.assert_close(spec.build(raw, REFERENCE).log_prob(x)[0], expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_means_and_samples_are_images(name, channels):
    spec = LIKELIHOODS[name]()
    likelihood = spec.build(parameters(spec, channels, (4, 5), batch=2).float(), REFERENCE)
    gen = torch.Generator().manual_seed(0)
    assert likelihood.mean().shape == likelihood.sample(gen).shape == (2, channels, 4, 5)
    assert bool(((likelihood.mean() >= 0) & (likelihood.mean() <= 1)).all())


@pytest.mark.parametrize(
    "spec", [lambda: GaussianSpec(0), lambda: LogisticMixtureSpec(0), lambda: LogisticMixtureSpec(3, 0)]
)
def test_impossible_settings_are_refused(spec):
    with pytest.raises(ValueError, match="expected"):
        spec()


def test_mixture_needs_one_or_three_channels():
    with pytest.raises(ValueError, match="1 or 3"):
        LogisticMixtureSpec().parameter_channels(2)
