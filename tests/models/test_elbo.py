"""The ELBO engine against models whose evidence is known."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from kernels.reference.backend import REFERENCE
from models.elbo import ELBOTerms, Objective, balance, bits_per_dim, importance_weighted, terms
from models.likelihoods import GaussianSpec
from models.output import Draw, Encoding, ImageShape, LatentShape, Model, draw_group

EXACT = 1e-9  # float64, sums of a few dozen terms
IMAGE = ImageShape(1, 2, 3)
NOISE = 0.7


class LinearGaussian(Model):
    """x = W z + NOISE e with orthogonal columns of W: the posterior is diagonal and the evidence is known.

    `stretch` multiplies the posterior's scale; 1 is exact.
    """

    def __init__(self, stretch=1.0):
        super().__init__(IMAGE, GaussianSpec(NOISE), REFERENCE)
        gen = torch.Generator().manual_seed(3)
        basis = torch.linalg.qr(torch.randn(IMAGE.dims, 4, generator=gen, dtype=torch.float64)).Q
        self.weight = nn.Parameter(basis * torch.tensor([2.0, 1.5, 1.0, 0.5], dtype=torch.float64))
        self.stretch = stretch

    @property
    def latent_shapes(self):
        return (LatentShape(4, 1, 1),)

    def encode(self, x, draw):
        precision = 1 + self.weight.square().sum(0) / NOISE**2
        mean = (x.flatten(1) @ self.weight / NOISE**2) / precision
        log_scale = (-0.5 * precision.log() + math.log(self.stretch)).expand_as(mean)
        shape = (len(x), 4, 1, 1)
        group = draw_group(self.ops, draw, 0, (mean.reshape(shape), log_scale.reshape(shape)), None)
        return Encoding(group.z, (group,))

    def decode_parameters(self, state):
        return (state.flatten(1) @ self.weight.T).unflatten(1, (IMAGE.channels, IMAGE.height, IMAGE.width))

    def evidence(self, x):
        covariance = self.weight @ self.weight.T + NOISE**2 * torch.eye(IMAGE.dims, dtype=torch.float64)
        zero = torch.zeros(IMAGE.dims, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x.flatten(1)).detach()


@pytest.fixture
def images():
    gen = torch.Generator().manual_seed(0)
    return torch.randn(400, 1, 2, 3, generator=gen, dtype=torch.float64)


def draw(seed=11):
    return Draw(torch.tensor(seed, dtype=torch.int64))


def test_bound_is_tight_when_the_posterior_is_exact(images):
    model = LinearGaussian()
    bounds = importance_weighted(model, images, draw(), 3)
    torch.testing.assert_close(bounds.iwae, model.evidence(images), rtol=0, atol=EXACT)
    torch.testing.assert_close(bounds.elbo_sampled, model.evidence(images), rtol=0, atol=EXACT)


def test_analytic_elbo_estimates_the_evidence_when_the_posterior_is_exact(images):
    model = LinearGaussian()
    gap = importance_weighted(model, images, draw(), 50).elbo - model.evidence(images)
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / math.sqrt(len(gap))


def test_bounds_are_ordered_and_reach_for_the_evidence(images):
    """ELBO <= IWAE(5) <= IWAE(50) <= log p(x) within 3 standard errors, and strictly ordered for a poor posterior."""
    model = LinearGaussian(stretch=1.6)
    evidence = model.evidence(images)
    five, fifty = (importance_weighted(model, images, draw(), k) for k in (5, 50))
    ladder = [five.elbo, five.iwae, fifty.iwae, evidence]
    for low, high in itertools.pairwise(ladder):
        gap = high - low
        assert float(gap.mean()) > -3 * float(gap.std()) / math.sqrt(len(gap))
    means = [float(value.mean()) for value in ladder]
    assert means == sorted(means)
    assert means[0] < means[-1] - 0.1


def test_every_image_obeys_jensen(images):
    bounds = importance_weighted(LinearGaussian(stretch=2.0), images, draw(), 7)
    assert bool((bounds.elbo_sampled <= bounds.iwae + EXACT).all())


def test_one_sample_bound_is_the_sampled_elbo(images):
    bounds = importance_weighted(LinearGaussian(stretch=2.0), images, draw(), 1)
    torch.testing.assert_close(bounds.iwae, bounds.elbo_sampled, rtol=0, atol=EXACT)


def test_bounds_do_not_depend_on_the_batch(images):
    model = LinearGaussian(stretch=1.3)
    whole = importance_weighted(model, images, draw(), 4)
    halves = [importance_weighted(model, part, dataclasses.replace(draw(), first_sample=start), 4)
              for start, part in ((0, images[:150]), (150, images[150:]))]  # fmt: skip
    torch.testing.assert_close(torch.cat([h.iwae for h in halves]), whole.iwae, rtol=0, atol=EXACT)


def test_too_few_draws_are_refused(images):
    with pytest.raises(ValueError, match="k >= 1"):
        importance_weighted(LinearGaussian(), images, draw(), 0)


def test_terms_are_unweighted_nats(images):
    model = LinearGaussian()
    output = model(images, draw())
    found = terms(output, images)
    torch.testing.assert_close(found.elbo, output.likelihood.log_prob(images) - output.groups[0].rate)
    assert found.rates.shape == (len(images), 1)
    assert found.resolutions == ((1, 1),)


def make_terms(rates, resolutions):
    rates = torch.tensor(rates, dtype=torch.float64).expand(5, -1)
    return ELBOTerms(torch.full((5,), 100.0, dtype=torch.float64), rates, resolutions)


def test_loss_is_the_negative_elbo_after_warm_up():
    example = make_terms([3.0, 5.0, 9.0], ((2, 2), (4, 4), (4, 4)))
    loss = Objective(kl_warmup=0.3, balancing="square").loss(example, 0.3)
    torch.testing.assert_close(loss, -example.elbo.mean())


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1e-4), (0.1, 1e-4), (0.25, 0.5), (0.4, 1.0), (1.0, 1.0)])
def test_warm_up_is_linear_after_its_constant_part(progress, weight):
    assert Objective(kl_constant=0.1, kl_warmup=0.3).kl_weight(progress) == pytest.approx(weight)


def test_beta_weights_the_rate():
    example = make_terms([4.0], ((1, 1),))
    assert float(Objective(beta=2.5, kl_warmup=0.0).loss(example, 0.0)) == pytest.approx(100 + 2.5 * 4)


def test_free_bits_floor_each_group():
    example = make_terms([0.2, 7.0], ((2, 2), (4, 4)))
    assert float(Objective(kl_warmup=0.0, free_nats=1.5).loss(example, 0.0)) == pytest.approx(100 + 1.5 + 7)


def test_square_balancing_follows_its_formula():
    """alpha = 4^i / groups at the i-th resolution from the coarsest; shares are normalised to mean 1."""
    resolutions = ((2, 2), (4, 4), (4, 4))
    rates = torch.tensor([[3.0, 5.0, 9.0]], dtype=torch.float64)
    share = torch.tensor([3.01 / 1, 5.01 / 2, 9.01 / 2], dtype=torch.float64)
    torch.testing.assert_close(balance(rates, resolutions, "square"), share / share.mean())


def test_balancing_passes_no_gradient():
    rates = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert not balance(rates, ((2, 2), (4, 4)), "linear").requires_grad


def test_bits_per_dim_of_a_uniform_image():
    """An image of D values, each uniform over 256 levels, costs 8 bits per dimension."""
    elbo = torch.tensor([-12 * math.log(256)])
    assert float(bits_per_dim(elbo, 12)) == pytest.approx(8)


@pytest.mark.parametrize("field", ["beta", "kl_warmup", "free_nats"])
def test_negative_settings_are_refused(field):
    with pytest.raises(ValueError, match=field):
        Objective(**{field: -1.0})
