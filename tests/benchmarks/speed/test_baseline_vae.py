"""The plain loop computes what the VAE computes, and trains."""

import pytest
import torch

from benchmarks.speed.baseline.vae import PlainLoop, PlainVAE
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.likelihoods import BernoulliSpec
from models.output import Draw, ImageShape
from models.vanilla.vae import VAE, VAEConfig

GREY = ImageShape(1, 28, 28)
CONFIGS = {"mlp": VAEConfig(hidden=(32, 24), latent_size=6), "convolutional": VAEConfig(channels=4, latent_size=6)}
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}  # float64, summed in another order


def make(name, image=GREY, pad=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = VAEConfig(channels=4, pad=pad) if pad else CONFIGS[name]
        return VAE(config, image, BernoulliSpec(), REFERENCE).train()


def images(n):
    return torch.randint(0, 256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_gradients_and_statistics_are_those_of_the_vae(name, channels_last):
    vae = make(name).double()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    plain = PlainVAE(vae).to(memory_format=layout, dtype=torch.float64)
    x = (images(5) > 127).double()
    noise = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    draw = Draw(torch.tensor(0), noise=lambda group, shape: noise.view(shape))
    ours = Objective(kl_warmup=0.0).loss(terms(vae(x, draw), x), 1.0)
    theirs = plain.loss(x, noise)
    torch.testing.assert_close(theirs, ours, **TOLERANCE)
    ours.backward()
    theirs.backward()
    for mine, other in zip(vae.parameters(), plain.parameters(), strict=True):
        transposed = mine.shape != other.shape  # the first matrix of the MLP
        torch.testing.assert_close(other.grad, mine.grad.t() if transposed else mine.grad, **TOLERANCE)
    for mine, other in zip(vae.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(other, mine, **TOLERANCE)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loop_trains_a_copy(name, fresh):
    vae = make(name)
    before = [p.clone() for p in vae.parameters()]
    loop = PlainLoop(vae, images(40), batch_size=10, learning_rate=1e-2, fresh=fresh)
    x = (images(40) > 127).float()
    with torch.no_grad():
        start = float(loop.model.loss(x))
    for _ in range(30):
        loop.step()
    with torch.no_grad():
        assert float(loop.model.loss(x)) < start
    assert all(torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))


def test_an_epoch_shows_every_image_once():
    """What the loop is given, batch by batch, is a permutation of the images."""
    loop = PlainLoop(make("mlp"), images(40), batch_size=10, learning_rate=1e-2)
    loop.step()
    seen = torch.cat(loop.order)
    assert len(seen) == len(set(seen.tolist())) == 30


def test_a_vae_that_pads_is_refused():
    with pytest.raises(ValueError, match="no padding"):
        PlainVAE(make("convolutional", pad=2))
