"""The plain NVAE, yardstick of the timings: values, gradients, statistics and steps equal those of the fast one."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed.baseline.distributions import PlainLogisticMixture
from benchmarks.speed.baseline.layers import effective_weight
from benchmarks.speed.baseline.nvae import PlainNVAE, plain_nvae
from benchmarks.speed.baseline.training import PlainTraining, StackedAdamax
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, importance_weighted, terms
from models.likelihoods import BernoulliSpec, DiscretizedLogisticMixture, GaussianSpec, LogisticMixtureSpec
from models.nvae import NVAE, NVAEConfig, ResidualVAE, ResidualVAEConfig
from models.nvae.config import ARCHITECTURES
from models.output import Draw, ImageShape

TOLERANCE = 1e-9  # float64: sums of thousands of terms in another order, through a few dozen layers
KL_WEIGHT = 0.5
GREY, COLOUR = ImageShape(1, 12, 12), ImageShape(3, 16, 8)
MIXTURE = LogisticMixtureSpec(2, original_edges=True)
CONFIG = NVAEConfig(
    groups_fine_to_coarse=(2, 1),
    latent_channels=3,
    channels_encoder=8,
    channels_decoder=16,
    channel_cap=None,
    preprocess_blocks=1,
    preprocess_cells=2,
    postprocess_cells=2,
    arch="res_mbconv",
    residual_gain=0.1,
    weight_norm=True,
    pad=2,
    norm_penalty=0.01,
)


def vary(**fields: object) -> NVAEConfig:
    return dataclasses.replace(CONFIG, **fields)  # type: ignore[arg-type]


SHAPES = {
    "colour": (CONFIG, COLOUR, MIXTURE),
    "three resolutions, odd channels": (
        vary(groups_fine_to_coarse=(4, 2, 1), channels_encoder=3, channels_decoder=5, preprocess_blocks=0, pad=None),
        ImageShape(1, 14, 10),
        BernoulliSpec(),
    ),
    "single group": (vary(groups_fine_to_coarse=(1,), channels_decoder=8), GREY, BernoulliSpec()),
    "nothing optional": (
        vary(
            weight_norm=False,
            squeeze_excitation=False,
            residual_posterior=False,
            norm_penalty=0.0,
            channel_cap=16,
            cells_per_group_encoder=2,
            cells_per_group_decoder=2,
        ),
        COLOUR,
        MIXTURE,
    ),
}
VARIANTS = SHAPES | {arch: (vary(arch=arch), GREY, BernoulliSpec()) for arch in ARCHITECTURES}


def build(name: str = "colour", training: bool = True) -> tuple[NVAE, PlainNVAE]:
    """A model with a random state in float64, and its plain one."""
    torch.manual_seed(0)
    model = NVAE(*VARIANTS[name], REFERENCE)
    state = model.state_dict()
    for key, value in state.items():
        change = torch.randn(value.shape)
        if "running_var" in key:
            state[key] = 0.5 + change.abs()
        elif value.is_floating_point():
            state[key] = value + 0.1 * change
    model.load_state_dict(state)
    model.double().train(training)
    return model, plain_nvae(model)


def images(image: ImageShape, batch: int = 2) -> Tensor:
    levels = torch.randint(256, (batch, image.channels, image.height, image.width), generator=torch.manual_seed(1))
    return (levels < 90).double() if image.channels == 1 else levels.double() / 255


def noise(sample: int = 0):
    """External noise of one pass, keyed on (sample, group)."""

    def of_group(group: int, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(100 * sample + group), dtype=torch.float64)

    return of_group


def draw(sample: int = 0) -> Draw:
    return Draw(torch.tensor(0), noise=noise(sample))


def close(actual: Tensor, expected: Tensor, message: str = "") -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text: f"{message}: {text}")


def training_of(plain: PlainNVAE, model: NVAE) -> PlainTraining:
    """A training whose power iteration goes on where the model's is."""
    training = PlainTraining(plain, kl_weight=KL_WEIGHT)
    if model.penalty(KL_WEIGHT) is not None:
        for key, vectors in model.state_dict().items():
            if key.startswith("norms.u_"):
                rows, _, columns = key.removeprefix("norms.u_").partition("x")
                training.penalty.left[int(rows), int(columns)] = vectors.clone()
    return training


@pytest.mark.parametrize("name", VARIANTS)
def test_values_gradients_and_running_statistics_equal_those_of_the_model(name: str) -> None:
    model, plain = build(name)
    x = images(model.image)
    training = training_of(plain, model)
    output = model(x, draw())
    one = terms(output, x)
    loss = Objective(kl_warmup=1.0, balancing="square").loss(one, KL_WEIGHT)
    penalty = model.penalty(KL_WEIGHT)
    loss = loss if penalty is None else loss + penalty
    log_prob, rates = plain(x, noise())
    close(log_prob, -one.distortion, "log_prob")
    close(torch.stack(rates, dim=1), one.rates, "rates")
    plain_loss = training.loss(log_prob, rates)
    close(plain_loss, loss, "loss")
    loss.backward()
    plain_loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    for key, parameter in plain.named_parameters():
        assert (parameter.grad is None) == (gradients[key] is None), key
        if parameter.grad is not None:
            close(parameter.grad, gradients[key], key)
    state = model.state_dict()
    for key, value in plain.state_dict().items():
        close(value, state[key], key)


@torch.no_grad()
@pytest.mark.parametrize("name", [*SHAPES, "res_mbconv", "mbconv_res", "res55_mbconv"])
def test_evaluation_and_sampling_equal_those_of_the_model(name: str) -> None:
    model, plain = build(name, training=False)
    x = images(model.image)
    one = terms(model(x, draw()), x)
    log_prob, rates = plain(x, noise())
    close(log_prob, -one.distortion, "log_prob")
    close(torch.stack(rates, dim=1), one.rates, "rates")
    close(plain.elbo(x, noise()), one.elbo, "elbo")
    likelihood = model.sample(2, draw(1), 0.7)
    parameters = likelihood.parameters if isinstance(likelihood, DiscretizedLogisticMixture) else likelihood.logits
    close(plain.sample_parameters(2, 0.7, noise(1)), parameters, "sample")
    assert plain.sample(2).shape == (2, *x.shape[1:])
    if x.shape[1] == 1:
        close(plain.sample(2, 0.7, noise(1)), likelihood.mean(), "mean images")


@torch.no_grad()
@pytest.mark.parametrize("name", ["res_mbconv", "colour"])
def test_importance_weighted_bound_equals_that_of_the_engine(name: str) -> None:
    model, plain = build(name, training=False)
    x, k = images(model.image), 3
    weights = [importance_weighted(model, x, draw(sample), 1).iwae for sample in range(k)]
    passes = len(model.latent_shapes)
    calls = iter(range(k * passes))
    bound = plain.iwae(x, k, lambda group, shape: noise(next(calls) // passes)(group, shape))
    close(bound, torch.logsumexp(torch.stack(weights), dim=0) - math.log(k))


def test_a_pass_computes_what_only_the_log_uses() -> None:
    model, plain = build()
    x = images(model.image)
    done = plain.infer(x, noise())
    for rate, per_channel in zip(done.rates, done.rates_per_channel, strict=True):
        assert per_channel.shape == (model.config.latent_channels,)
        close(per_channel.sum(), rate.mean())


def test_states_load_both_ways() -> None:
    model, plain = build("res_mbconv")
    assert list(plain.state_dict()) == list(model.state_dict())
    training_of(plain, model).step(images(GREY))
    model.load_state_dict(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_a_training_step_is_a_step_of_adamax() -> None:
    _, plain = build("res_mbconv")
    x, twin = images(GREY), copy.deepcopy(plain)
    training, reference = PlainTraining(plain), PlainTraining(twin)
    adamax = torch.optim.Adamax(twin.parameters(), lr=1e-2, eps=1e-3, weight_decay=3e-4)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    for seed in range(2):
        torch.manual_seed(seed)
        loss = training.step(x)
        torch.manual_seed(seed)
        adamax.zero_grad()
        expected = reference.loss(*twin(x))
        expected.backward()
        adamax.step()
        close(loss, expected.detach(), "loss")
    for key, value in plain.named_parameters():
        assert not torch.equal(value, before[key]), key
        close(value, twin.get_parameter(key), key)


def test_the_optimizer_leaves_parameters_without_gradient() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    before = [layer.weight.detach().clone() for layer in layers]
    layers[0].weight.square().sum().backward()
    StackedAdamax(layers, learning_rate=0.1, weight_decay=0.1, epsilon=1e-3).step()
    assert not torch.equal(layers[0].weight, before[0])
    assert torch.equal(layers[1].weight, before[1])


def test_the_first_step_finds_the_singular_values() -> None:
    model, plain = build()
    plain(images(model.image))
    matrices = [effective_weight(m).detach().flatten(1) for m in plain.modules() if isinstance(m, nn.Conv2d)]
    exact = sum(float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices)
    found = float(PlainTraining(plain).penalty.spectral().detach())
    assert 0.98 * exact < found <= exact  # 40 rounds leave a little where two singular values are close


@pytest.mark.parametrize("original_edges", [False, True])
def test_the_logistic_mixture_follows_the_edges_asked_for(original_edges: bool) -> None:
    spec = LogisticMixtureSpec(2, original_edges=original_edges)
    parameters = 0.3 * torch.randn(2, 20, 8, 16, generator=torch.manual_seed(2), dtype=torch.float64)
    x = torch.arange(256.0, dtype=torch.float64).repeat(3).view(2, 3, 8, 16) / 255
    expected = spec.build(parameters, REFERENCE).log_prob(x)
    close(PlainLogisticMixture(parameters, spec).log_prob(x), expected)


def test_the_mean_of_a_sharp_component_is_that_of_the_model() -> None:
    spec = LogisticMixtureSpec(1)
    parameters = torch.rand(2, 10, 3, 5, generator=torch.manual_seed(3), dtype=torch.float64) - 0.5
    parameters[:, [2, 5, 8]] = -6.0  # log scales: clamping the tails at the ends of the range costs nothing
    close(PlainLogisticMixture(parameters, spec).mean(), spec.build(parameters, REFERENCE).mean())


def test_what_it_does_not_build_is_refused() -> None:
    with pytest.raises(ValueError, match="without flows, got flows = 1"):
        PlainNVAE(vary(flows=1), GREY, BernoulliSpec())
    with pytest.raises(ValueError, match="got GaussianSpec"):
        PlainNVAE(CONFIG, COLOUR, GaussianSpec())
    with pytest.raises(ValueError, match="got a ResidualVAE"):
        plain_nvae(ResidualVAE(ResidualVAEConfig(), GREY, BernoulliSpec(), REFERENCE))
