"""One suite over the registry: what every model promises."""

import dataclasses

import pytest
import torch

from kernels.ops import GaussianDraw
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.latents import decode, encode
from models.likelihoods import BernoulliSpec, GaussianSpec, LogisticMixtureSpec
from models.nvae import NVAEConfig, ResidualVAEConfig
from models.output import Draw, ImageShape
from models.registry import MODELS, build
from models.vanilla.convnet import ResidualBlock
from models.vanilla.vae import VAEConfig
from models.vdvae import VDVAEConfig

GREY, COLOUR = ImageShape(1, 28, 28), ImageShape(3, 32, 32)
SMALL = {
    "ae": MODELS["ae"].config(channels=4, latent_size=5),
    "vae": MODELS["vae"].config(channels=4, latent_size=5),
    "ae-mlp": MODELS["ae"].config(hidden=(12, 7), latent_size=5),
    "vae-mlp": MODELS["vae"].config(hidden=(12, 7), latent_size=5),
    "residual-vae": ResidualVAEConfig(channels_encoder=4, channels_decoder=4, channel_cap=8),
    "nvae": NVAEConfig(channels_encoder=4, channels_decoder=4, channel_cap=8, latent_channels=3),
    "vdvae": VDVAEConfig("32x1,32d4,8x1,8d4", "2x2,8m2,32m8", 8, latent_channels=3),
}
BATCH_TOLERANCE = 1e-4  # float32 sums over 784 pixels; convolutions choose their algorithm by batch size
MLP = "-mlp"


def model_of(name):
    """The registry's name of the model of a row of SMALL."""
    return name.removesuffix(MLP)


with_prior = [name for name in SMALL if MODELS[model_of(name)].model.has_prior]
padded = [name for name in SMALL if not name.endswith(MLP)]
hierarchical = ["nvae", "vdvae"]


def make(name, image=GREY, spec=None, ops=REFERENCE, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(model_of(name), SMALL[name], image, spec or LogisticMixtureSpec(2), ops)


def images(image=GREY, n=3, seed=0, bits=8):
    gen = torch.Generator().manual_seed(seed)
    shape = (n, image.channels, image.height, image.width)
    return torch.randint(0, 2**bits, shape, generator=gen).float() / (2**bits - 1)


def draw(seed=5, **fields):
    return Draw(torch.tensor(seed, dtype=torch.int64), **fields)


def equal(name, actual, expected):
    """Equal in every bit; in VDVAE but for the order of sums, as it convolves in other groups without posteriors."""
    tolerance = {"rtol": 1e-6, "atol": 2e-6} if name == "vdvae" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(actual, expected, **tolerance)


def test_every_model_is_covered():
    assert {model_of(name) for name in SMALL} == set(MODELS)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", SMALL)
def test_output_shapes_and_groups(name, image):
    model, x = make(name, image), images(image)
    output = model(x, draw())
    assert output.likelihood.mean().shape == x.shape
    assert output.likelihood.log_prob(x).shape == (3,)
    shapes = [(g.z.shape[1], *g.z.shape[2:]) for g in output.groups]
    assert shapes == [(s.channels, s.height, s.width) for s in model.latent_shapes]
    assert all(bool((g.rate >= 0).all()) for g in output.groups)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("spec", [BernoulliSpec(), GaussianSpec("learned"), LogisticMixtureSpec(2, 5)], ids=repr)
def test_every_likelihood_trains_every_model(name, spec):
    """The loss reaches every parameter with a finite gradient."""
    bits = {BernoulliSpec: 1, LogisticMixtureSpec: 5}.get(type(spec), 8)
    model, x = make(name, spec=spec), images(bits=bits)
    Objective(kl_warmup=0.0).loss(terms(model(x, draw()), x), 1.0).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_bits(name):
    model, x = make(name).eval(), images()
    first, second = (model(x, draw()).likelihood.mean() for _ in range(2))
    assert torch.equal(first, second)
    if name in with_prior:
        assert not torch.equal(first, model(x, draw(6)).likelihood.mean())


@pytest.mark.parametrize("name", SMALL)
def test_an_image_does_not_depend_on_its_batch(name):
    model, x = make(name).eval(), images(n=6)
    whole = terms(model(x, draw()), x).elbo
    parts = [terms(model(x[i : i + 2], draw(first_sample=i)), x[i : i + 2]).elbo for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=BATCH_TOLERANCE, atol=BATCH_TOLERANCE)


@pytest.mark.parametrize("name", with_prior)
def test_samples_have_the_image_shape_and_follow_temperature(name):
    model = make(name).eval()
    warm = model.sample(4, draw()).mean()
    assert warm.shape == (4, 1, 28, 28)
    cold = [model.sample(4, draw(seed), 1e-6).mean() for seed in (1, 2)]
    torch.testing.assert_close(cold[0], cold[1], rtol=0, atol=1e-4)
    assert not torch.allclose(warm, cold[0], atol=1e-4)


@pytest.mark.parametrize("name", with_prior)
def test_given_latents_are_decoded_and_the_groups_after_them_drawn(name):
    model, x = make(name).eval(), images()
    encoding = model.encode(model.padded(x), draw())
    given = tuple(group.z for group in encoding.groups)
    equal(name, model.sample_state(3, draw(seed=6, latents=given)), encoding.state)
    first = given[:1]
    some, others = (model.sample_state(3, draw(seed=seed, latents=first)) for seed in (6, 7))
    assert torch.equal(some, others) == (len(given) == 1)
    with pytest.raises(ValueError, match=r"latent group 0: expected shape \(3, .*got \(2, "):
        model.sample_state(3, draw(latents=(given[0][:2],)))


@pytest.mark.parametrize("name", with_prior)
@pytest.mark.parametrize("at_mean", [False, True], ids=["draw", "mean"])
def test_encoded_latents_decode_to_the_reconstruction(name, at_mean):
    model, x = make(name).eval(), images()
    latents = encode(model, x, draw(at_mean=at_mean))
    assert [tuple(group.z.shape[1:]) for group in latents] == [dataclasses.astuple(s) for s in model.latent_shapes]
    assert all(torch.equal(group.z, group.mean) for group in latents) == at_mean
    whole = model(x, draw(at_mean=at_mean)).likelihood.mean()
    equal(name, decode(model, latents, draw(seed=6)).mean(), whole)
    every = tuple(group.pruned(torch.arange(group.z.shape[1])) for group in latents)
    equal(name, decode(model, every, draw(seed=6)).mean(), whole)


def test_latents_that_went_through_flows_decode_to_the_reconstruction():
    config = dataclasses.replace(SMALL["nvae"], flows=1)
    model, x = build("nvae", config, GREY, BernoulliSpec(), REFERENCE).eval(), images()
    latents = encode(model, x, draw(at_mean=True))
    assert not torch.equal(latents[0].z, latents[0].mean)
    assert torch.equal(decode(model, latents, draw()).mean(), model(x, draw(at_mean=True)).likelihood.mean())


@pytest.mark.parametrize("name", with_prior)
def test_decoding_draws_the_groups_after_those_kept_and_no_other(name):
    drawn = []

    def watched(*arguments, group, **keywords):
        drawn.append(group)
        return REFERENCE.gaussian_sample(*arguments, group=group, **keywords)

    model = make(name, ops=dataclasses.replace(REFERENCE, gaussian_sample=watched)).eval()
    latents = encode(model, images(), draw())
    groups = len(latents)
    for keep in range(groups + 1):
        drawn.clear()
        one, other = (decode(model, latents, draw(seed), keep=keep).mean() for seed in (6, 7))
        assert drawn == 2 * list(range(keep, groups))
        assert torch.equal(one, other) == (keep == groups)


@pytest.mark.parametrize("name", with_prior)
def test_a_channel_that_was_dropped_is_at_its_priors_mean(name):
    """At temperature 0 a group that is drawn is its prior's mean, and so is one without any channel."""
    model = make(name).eval()
    latents = encode(model, images(), draw())
    last = len(latents) - 1
    none = (*latents[:last], latents[last].pruned(torch.arange(0)))
    at_mean = decode(model, latents, draw(), keep=last, temperature=0.0).mean()
    assert torch.equal(decode(model, none, draw()).mean(), at_mean)
    kept = torch.tensor([0, 2])
    first = latents[0].pruned(kept).pruned(torch.tensor([1]))
    assert first.channels.tolist() == [2]
    zeros = torch.zeros_like(latents[0].z)
    zeros[:, 2] = latents[0].z[:, 2]  # the first group's prior is standard normal
    expected = decode(model, (dataclasses.replace(latents[0], z=zeros), *latents[1:]), draw()).mean()
    assert torch.equal(decode(model, (first, *latents[1:]), draw()).mean(), expected)


def test_what_cannot_be_encoded_or_decoded_is_said():
    model, x = make("nvae").eval(), images()
    latents = encode(model, x, draw())
    with pytest.raises(ValueError, match="a model with latents, got AE"):
        encode(make("ae"), x, draw())
    for groups, keep in ((latents, len(latents) + 1), (latents, -1), ((), None), (latents * 2, None)):
        with pytest.raises(ValueError, match=f"of 1 to {len(latents)} groups"):
            decode(model, groups, draw(), keep=keep)
    wrong = dataclasses.replace(latents[0].pruned(torch.tensor([1])), channels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"latent group 0: expected shape \(3, 2, .*got \(3, 1, "):
        decode(model, (wrong, *latents[1:]), draw())


@pytest.mark.parametrize("name", with_prior)
def test_every_group_can_have_a_temperature_of_its_own(name):
    model = make(name).eval()
    groups = len(model.latent_shapes)
    alike = model.sample_state(3, draw(), [0.7] * groups)
    assert torch.equal(alike, model.sample_state(3, draw(), 0.7))
    assert not torch.equal(alike, model.sample_state(3, draw(), [0.7] * (groups - 1) + [0.2]))
    with pytest.raises(ValueError, match="a temperature for every latent group, got 0"):
        model.sample_state(3, draw(), [])


def test_a_model_without_a_prior_refuses_to_sample():
    with pytest.raises(NotImplementedError, match="no prior"):
        make("ae").sample(1, draw())


@pytest.mark.parametrize("name", with_prior)
def test_mean_latents_are_noise_free(name):
    model, x = make(name).eval(), images()
    one, two = (model(x, draw(seed, at_mean=True)) for seed in (1, 2))
    assert torch.equal(one.likelihood.mean(), two.likelihood.mean())
    for group in one.groups:
        torch.testing.assert_close(group.z, group.posterior.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", with_prior)
def test_rates_are_the_kl_of_the_groups_own_gaussians(name):
    model, x = make(name).eval(), images()
    for group in model(x, draw()).groups:
        expected = group.posterior.kl(group.prior).flatten(1).sum(1)
        torch.testing.assert_close(group.rate, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", with_prior)
def test_log_ratio_is_that_of_the_drawn_latents(name):
    model, x = make(name).eval(), images()
    for group in model(x, draw(log_ratio=True)).groups:
        expected = (group.posterior.log_prob(group.z) - group.prior.log_prob(group.z)).flatten(1).sum(1)
        torch.testing.assert_close(group.log_ratio, expected, rtol=1e-4, atol=1e-3)


def counting_ops():
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["group"])
        return REFERENCE.gaussian_sample_kl(*args, **kwargs)

    return dataclasses.replace(REFERENCE, gaussian_sample_kl=counted), calls


@pytest.mark.parametrize("name", with_prior)
def test_the_training_step_calls_the_fused_operation_once_a_group(name):
    ops, calls = counting_ops()
    model = make(name, ops=ops)
    model(images(), draw())
    assert calls == list(range(len(model.latent_shapes)))


@pytest.mark.parametrize("name", with_prior)
def test_a_wrong_operation_changes_the_loss(name):
    def wrong(*args, **kwargs):
        z, kl, log_ratio = REFERENCE.gaussian_sample_kl(*args, **kwargs)
        return GaussianDraw(z, kl + 1, log_ratio)

    x = images()
    right, broken = make(name), make(name, ops=dataclasses.replace(REFERENCE, gaussian_sample_kl=wrong))
    losses = [Objective(kl_warmup=0.0).loss(terms(m(x, draw()), x), 1.0) for m in (right, broken)]
    assert (losses[1] - losses[0]).item() == pytest.approx(len(right.latent_shapes), rel=1e-3)


@pytest.mark.parametrize("name", hierarchical)
def test_padding_is_scored_by_nothing(name):
    """Parameters outside the image change neither log-probability nor mean."""
    model, x = make(name).eval(), images()
    state = model.encode(model.padded(x), draw()).state
    parameters = model.decode_parameters(state)
    assert parameters.shape[-2:] == (32, 32)
    noisy = parameters.clone()
    noisy[..., :2, :] += 100
    noisy[..., :, -2:] -= 100
    likelihoods = []
    for values in (parameters, noisy):
        model.decode_parameters = lambda state, values=values: values
        likelihoods.append(model.decode(state))
    assert torch.equal(likelihoods[0].log_prob(x), likelihoods[1].log_prob(x))
    assert torch.equal(likelihoods[0].mean(), likelihoods[1].mean())


@pytest.mark.parametrize("name", hierarchical)
def test_a_hierarchy_has_two_resolutions_and_four_groups(name):
    shapes = make(name).latent_shapes
    assert len({(s.height, s.width) for s in shapes}) >= 2
    assert len(shapes) >= 4
    areas = [s.height * s.width for s in shapes]
    assert areas == sorted(areas)


def test_residual_vae_is_nvae_with_one_group_and_alike_in_size():
    """Default configs on 28x28 images: parameters within 10 %, latents in the first group only."""
    counts = {}
    for name in ("nvae", "residual-vae"):
        model = build(name, dataclasses.replace(MODELS[name].config(), pad=None), GREY, BernoulliSpec(), REFERENCE)
        counts[name] = sum(p.numel() for p in model.parameters())
        if name == "residual-vae":
            assert len(model.latent_shapes) == 1
    assert abs(counts["residual-vae"] / counts["nvae"] - 1) < 0.10


@pytest.mark.parametrize("name", padded)
def test_sizes_that_do_not_divide_are_named(name):
    config = dataclasses.replace(SMALL[name], pad=1) if hasattr(SMALL[name], "pad") else SMALL[name]
    with pytest.raises(ValueError, match=r"such as \d+ or \d+"):
        build(name, config, ImageShape(1, 27, 28), BernoulliSpec(), REFERENCE)


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_an_mlp_takes_any_image_and_no_padding(name):
    odd = ImageShape(1, 27, 25)
    assert make(f"{name}{MLP}", odd)(images(odd), draw()).likelihood.mean().shape == (3, 1, 27, 25)
    with pytest.raises(ValueError, match="pad: expected none"):
        MODELS[name].config(hidden=(12,), pad=2)
    with pytest.raises(ValueError, match="hidden: expected a value >= 1"):
        MODELS[name].config(hidden=(12, 0))


def test_the_mlp_has_the_layers_it_names():
    """Image - 512 - mean and log scale, latents - 512 - image; one weight matrix and one bias each."""
    model = build("vae", MODELS["vae"].config(hidden=(512,)), GREY, BernoulliSpec(), REFERENCE)
    matrices = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert matrices == [(784, 512), (32, 512), (512, 16), (784, 512)]  # the first one transposed


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_the_default_is_the_convolutional_network(name):
    model = build(name, MODELS[name].config(), GREY, BernoulliSpec(), REFERENCE)
    assert any(isinstance(module, torch.nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("name", padded)
def test_padding_fits_by_itself(name):
    model = make(name, ImageShape(1, 30, 30))
    assert model.pad == 1
    assert model(images(ImageShape(1, 30, 30)), draw()).likelihood.mean().shape == (3, 1, 30, 30)


@pytest.mark.parametrize("name", MODELS)
def test_impossible_sizes_are_refused(name):
    field = "latent_size" if name in ("ae", "vae") else "latent_channels"
    with pytest.raises(ValueError, match=field):
        build(name, MODELS[name].config(**{field: 0}), GREY, BernoulliSpec(), REFERENCE)


def test_unknown_model_names_the_known():
    with pytest.raises(ValueError, match="nvae"):
        build("nvea", None, GREY, BernoulliSpec(), REFERENCE)


def test_residual_blocks_stand_in_place_of_plain_convolutions():
    plain, deep, deeper = (
        build("vae", VAEConfig(channels=4, latent_size=3, residual_blocks=n), GREY, LogisticMixtureSpec(2), REFERENCE)
        for n in (0, 1, 2)
    )
    blocks = [sum(isinstance(m, ResidualBlock) for m in model.modules()) for model in (plain, deep, deeper)]
    assert blocks == [0, 4, 8]  # encoder and decoder at two resolutions
    shapes = {model(images(), draw()).likelihood.mean().shape for model in (plain, deep)}
    assert shapes == {(3, 1, 28, 28)}
    block = ResidualBlock(3)
    torch.nn.init.zeros_(block.branch[-1].weight)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("blocks", "hidden"), [(-1, ()), (1, (8,))])
def test_impossible_residual_blocks_are_refused(blocks, hidden):
    with pytest.raises(ValueError, match="residual_blocks"):
        VAEConfig(hidden=hidden, residual_blocks=blocks)
