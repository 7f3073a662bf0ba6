"""The reference operations against closed forms, Monte Carlo, finite differences and sums over pixel levels."""

import itertools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED, GaussianForm
from kernels.reference.backend import REFERENCE
from kernels.reference.philox import normals

FORMS = {"plain": PLAIN, "soft clamped": SOFT_CLAMPED, "residual": RESIDUAL, "floor": GaussianForm(scale_floor=0.1)}
EXACT = 1e-12  # float64 against float64, sums of about a hundred terms
ORIGINAL = 1e-9  # recorded numbers have 16 digits
SEED = torch.tensor(2024)
ORIGINAL_NUMBERS = json.loads((Path(__file__).parents[2] / "data" / "logistic_mixture_original.json").read_text())

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def as_normal(mean: torch.Tensor, log_scale: torch.Tensor, form: GaussianForm) -> Normal:
    if form.soft_clamp is not None:
        mean, log_scale = (form.soft_clamp * torch.tanh(v / form.soft_clamp) for v in (mean, log_scale))
    return Normal(mean, log_scale.exp() + form.scale_floor)


def expected_pair(parameters: list[torch.Tensor], form: GaussianForm, with_prior: bool) -> tuple[Normal, Normal]:
    mean, log_scale, prior_mean, prior_log_scale = parameters
    if not with_prior:
        prior_mean, prior_log_scale = torch.zeros_like(mean), torch.zeros_like(mean)
    if form.residual:
        mean, log_scale = mean + prior_mean, log_scale + prior_log_scale
    return as_normal(mean, log_scale, form), as_normal(prior_mean, prior_log_scale, form)


@every_form
@pytest.mark.parametrize("with_prior", [False, True])
def test_draw_kl_and_log_ratio_are_those_of_torch_distributions(form, with_prior):
    parameters = [random(3, 4, 2, 2, seed=i) for i in range(4)]
    posterior, prior = expected_pair(parameters, form, with_prior)
    given = parameters if with_prior else [*parameters[:2], None, None]
    draw = REFERENCE.gaussian_sample_kl(*given, seed=SEED, group=1, form=form, log_ratio=True)
    noise = normals(SEED, 1, (3, 4, 2, 2), dtype=torch.float64)
    torch.testing.assert_close(draw.z, posterior.loc + posterior.scale * noise, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(draw.kl, kl_divergence(posterior, prior).flatten(1).sum(1), rtol=EXACT, atol=EXACT)
    ratio = (posterior.log_prob(draw.z) - prior.log_prob(draw.z)).flatten(1).sum(1)
    torch.testing.assert_close(draw.log_ratio, ratio, rtol=1e-10, atol=1e-10)


def test_kl_is_the_mean_log_ratio():
    samples = 20_000
    parameters = [value.expand(samples, 6) for value in (random(1, 6, seed=i) for i in range(4))]
    draw = REFERENCE.gaussian_sample_kl(*parameters, seed=SEED, group=0, log_ratio=True)
    error = draw.log_ratio.std() / math.sqrt(samples)
    assert abs(draw.log_ratio.mean() - draw.kl[0]) < 4 * error


def test_equal_distributions_cost_nothing():
    mean, log_scale = random(5, 8), random(5, 8, seed=1)
    draw = REFERENCE.gaussian_sample_kl(mean, log_scale, mean, log_scale, seed=SEED, group=0, log_ratio=True)
    assert torch.all(draw.kl == 0)
    assert draw.log_ratio.abs().max() < EXACT


@pytest.mark.parametrize("form", [SOFT_CLAMPED, RESIDUAL], ids=["soft clamped", "residual"])
def test_missing_prior_has_raw_values_zero(form):
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert REFERENCE.gaussian_sample_kl(zero, zero, None, None, seed=SEED, group=0, form=form).kl.abs().max() < EXACT
    prior = as_normal(zero, zero, form)
    assert prior.scale[0, 0] == 1.01


@every_form
@pytest.mark.parametrize("with_prior", [False, True])
def test_gradients_against_finite_differences(form, with_prior):
    parameters = [random(2, 3, seed=i).requires_grad_() for i in range(4 if with_prior else 2)]

    def outputs(*given):
        pair = given if with_prior else (*given, None, None)
        draw = REFERENCE.gaussian_sample_kl(*pair, seed=SEED, group=0, form=form, log_ratio=True)
        return draw.z, draw.kl, draw.log_ratio

    assert torch.autograd.gradcheck(outputs, parameters)
    assert torch.autograd.gradgradcheck(outputs, parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_types_of_the_draw(dtype):
    mean = random(2, 5).to(dtype)
    draw = REFERENCE.gaussian_sample_kl(mean, mean, None, None, seed=SEED, group=0, log_ratio=True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (draw.z.dtype, draw.kl.dtype, draw.log_ratio.dtype) == (dtype, wide, wide)


def test_draw_depends_on_the_image_alone():
    mean, log_scale = random(6, 4, 2, 2), random(6, 4, 2, 2, seed=1)
    whole = REFERENCE.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=3)
    part = REFERENCE.gaussian_sample_kl(mean[2:5], log_scale[2:5], None, None, seed=SEED, group=3, first_sample=2)
    assert torch.equal(part.z, whole.z[2:5])
    strided = mean.contiguous(memory_format=torch.channels_last)
    assert torch.equal(REFERENCE.gaussian_sample_kl(strided, log_scale, None, None, seed=SEED, group=3).z, whole.z)


def test_external_noise_replaces_the_keyed_one():
    mean, log_scale = random(2, 4), random(2, 4, seed=1)
    zero = torch.zeros((), dtype=mean.dtype).expand_as(mean)
    draw = REFERENCE.gaussian_sample_kl(mean, log_scale, None, None, seed=SEED, group=0, noise=zero)
    assert torch.equal(draw.z, mean)


@every_form
def test_temperature_multiplies_the_scale(form):
    mean, log_scale = random(2, 4), random(2, 4, seed=1)
    expected = as_normal(mean, log_scale, form)
    z = REFERENCE.gaussian_sample(mean, log_scale, seed=SEED, group=2, form=form, temperature=0.7)
    noise = normals(SEED, 2, (2, 4), dtype=torch.float64)
    torch.testing.assert_close(z, expected.loc + 0.7 * expected.scale * noise, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 2, 1, 1)])
def test_empty_batches_and_groups(shape):
    empty = torch.zeros(shape)
    draw = REFERENCE.gaussian_sample_kl(empty, empty, None, None, seed=SEED, group=0)
    assert draw.z.shape == shape
    assert torch.equal(draw.kl, torch.zeros(shape[0]))


def test_parameters_that_do_not_fit_are_refused():
    mean = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"log_scale: expected the mean's shape \(2, 3\), got \(2, 4\)"):
        REFERENCE.gaussian_sample_kl(mean, torch.zeros(2, 4), None, None, seed=SEED, group=0)
    with pytest.raises(ValueError, match="give both or neither"):
        REFERENCE.gaussian_sample_kl(mean, mean, mean, None, seed=SEED, group=0)


def mixture_parameters(channels: int, components: int, batch: int, seed: int = 0) -> torch.Tensor:
    parameters = random(batch, (10 if channels == 3 else 3) * components, 1, 1, seed=seed)
    return 1.5 * parameters - 0.5


def every_level(channels: int, bits: int) -> torch.Tensor:
    levels = torch.tensor(list(itertools.product(range(2**bits), repeat=channels)), dtype=torch.float64)
    return levels.view(-1, channels, 1, 1) / (2**bits - 1)


@pytest.mark.parametrize(
    ("channels", "bits", "components"), [(1, 1, 1), (1, 3, 4), (1, 8, 10), (3, 1, 2), (3, 2, 5), (3, 4, 3)]
)
@pytest.mark.parametrize("sharpness", [0.0, -4.0, -20.0])
def test_probabilities_sum_to_one(channels, bits, components, sharpness):
    x = every_level(channels, bits)
    parameters = mixture_parameters(channels, components, 1)
    scales = parameters[:, components:].view(1, channels, -1, components, 1, 1)[:, :, 1]
    scales += sharpness
    log_prob = REFERENCE.logistic_mixture_log_prob(parameters.expand(len(x), -1, 1, 1), x, bits=bits)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-11)


def test_original_edges_do_not_sum_to_one():
    x = every_level(1, 8)
    parameters = torch.tensor([0.0, 0.99, -3.0], dtype=torch.float64).view(1, 3, 1, 1).expand(256, -1, 1, 1)
    total = REFERENCE.logistic_mixture_log_prob(parameters, x, bits=8, published_edge=0.99).exp().sum()
    assert float(total) > 1.4  # level 254 takes the open upper bin as well as its own mass


def recipe(text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(text.encode()))


@pytest.mark.parametrize("case", ORIGINAL_NUMBERS, ids=lambda case: f"{case['components']} at {case['bits']} bits")
def test_original_edges_reproduce_recorded_numbers(case):
    k, bits = case["components"], case["bits"]
    parameters = 1.5 * recipe(f"unit:dmol{k}_{bits}").randn(2, 10 * k, 4, 4)
    parameters[:, k:] -= 0.5
    x = torch.tensor(case["levels"], dtype=torch.float64).view(2, 3, 4, 4) / (2**bits - 1)
    log_prob = REFERENCE.logistic_mixture_log_prob(torch.from_numpy(parameters), x, bits=bits, published_edge=0.99)
    expected = torch.tensor(case["log_prob"], dtype=torch.float64).view(2, 16).sum(1)
    torch.testing.assert_close(log_prob, expected, rtol=ORIGINAL, atol=ORIGINAL)


def test_edge_rules_agree_in_the_interior():
    parameters = mixture_parameters(3, 4, 1).expand(200, -1, 1, 1)
    x = torch.randint(1, 253, (200, 3, 1, 1), generator=torch.Generator().manual_seed(0)) / 255.0
    ours = REFERENCE.logistic_mixture_log_prob(parameters, x.double(), bits=8)
    theirs = REFERENCE.logistic_mixture_log_prob(parameters, x.double(), bits=8, published_edge=0.99)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # their density approximation below 1e-5


@pytest.mark.parametrize("edge", [None, 0.99, 0.999])
@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_gradients_against_finite_differences(channels, edge):
    x = torch.tensor([0, 1, 100, 254, 255], dtype=torch.float64).view(5, 1, 1, 1).expand(5, channels, 1, 1) / 255
    parameters = mixture_parameters(channels, 2, 5).requires_grad_()

    def log_prob(given):
        return REFERENCE.logistic_mixture_log_prob(given, x, bits=8, published_edge=edge)

    assert torch.autograd.gradcheck(log_prob, parameters)


def test_far_pixels_keep_finite_probabilities_and_gradients():
    parameters = torch.tensor([0.0, -1.0, -50.0]).view(1, 3, 1, 1).requires_grad_()
    log_prob = REFERENCE.logistic_mixture_log_prob(parameters, torch.full((1, 1, 1, 1), 0.5), bits=8)
    (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(gradient).all()
    assert gradient[0, 2] == 0  # clamped at -7


def test_mixture_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected \(2, 10 K, 4, 4\) for 3 channel"):
        REFERENCE.logistic_mixture_log_prob(torch.zeros(2, 12, 4, 4), torch.zeros(2, 3, 4, 4), bits=8)
    with pytest.raises(ValueError, match=r"expected \(B, 1, H, W\) or \(B, 3, H, W\)"):
        REFERENCE.logistic_mixture_log_prob(torch.zeros(2, 12, 4, 4), torch.zeros(2, 2, 4, 4), bits=8)


def norm_arguments(channels: int) -> list[torch.Tensor]:
    """Running mean, running variance, weight and bias."""
    mean, var, weight, bias = (random(channels, seed=seed) for seed in (5, 6, 7, 8))
    return [mean, var.square() + 0.5, weight, bias]


@pytest.mark.parametrize("training", [True, False])
def test_norm_swish_is_its_formula(training):
    x, (mean, var, weight, bias) = random(3, 4, 5, 2), norm_arguments(4)
    batch_mean, batch_var = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if training else (mean, var)
    normal = (x - batch_mean.view(-1, 1, 1)) / (batch_var.view(-1, 1, 1) + 1e-3).sqrt()
    expected = normal * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    moved = 0.7 * mean + 0.3 * batch_mean, 0.7 * var + 0.3 * x.var((0, 2, 3))
    kept = mean.clone(), var.clone()
    given = {"training": training, "momentum": 0.3, "eps": 1e-3}
    plain = REFERENCE.norm_swish(x, mean.clone(), var.clone(), weight, bias, activation="none", **given)
    y = REFERENCE.norm_swish(x, mean, var, weight, bias, **given)
    torch.testing.assert_close(plain, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(y, expected * torch.sigmoid(expected), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close((mean, var), moved if training else kept, rtol=EXACT, atol=EXACT)


def test_repeats_count_as_pixels_repeated_before():
    x, given = random(2, 3, 2, 2), norm_arguments(3)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    before, after = ([tensor.clone() for tensor in given] for _ in range(2))
    expected = REFERENCE.norm_swish(repeated, *before, training=True)
    y = REFERENCE.norm_swish(x, *after, training=True, repeats=4)
    torch.testing.assert_close(y.repeat_interleave(2, 2).repeat_interleave(2, 3), expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(after, before, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("training", [True, False])
def test_norm_swish_gradients(training):
    x, (mean, var, weight, bias) = random(2, 3, 2, 2), norm_arguments(3)

    def call(x, weight, bias):
        return REFERENCE.norm_swish(x, mean.clone(), var.clone(), weight, bias, training=training, repeats=4)

    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in (x, weight, bias)])
