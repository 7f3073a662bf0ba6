"""VDVAE: layer strings, other configurations against a slow restatement, initialisation, scales, published rules."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from original_vdvae import CASE, build, draw, filled, images, published
from plain_vdvae import PlainVDVAE
from torch.nn import functional as F

from kernels.cpu.backend import CPU
from kernels.reference.backend import REFERENCE
from models.elbo import terms
from models.likelihoods import BernoulliSpec, LogisticMixtureSpec, vdvae_levels, vdvae_rules
from models.output import Draw, ImageShape
from models.vdvae import VDVAE, VDVAEConfig
from models.vdvae.blocks import latent_log_scale
from models.vdvae.presets import DATASETS, PRESETS
from models.vdvae.published import setup_from_settings

ROUNDING = 1e-10  # float64, sums of a few thousand terms
SINGLE = 2e-4  # float32 against float64, through a dozen blocks
TINY = PRESETS["vdvae-tiny"]

SETTINGS = {
    "case A": {},
    "custom widths": {"custom_width_str": "16:24,4:32,1:40"},
    "2x2, blocks without a count": {
        "enc_blocks": "32d4,8x1,8d4,2,2",
        "dec_blocks": "2x2,8m2,32m8,32",
        "bottleneck_multiple": 0.5,
    },
    "biases at low resolution only": {"no_bias_above": 4},
    "no biases, 5 bits": {"no_bias_above": 0, "dataset": "ffhq_256", "zdim": 3},
    "few mixtures": {"num_mixtures": 2, "dataset": "ffhq_1024"},
    "one block, of the image": {"enc_blocks": "32x1", "dec_blocks": "32x1", "dataset": "imagenet32"},
}


@torch.no_grad()
@pytest.mark.parametrize("noise", ["zero", "rs1000"])
@pytest.mark.parametrize("name", SETTINGS)
def test_any_configuration_is_what_its_strings_say(name, noise):
    settings = CASE["config"] | SETTINGS[name]
    model, x = build(torch.float64, **SETTINGS[name]), images(torch.float64)
    pixels = DATASETS[settings["dataset"]]
    plain = PlainVDVAE(dict(model.named_parameters()), settings, pixels.mean, pixels.std)
    expected, rates = plain(255 * x, noise == "rs1000")
    encoding = model.encode(x, draw(noise))
    torch.testing.assert_close(encoding.state, expected, rtol=ROUNDING, atol=ROUNDING)
    found = torch.stack([group.rate for group in encoding.groups])
    torch.testing.assert_close(found, rates, rtol=ROUNDING, atol=ROUNDING)
    again = model.sample_state(4, draw("zero", tuple(group.z for group in encoding.groups)))
    torch.testing.assert_close(again, expected, rtol=ROUNDING, atol=ROUNDING)
    fast = build(torch.float32, CPU, **SETTINGS[name]).encode(images(torch.float32), draw(noise)).state
    torch.testing.assert_close(fast.double(), expected, rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_every_backend_are_those_of_float64(name):
    found = {}
    for dtype, ops in ((torch.float64, REFERENCE), (torch.float32, CPU)):
        model, x = build(dtype, ops, **SETTINGS[name]), images(dtype)[:2]
        one = terms(model(x, draw("zero")), x)
        (one.distortion + one.rate).sum().backward()
        found[ops.name] = {key: value.grad for key, value in model.named_parameters()}
    for key, exact in found["reference"].items():
        scale = max(float(exact.abs().max()), 1.0)
        torch.testing.assert_close(found["cpu"][key].double() / scale, exact / scale, rtol=0, atol=1e-3, msg=key)


@pytest.mark.parametrize("row", published(), ids=lambda row: row["preset"])
def test_published_models_have_their_parameters(row):
    """In all, in the encoder and in the decoder; layers, latents, tensors; settings and recipe."""
    preset = PRESETS[f"vdvae-{row['preset']}"]
    with torch.device("meta"):
        model = VDVAE(preset.config, preset.image, preset.likelihood, REFERENCE)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model, model.encoder, model.decoder)]
    assert sizes == [int(row[f"params_{part}"]) for part in ("measured", "encoder", "decoder")]
    assert preset.parameters == sizes[0]
    assert len(model.state_dict()) == int(row["state_dict_tensors"])
    assert len(model.latent_shapes) == int(row["n_stochastic_layers"])
    assert len(preset.config.encoder) == int(row["n_encoder_blocks"])
    assert sum(shape.count for shape in model.latent_shapes) == int(row["latent_dims_per_image"])
    numbers = ("width", "zdim", "no_bias_above", "num_mixtures", "image_size")
    settings = row | {key: int(row[key]) for key in numbers} | {"bottleneck_multiple": 0.25}
    setup = setup_from_settings(settings | {"dataset": row["dataset_key"]})
    assert (setup.config, setup.image, setup.likelihood) == (preset.config, preset.image, preset.likelihood)


@pytest.mark.parametrize("row", published(), ids=lambda row: row["preset"])
def test_published_recipes_are_the_published_ones(row):
    preset = PRESETS[f"vdvae-{row['preset']}"]
    assert preset.recipe is not None
    training = preset.recipe.training
    assert training["learning_rate"] == float(row["lr"])
    assert training["weight_decay"] == float(row["weight_decay"])
    assert training["betas"] == tuple(float(beta) for beta in row["adam_betas"].split(","))
    assert training["warmup_steps"] == int(row["warmup_iters"])
    assert training["clip_norm"] == float(row["grad_clip"]) * preset.image.dims
    assert training["skip_threshold"] == float(row["skip_threshold"]) * preset.image.dims
    assert training["ema"] == float(row["ema_rate"])
    assert training["batch_size"] == int(row["per_gpu_batch"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"encoder_blocks": "32y2"}, "encoder_blocks: expected R, RxN .* got '32y2' in '32y2'"),
        ({"encoder_blocks": "32x1,,16"}, "got '' in"),
        ({"encoder_blocks": "32m16"}, "encoder_blocks: expected R, RxN"),
        ({"decoder_blocks": "4d2"}, "decoder_blocks: expected R, RxN"),
        ({"encoder_blocks": "32d3"}, "a divisor of 32 larger than 1, got '32d3'"),
        ({"encoder_blocks": "32d2,8x1"}, "expected resolution 16 at '8x1'"),
        ({"decoder_blocks": "8x1,4x1"}, "resolutions that rise, got '4x1'"),
        ({"decoder_blocks": "4x1,32m8"}, "a smaller resolution before it that divides, got '32m8'"),
        ({"decoder_blocks": "2x1,32m2"}, r"resolutions of the encoder \(4, 8, 16, 32\), got 2"),
        ({"decoder_blocks": "4x1,16m4"}, "expected to end at 32, where encoder_blocks begins, got 16"),
        (
            {"encoder_blocks": "32x99999999999"},
            "encoder_blocks: expected numbers of at most 10,000, got '32x99999999999'",
        ),
        ({"custom_widths": "16=4"}, "custom_widths: expected R:W .* got '16=4'"),
        ({"custom_widths": "16:64,16:32"}, "each R once, got '16:32'"),
        ({"custom_widths": "32:64"}, r"expected width \(32\) at the image, got 32:64"),
        ({"custom_widths": "8:16"}, "at least the 32 channels of resolution 16 at the coarser 8, got 16"),
        ({"width": 3}, "bottleneck: expected at least one channel inside a block of width 3"),
        ({"pixel_std": 0.0}, "pixel_std: expected a value > 0"),
        ({"smoothing": -1.0}, "smoothing: expected a value > 0"),
    ],
)
def test_impossible_layers_are_one_line(fields, said):
    with pytest.raises(ValueError, match=said) as error:
        VDVAEConfig(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image", [ImageShape(1, 28, 32), ImageShape(1, 27, 27), ImageShape(1, 40, 40)])
def test_images_that_no_padding_fits_are_one_line(image):
    with pytest.raises(ValueError, match=r"encoder_blocks: expected the side of square images.* got 32 for"):
        VDVAE(TINY.config, image, BernoulliSpec(), REFERENCE)


def test_it_starts_at_a_standard_prior_with_scaled_branches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VDVAE(VDVAEConfig(width=64), ImageShape(1, 28, 28), BernoulliSpec(), REFERENCE)
    x = torch.bernoulli(torch.full((2, 1, 28, 28), 0.3))
    for group in model(x, Draw(torch.tensor(0))).groups:
        assert torch.equal(group.prior.mean, torch.zeros_like(group.prior.mean))
        assert torch.equal(group.prior.scale, torch.ones_like(group.prior.scale))
    weights = {key: value.detach() for key, value in model.named_parameters() if key.endswith(".weight")}
    spread = {key: float(value.std() * value[0].numel() ** 0.5) for key, value in weights.items() if len(value) > 1}
    bound = 1 / math.sqrt(3)  # standard deviation of torch's default, times the root of the fan-in
    assert spread["encoder.enc_blocks.0.c4.weight"] == pytest.approx(bound / math.sqrt(10), rel=0.1)
    assert spread["decoder.dec_blocks.0.resnet.c4.weight"] == pytest.approx(bound / math.sqrt(9), rel=0.1)
    assert spread["decoder.dec_blocks.0.z_proj.weight"] == pytest.approx(bound / math.sqrt(9), rel=0.2)
    assert spread["decoder.dec_blocks.0.enc.c4.weight"] == pytest.approx(bound, rel=0.2)
    assert all(not bool(value.any()) for key, value in model.named_parameters() if key.endswith(".bias"))


def test_smoothed_scales_are_softplus_and_exponential():
    """Sigma(0) = 1 at ln 2; far below zero softplus is the exponential, without underflow."""
    raw = torch.linspace(-300, 50, 701, dtype=torch.float64, requires_grad=True)
    soft = VDVAEConfig(latent_scale="softplus")
    near = raw > -20
    expected = F.softplus(raw, soft.smoothing)
    torch.testing.assert_close(latent_log_scale(raw, soft).exp()[near], expected[near], rtol=ROUNDING, atol=0)
    assert float(latent_log_scale(torch.zeros(1), soft)) == pytest.approx(0, abs=1e-7)
    far = latent_log_scale(raw, soft)[0]
    assert far.item() == pytest.approx(-300 * soft.smoothing - math.log(soft.smoothing))
    (slope,) = torch.autograd.grad(latent_log_scale(raw, soft).sum(), raw)
    assert float(slope[0]) == pytest.approx(soft.smoothing)
    smooth = VDVAEConfig(latent_scale="smooth log", smoothing=0.4)
    torch.testing.assert_close(latent_log_scale(raw, smooth), 0.4 * raw)
    model = VDVAE(dataclasses.replace(TINY.config, latent_scale="softplus"), TINY.image, TINY.likelihood, REFERENCE)
    x = torch.zeros(1, 1, 28, 28)
    assert all(torch.equal(g.prior.scale, torch.ones_like(g.z)) for g in model(x, Draw(torch.tensor(0))).groups)


def test_recomputation_changes_no_bit():
    gradients = []
    for recompute in (False, True):
        config = dataclasses.replace(TINY.config, recompute=recompute)
        model = VDVAE(config, TINY.image, TINY.likelihood, CPU)
        model.load_state_dict({key: filled(key, value.shape) for key, value in model.state_dict().items()})
        x = torch.bernoulli(torch.full((2, 1, 28, 28), 0.3), generator=torch.Generator().manual_seed(0))
        terms(model(x, Draw(torch.tensor(0))), x).elbo.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("log_scale", "least", "most"), [(-7, 1.028, 1.029), (-3, 1.028, 1.029), (0, 0.6, 0.8)])
def test_published_5_bit_levels_have_another_mass_than_one(log_scale, least, most):
    """Bins 2/31 wide, 16/255 apart: on average over means 1.028; the upper tail of wide components is lost."""
    spec = LogisticMixtureSpec(1, 5)
    means = 16 / 255 * torch.arange(-500, 500, dtype=torch.float64) / 125  # eight levels, 125 means in each
    grid = torch.arange(32, dtype=torch.float64).repeat_interleave(len(means)).view(-1, 1, 1, 1) / 31
    parameters = torch.stack((torch.zeros_like(means), means, torch.full_like(means, log_scale)), 1)
    total = {}
    for rules in (spec, vdvae_rules(spec)):
        likelihood = rules.build(parameters.repeat(32, 1)[:, :, None, None], REFERENCE)
        total[rules.vdvae_rules] = float(likelihood.log_prob(grid).exp().sum() / len(means))
    assert total[False] == pytest.approx(1, abs=1e-9)
    assert least < total[True] < most


def test_published_levels_are_those_of_8_bit_pixels_cut():
    pixels = torch.arange(256, dtype=torch.float64)
    expected = 8 * (pixels / 8).floor() / 255
    torch.testing.assert_close(vdvae_levels(pixels / 255, 5), expected, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(vdvae_levels((pixels / 8).floor() / 31, 5), expected, rtol=ROUNDING, atol=ROUNDING)
    single = (pixels / 255).float()
    torch.testing.assert_close(vdvae_levels(single, 5), expected.float())
    assert torch.equal(vdvae_levels(single, 8), single)


def test_published_rules_are_one_or_the_others():
    with pytest.raises(ValueError, match="expected VDVAE's rules or NVAE's, got both"):
        LogisticMixtureSpec(2, original_edges=True, vdvae_rules=True)
    assert vdvae_rules(BernoulliSpec()) == BernoulliSpec()
    assert vdvae_rules(LogisticMixtureSpec(2, 5)).input_bits == 8


def test_published_pixels_are_cut_where_ours_are_rounded():
    """Cut to 8-bit levels, half a level lower on average; clamped channels are not rounded before the next one."""
    parameters = torch.zeros(1, 20, 64, 64)
    parameters[:, 2:] = torch.tensor([0.3, 0.3, -4, -4, 0, 0] * 3).view(1, 18, 1, 1)
    means = {}
    for rules in (LogisticMixtureSpec(2), vdvae_rules(LogisticMixtureSpec(2))):
        drawn = rules.build(parameters, REFERENCE).sample(torch.Generator().manual_seed(0))
        torch.testing.assert_close(255 * drawn, (255 * drawn).round(), rtol=0, atol=1e-3)
        means[rules.vdvae_rules] = float(255 * drawn.mean())
    assert means[False] - means[True] == pytest.approx(0.5, abs=0.05)
