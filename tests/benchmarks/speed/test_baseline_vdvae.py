"""The plain VDVAE computes what VDVAE computes, and trains."""

import pytest
import torch

from benchmarks.speed.baseline.vdvae import PlainVDVAETraining, plain_vdvae
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.likelihoods import BernoulliSpec, DiscretizedLogisticMixture, GaussianSpec, LogisticMixtureSpec
from models.output import Draw, ImageShape
from models.vdvae.config import VDVAEConfig
from models.vdvae.model import VDVAE

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}  # float64, summed in another order
GREY, COLOUR = ImageShape(1, 14, 14), ImageShape(3, 16, 16)
BLOCKS = "16x1,16d2,8x1,8d4,2x1", "2x2,8m2,8x1,16m8"
MIXTURE = LogisticMixtureSpec(2, original_edges=True)
CASES = {
    "grey, padded": (VDVAEConfig(*BLOCKS, width=8, latent_channels=2), GREY, BernoulliSpec()),
    "colour, wider towards coarse": (VDVAEConfig(*BLOCKS, width=8, custom_widths="8:12,2:16"), COLOUR, MIXTURE),
    "state of fine maps from zero": (VDVAEConfig(*BLOCKS, width=8, bias_up_to=8), COLOUR, MIXTURE),
}


def pair(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VDVAE(*CASES[name], REFERENCE).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, plain_vdvae(model)


def images(image, n=5):
    gen = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 256, (n, image.channels, image.height, image.width), generator=gen)
    return ((levels > 127) if image.channels == 1 else levels / 255).double()


def noise(group, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(group), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_loss_rates_and_gradients_are_those_of_vdvae(name):
    model, plain = pair(name)
    x = images(model.image)
    out = model(x, Draw(torch.tensor(0), noise=noise))
    log_prob, rates = plain(x, noise)
    ours = terms(out, x)
    torch.testing.assert_close(torch.stack(rates, dim=1), ours.rates, **TOLERANCE)
    loss = Objective(kl_warmup=0.0).loss(ours, 1.0)
    theirs = (torch.stack(rates).sum(0) - log_prob).mean()
    torch.testing.assert_close(theirs, loss, **TOLERANCE)
    loss.backward()
    theirs.backward()
    named = dict(plain.named_parameters())
    compared = 0
    for key, mine in model.named_parameters():
        other = named[key.removeprefix("encoder.").removeprefix("decoder.").removeprefix("out_net.")]
        torch.testing.assert_close(other.grad, mine.grad, **TOLERANCE)
        compared += 1
    assert compared == len(named)


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_vdvae(name):
    model, plain = pair(name)
    with torch.no_grad():
        ours = model.eval().sample(3, Draw(torch.tensor(0), noise=noise), 0.7)
        parameters = ours.parameters if isinstance(ours, DiscretizedLogisticMixture) else ours.logits
        torch.testing.assert_close(plain.eval().sample_parameters(3, 0.7, noise), parameters, **TOLERANCE)
        if model.image.channels == 1:
            torch.testing.assert_close(plain.sample(3, 0.7, noise), ours.mean(), **TOLERANCE)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_lowers_the_loss_of_a_copy(average):
    model, plain = pair("grey, padded")
    before = [p.clone() for p in model.parameters()]
    training, x = PlainVDVAETraining(plain, 1e-2, average=average), images(model.image)
    losses = [float(training.step(x)) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1  # of ln 2 that random pixels cost before they are learned
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    moved = [not torch.equal(a, p) for a, p in zip(training.averages, plain.parameters(), strict=bool(average))]
    assert any(moved) == bool(average)


@pytest.mark.parametrize(
    ("config", "likelihood", "words"),
    [
        (VDVAEConfig(*BLOCKS, width=8, latent_scale="softplus"), MIXTURE, "latent_scale"),
        (VDVAEConfig(*BLOCKS, width=8), GaussianSpec(), "likelihood"),
    ],
)
def test_what_the_plain_one_lacks_is_refused(config, likelihood, words):
    with pytest.raises(ValueError, match=words):
        plain_vdvae(VDVAE(config, COLOUR, likelihood, REFERENCE))
