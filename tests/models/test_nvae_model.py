"""NVAE and the residual VAE as models: shapes, gradients, sampling, weights kept and refreshed, errors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from original_nvae import original_state_dict
from torch import Tensor, nn

from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.likelihoods import BernoulliSpec, GaussianSpec, LogisticMixtureSpec
from models.nvae import NVAE, NVAEConfig, ResidualVAE, ResidualVAEConfig
from models.nvae.cells import DecoderCombiner, EncoderCombiner, ResidualCell
from models.nvae.config import ARCHITECTURES
from models.nvae.presets import PRESETS
from models.output import Draw, ImageShape, LikelihoodSpec

GREY, COLOUR = ImageShape(1, 28, 28), ImageShape(3, 16, 16)
TINY = PRESETS["nvae-tiny"].config
UNPADDED = dataclasses.replace(TINY, pad=0)
FULL = dataclasses.replace(TINY, arch="res_mbconv", weight_norm=True, flows=1, norm_penalty=0.01)
FLOAT32_ROUNDING = 1e-5  # another order of summation over a few thousand terms


def build(config: NVAEConfig, image: ImageShape = GREY, likelihood: LikelihoodSpec | None = None) -> NVAE:
    torch.manual_seed(0)
    kind = ResidualVAE if isinstance(config, ResidualVAEConfig) else NVAE
    return kind(config, image, likelihood or BernoulliSpec(), REFERENCE)


def binary(batch: int = 4, image: ImageShape = GREY) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(batch, image.channels, image.height, image.width, generator=generator) < 0.3).float()


def draw(seed: int = 0, **options: object) -> Draw:
    return Draw(torch.tensor(seed), **options)  # type: ignore[arg-type]


def loss_of(model: NVAE, x: Tensor, seed: int = 0) -> Tensor:
    loss = Objective(balancing="square").loss(terms(model(x, draw(seed)), x), 0.1)
    penalty = model.penalty(0.5)
    return loss if penalty is None else loss + penalty


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("image", "likelihood"), [(GREY, BernoulliSpec()), (COLOUR, LogisticMixtureSpec(2))])
def test_every_architecture_trains_all_its_parameters(arch: str, image: ImageShape, likelihood: LikelihoodSpec) -> None:
    config = NVAEConfig(
        groups_fine_to_coarse=(2, 1),
        latent_channels=2,
        channels_encoder=8,
        channels_decoder=16,
        preprocess_blocks=1,
        preprocess_cells=2,
        postprocess_cells=2,
        arch=arch,
        weight_norm=True,
        flows=1,
        pad=2 if image is GREY else 0,
        norm_penalty=0.01,
    )
    model = build(config, image, likelihood).train()
    output = model(x := binary(2, image), draw())
    shapes = [(shape.channels, shape.height, shape.width) for shape in model.latent_shapes]
    assert [tuple(group.z.shape[1:]) for group in output.groups] == shapes
    assert output.likelihood.mean().shape == x.shape
    loss_of(model, x).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_single_group_has_no_towers() -> None:
    config = dataclasses.replace(UNPADDED, groups_fine_to_coarse=(1,), residual_posterior=False)
    model = build(config, COLOUR, GaussianSpec("learned")).train()
    loss_of(model, binary(2, COLOUR)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["prior_ftr0"]
    assert model.sample(3, draw()).mean().shape == (3, 3, 16, 16)


def test_residual_vae_has_the_cells_of_nvae_and_one_group() -> None:
    nvae, residual = build(NVAEConfig(pad=2)), build(ResidualVAEConfig(pad=2))
    count = {kind: [sum(isinstance(m, kind) for m in model.modules()) for model in (nvae, residual)] for kind in KINDS}
    assert count[ResidualCell][0] == count[ResidualCell][1]
    assert count[EncoderCombiner] == [3, 0]
    assert count[DecoderCombiner] == [4, 1]
    sizes = [sum(p.numel() for p in model.parameters()) for model in (nvae, residual)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert len(residual.latent_shapes) == 1
    assert residual.latent_shapes[0].height == nvae.latent_shapes[0].height == 2
    assert residual(binary(2), draw()).groups[0].z.shape == (2, 32, 2, 2)


KINDS: tuple[type[nn.Module], ...] = (ResidualCell, EncoderCombiner, DecoderCombiner)


@pytest.mark.parametrize("config", [TINY, FULL, ResidualVAEConfig(**dataclasses.asdict(TINY))])
def test_training_lowers_the_loss_and_stays_finite(config: NVAEConfig) -> None:
    model, x = build(config).train(), binary(8)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2, eps=1e-3)
    losses = []
    for step in range(25):
        optimizer.zero_grad()
        loss = loss_of(model, x, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < 0.95 * losses[0]


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
def test_rates_without_flows_are_the_analytic_divergence(residual: bool) -> None:
    output = build(dataclasses.replace(TINY, residual_posterior=residual)).eval()(binary(), draw())
    assert [group.form.residual for group in output.groups] == [False, residual]
    for group in output.groups:
        expected = group.posterior.kl(group.prior).flatten(1).sum(1)
        torch.testing.assert_close(group.rate, expected, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)


@torch.no_grad()
def test_first_prior_has_the_scale_of_the_original() -> None:
    first = build(TINY).eval()(binary(), draw()).groups[0]
    torch.testing.assert_close(first.prior.scale, torch.full_like(first.z, 1.01))


@torch.no_grad()
def test_padding_is_not_scored() -> None:
    model, x = build(TINY).eval(), binary()
    output = model(x, draw())
    assert output.likelihood.mean().shape == x.shape
    assert model.decode_parameters(model.encode(model.padded(x), draw()).state).shape == (4, 1, 32, 32)


@torch.no_grad()
def test_an_image_has_the_same_figures_in_any_batch() -> None:
    model, x = build(FULL).eval(), binary(4)
    together = terms(model(x, draw()), x)
    alone = [terms(model(x[i : i + 1], draw(first_sample=i)), x[i : i + 1]) for i in range(4)]
    elbo = torch.cat([one.elbo for one in alone])
    torch.testing.assert_close(together.elbo, elbo, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)


@torch.no_grad()
def test_temperature_scales_the_noise_of_samples() -> None:
    model = build(TINY).eval()
    mean = model.sample(3, draw(at_mean=True)).mean()
    torch.testing.assert_close(model.sample(3, draw(), temperature=0.0).mean(), mean)
    assert not torch.equal(model.sample(3, draw()).mean(), mean)
    torch.testing.assert_close(model.sample(3, draw(5)).mean(), model.sample(3, draw(5)).mean(), rtol=0, atol=0)


def change_by_step(model: NVAE) -> None:
    with torch.enable_grad():
        loss_of(model, binary(2)).backward()
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def change_by_load(model: NVAE) -> None:
    model.load_state_dict({key: 1.5 * value for key, value in model.state_dict().items()})


def change_by_data(model: NVAE) -> None:
    for parameter in model.parameters():
        parameter.data = 1.5 * parameter.data


@torch.no_grad()
@pytest.mark.parametrize("change", [change_by_step, change_by_load, change_by_data])
def test_kept_weights_follow_their_parameters(change: object) -> None:
    model, x = build(FULL).eval(), binary(2)
    before = model(x, draw()).likelihood.mean()
    change(model)  # type: ignore[operator]
    after, fresh = model(x, draw()).likelihood.mean(), copy.deepcopy(model)(x, draw()).likelihood.mean()
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh, rtol=0, atol=0)


@torch.no_grad()
def test_kept_weights_follow_the_dtype() -> None:
    model, x = build(FULL).eval(), binary(2)
    single = model(x, draw()).likelihood.mean()
    double = model.double()(x.double(), draw()).likelihood.mean()
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)


def test_a_model_in_training_can_be_copied() -> None:
    model, x = build(FULL).train(), binary(2)
    loss_of(model, x)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(loss_of(twin, x), loss_of(model, x), rtol=0, atol=0)


def test_a_continued_training_has_the_penalty_of_an_uninterrupted_one() -> None:
    model, x = build(FULL).train(), binary(2)
    fresh_keys = list(model.state_dict())
    for seed in range(2):
        loss_of(model, x, seed)
    continued = copy.deepcopy(build(FULL).train())
    continued.load_state_dict(model.state_dict())
    torch.testing.assert_close(loss_of(continued, x, 2), loss_of(model, x, 2), rtol=0, atol=0)
    assert list(original_state_dict(model)) == list(original_state_dict(build(FULL)))
    assert set(fresh_keys) < set(model.state_dict())


def test_decoding_twice_from_one_encoding_has_its_own_graph() -> None:
    model, x = build(FULL).train(), binary(2)
    state = model.encode(model.padded(x), draw()).state.detach()
    first = model.decode_parameters(state).sum()
    first.backward()
    model.decode_parameters(state).sum().backward()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "res_mbconv9"}, "arch: expected one of res_elu"),
        ({"groups_fine_to_coarse": ()}, "groups_fine_to_coarse"),
        ({"latent_channels": 0}, "latent_channels: expected a value >= 1"),
        ({"flows": -1}, "flows: expected a value >= 0"),
        ({"channel_cap": 4}, "channel_cap"),
        ({"groups_fine_to_coarse": (1,), "channels_encoder": 16}, "channels_encoder = channels_decoder"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NVAEConfig(**fields)  # type: ignore[arg-type]


def test_sizes_that_do_not_divide_name_those_that_do() -> None:
    with pytest.raises(ValueError, match="such as 16 or 32"):
        build(NVAEConfig(pad=0))


def test_grouped_cells_need_channels_that_divide() -> None:
    with pytest.raises(ValueError, match="expected hidden channels that divide by 8, got 12"):
        build(dataclasses.replace(TINY, arch="mbconv_den"))


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_hundreds_of_steps_at_the_papers_learning_rate_stay_finite(autocast: bool) -> None:
    config = dataclasses.replace(FULL, residual_gain=0.1)
    model, x = build(config).train(), binary(64)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=3e-4)
    for step in range(300):
        batch = x[(8 * step) % 64 :][:8]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, batch, step)
        loss.backward()
        assert loss.isfinite()
        optimizer.step()
