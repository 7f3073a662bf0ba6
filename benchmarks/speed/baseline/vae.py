"""The plain loop: the vanilla VAE trained as a good engineer writes it in an afternoon, a yardstick for timings.

    loop = PlainLoop(vae, images, batch_size=100, learning_rate=1e-3)
    loop.step()  # one training step on the next batch

`vae` is a `models.vanilla.vae.VAE`, convolutional or MLP, without padding; its weights are copied, and it is left as
it is.
`images` (N, C, H, W) uint8 are kept in memory as floats. The loop has what is fast and at hand: fused Adam, the
likelihood from logits, the analytic KL, no look at the loss. It has no clipping, no schedule, no keyed randomness and
no guard against a loss that is not finite. `fresh` binarises each batch anew, as this suite does; without it the images
are binarised once. `channels_last` lays images and convolutions out so.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.output import ImageShape
from models.vanilla.vae import VAE, VAEConfig


def _mlp(config: VAEConfig, image: ImageShape) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of linear layers with ReLUs between them."""

    def layers(*sizes: int) -> list[nn.Module]:
        found: list[nn.Module] = []
        for narrow, wide in pairwise(sizes):
            found += [nn.Linear(narrow, wide), nn.ReLU()]
        return found[:-1]

    shape = (image.channels, image.height, image.width)
    encoder = layers(image.dims, *config.hidden, 2 * config.latent_size)
    decoder = layers(config.latent_size, *config.hidden[::-1], image.dims)
    return nn.Sequential(nn.Flatten(), *encoder), nn.Sequential(*decoder, nn.Unflatten(1, shape))


def _convolutional(config: VAEConfig, image: ImageShape) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of 3x3 convolutions, batch norm and SiLU, with poolings and up-samplings."""

    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU()]

    widths = [config.channels * 2**level for level in range(config.halvings + 1)]
    factor = 2**config.halvings
    bottom = (widths[-1], image.height // factor, image.width // factor)
    size = bottom[0] * bottom[1] * bottom[2]
    encoder = block(image.channels, widths[0])
    for narrow, wide in pairwise(widths):
        encoder += [nn.MaxPool2d(2), *block(narrow, wide), *block(wide, wide)]
    encoder += [nn.Flatten(), nn.Linear(size, 2 * config.latent_size)]
    decoder: list[nn.Module] = [nn.Linear(config.latent_size, size), nn.Unflatten(1, bottom)]
    for wide, narrow in pairwise(widths[::-1]):
        decoder += [*block(wide, wide), *block(wide, narrow), nn.Upsample(scale_factor=2)]
    decoder += [*block(widths[0], widths[0]), nn.Conv2d(widths[0], image.channels, 3, padding=1)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


class PlainVAE(nn.Module):
    """The VAE with Bernoulli pixels, with a copy of the weights of `vae`.

    Raises:
        ValueError: a VAE that pads its images.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        if vae.pad:
            raise ValueError(f"plain VAE: expected images that need no padding, got {vae.image} with pad {vae.pad}")
        self.convolutional = not vae.config.hidden
        self.encoder, self.decoder = (_convolutional if self.convolutional else _mlp)(vae.config, vae.image)
        for mine, theirs in zip(self.state_dict().values(), vae.state_dict().values(), strict=True):
            mine.copy_(theirs if mine.shape == theirs.shape else theirs.t())  # the MLP's first one is transposed

    def loss(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Mean of -log p(x given z) + KL over binary images x (B, C, H, W), nats; `noise` (B, Z) or drawn."""
        mean, log_scale = self.encoder(2 * x - 1 if self.convolutional else x).chunk(2, 1)
        noise = torch.randn_like(mean) if noise is None else noise
        logits = self.decoder(mean + log_scale.exp() * noise)
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return (distortion + rate) / len(x)


class PlainLoop:
    """Training of a `PlainVAE`, step by step."""

    def __init__(
        self,
        vae: VAE,
        images: Tensor,
        batch_size: int,
        learning_rate: float,
        fresh: bool = True,
        channels_last: bool = False,
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = PlainVAE(vae).to(memory_format=layout).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate, fused=True)
        images = images.float() / 255
        self.images, self.batch_size, self.fresh = images if fresh else torch.bernoulli(images), batch_size, fresh
        self.order: list[Tensor] = []

    def step(self) -> None:
        """Train on the next batch; a new epoch starts with a new order."""
        if not self.order:
            whole = len(self.images) // self.batch_size
            self.order = list(torch.randperm(len(self.images)).split(self.batch_size)[:whole])
        x = self.images[self.order.pop()]
        loss = self.model.loss(torch.bernoulli(x) if self.fresh else x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
