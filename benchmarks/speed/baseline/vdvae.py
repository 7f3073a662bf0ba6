"""The plain VDVAE: the published architecture on stock operators, in the design of the published code.

Written from the description of the architecture (Child 2021, "Very Deep VAEs Generalize Autoregressive Models and Can
Outperform Them on Images"), not from that code. It loads the state of `models.vdvae.VDVAE`, gives the same values and
gradients, and shares no code with it but configuration and protocols. As the published code it is eager and in NCHW:
GELU and convolution are passes over memory of their own, the KL of every group is kept whole, gradients are clipped by
their norm, and every parameter is averaged by itself after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.baseline.distributions import plain_likelihood
from models.output import ImageShape, LikelihoodSpec
from models.vdvae.config import VDVAEConfig
from models.vdvae.model import VDVAE, padding

Noise = Callable[[int, torch.Size], Tensor]
"""External noise of a latent group, from the group's index and its shape."""


class PlainBlock(nn.Module):
    """GELU and convolution, four times: 1x1, two of `kernel`, 1x1; added to the input with `residual`."""

    def __init__(self, c_in: int, hidden: int, c_out: int, kernel: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.c1 = nn.Conv2d(c_in, hidden, 1)
        self.c2 = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(hidden, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R) -> (B, C_out, R, R)."""
        y = x
        for conv in (self.c1, self.c2, self.c3, self.c4):
            y = conv(F.gelu(y))
        return x + y if self.residual else y


class PlainTopDownBlock(nn.Module):
    """Posterior, prior, projection of the latents, and the residual block behind them."""

    def __init__(self, config: VDVAEConfig, resolution: int) -> None:
        super().__init__()
        width, self.latents = config.width_at(resolution), config.latent_channels
        hidden, kernel = config.hidden(width), 3 if resolution > 2 else 1
        self.enc = PlainBlock(2 * width, hidden, 2 * self.latents, kernel)
        self.prior = PlainBlock(width, hidden, 2 * self.latents + width, kernel)
        self.z_proj = nn.Conv2d(self.latents, width, 1)
        self.resnet = PlainBlock(width, hidden, width, kernel, residual=True)

    def forward(
        self, x: Tensor, activation: Tensor | None, noise: Callable[[Tensor], Tensor], temperature: float
    ) -> tuple[Tensor, Tensor | None]:
        """The next state, and the KL (B, Z, R, R) where the encoder's map is given; without it z is the prior's."""
        mean, log_scale, feature = self.prior(x).split((self.latents, self.latents, x.shape[1]), dim=1)
        kl = None
        if activation is None:
            z = mean + (log_scale + math.log(temperature)).exp() * noise(mean)
        else:
            q_mean, q_log_scale = self.enc(torch.cat([x, activation], dim=1)).chunk(2, dim=1)
            ratio, shift = q_log_scale.exp() ** 2, (q_mean - mean) ** 2
            kl = -0.5 + log_scale - q_log_scale + 0.5 * (ratio + shift) / (log_scale.exp() ** 2)
            z = q_mean + q_log_scale.exp() * noise(q_mean)
        return self.resnet(x + feature + self.z_proj(z)), kl


class PlainVDVAE(nn.Module):
    """VDVAE for Bernoulli and logistic-mixture likelihoods; images are in [0, 1].

    Raises:
        ValueError: latent scales that are not given as logarithms, or another likelihood.
    """

    def __init__(self, config: VDVAEConfig, image: ImageShape, likelihood: LikelihoodSpec) -> None:
        super().__init__()
        if config.latent_scale != "log":
            raise ValueError(f"plain VDVAE: expected latent_scale 'log', got '{config.latent_scale}'")
        self.config, self.image, self.likelihood, self.pad = config, image, likelihood, padding(image, config.side)
        outputs = likelihood.parameter_channels(image.channels)
        plain_likelihood(likelihood, torch.empty(1, outputs, 1, 1))
        self.in_conv = nn.Conv2d(image.channels, config.width, 3, padding=1)
        self.enc_blocks = nn.ModuleList()
        for layer in config.encoder:
            width = config.width_at(layer.resolution)
            kernel = 3 if layer.resolution > 2 else 1
            self.enc_blocks.append(PlainBlock(width, config.hidden(width), width, kernel, residual=True))
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.dec_blocks = nn.ModuleList(PlainTopDownBlock(config, layer.resolution) for layer in config.decoder)
        self.bias_xs = nn.ParameterList(torch.zeros(1, config.width_at(r), r, r) for r in config.biased)
        self.out_conv = nn.Conv2d(config.width, outputs, 1)

    def forward(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, list[Tensor]]:
        """Log p(x given z) (B,), and KL(posterior, prior) (B,) of each latent group, coarse to fine, in nats."""
        parameters, divergences = self._top_down(len(x), self._bottom_up(x), noise)
        rates = [kl.sum((1, 2, 3)) for kl in divergences]
        return plain_likelihood(self.likelihood, parameters).log_prob(x), rates

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Mean images (B, C, H, W) of `n` draws from the prior, whose scales are multiplied by `temperature`."""
        return plain_likelihood(self.likelihood, self.sample_parameters(n, temperature, noise)).mean()

    def sample_parameters(self, n: int, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Likelihood parameters (B, P, H, W) of `n` draws from the prior."""
        return self._top_down(n, None, noise, temperature)[0]

    def _bottom_up(self, x: Tensor) -> dict[int, Tensor]:
        """Maps of the encoder by resolution."""
        config = self.config
        x = (255 * F.pad(x, (self.pad,) * 4) - config.pixel_mean) / config.pixel_std
        x = self.in_conv(x)
        maps = {config.side: x}
        for layer, block in zip(config.encoder, self.enc_blocks, strict=True):
            x = block(x)
            if layer.pool > 1:
                x = F.avg_pool2d(x, layer.pool)
            x = _with_channels(x, config.width_at(layer.out))
            maps[layer.out] = x
        return maps

    def _top_down(
        self, n: int, maps: dict[int, Tensor] | None, noise: Noise | None, temperature: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """Likelihood parameters of the unpadded image, and the KL of every group where the encoder's maps are given."""
        config, divergences = self.config, []
        states = {r: bias.repeat(n, 1, 1, 1) for r, bias in zip(config.biased, self.bias_xs, strict=True)}
        for index, (layer, block) in enumerate(zip(config.decoder, self.dec_blocks, strict=True)):
            r, width = layer.resolution, config.width_at(layer.resolution)
            x = states[r] if r in states else self.gain.new_zeros(n, width, r, r)
            if layer.source is not None:
                coarse = states[layer.source][:, :width]
                x = x + F.interpolate(coarse, scale_factor=r // layer.source, mode="nearest")

            def drawn(like: Tensor, index: int = index) -> Tensor:
                return torch.randn_like(like) if noise is None else noise(index, like.shape).to(like)

            states[r], kl = block(x, None if maps is None else maps[r], drawn, temperature)
            divergences += [] if kl is None else [kl]
        parameters = self.out_conv(states[config.side] * self.gain + self.bias)
        bottom, right = self.pad + self.image.height, self.pad + self.image.width
        return parameters[:, :, self.pad : bottom, self.pad : right], divergences


class PlainVDVAETraining:
    """Training steps of a plain VDVAE: loss per dimension, clipping, AdamW, and an average of the weights.

    Args:
        model: is put into training mode.
        learning_rate: of AdamW.
        clip_norm: largest norm of the gradient of the loss in nats/dim.
        average: share of the average of the weights that a step keeps; 0 for no average.
    """

    def __init__(
        self, model: PlainVDVAE, learning_rate: float = 2e-4, clip_norm: float = 200.0, average: float = 0.999
    ) -> None:
        self.model, self.clip_norm, self.average = model.train(), clip_norm, average
        self.optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.9), weight_decay=0.01)
        self.averages = [p.detach().clone() for p in model.parameters()] if average else []

    def step(self, x: Tensor) -> Tensor:
        """Loss () in nats/dim of images x (B, C, H, W) before the step that it makes."""
        self.optimizer.zero_grad()
        log_prob, rates = self.model(x)
        loss = (torch.stack(rates).sum(0) - log_prob).mean() / self.model.image.dims
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        with torch.no_grad():
            for kept, parameter in zip(self.averages, self.model.parameters(), strict=bool(self.averages)):
                kept.mul_(self.average).add_(parameter * (1 - self.average))
        return loss.detach()


def plain_vdvae(model: VDVAE) -> PlainVDVAE:
    """The plain VDVAE of a built model's configuration, state, type, device and mode.

    Raises:
        ValueError: a scale of the latents, or a likelihood, that the plain one lacks.
    """
    plain = PlainVDVAE(model.config, model.image, model.likelihood).to(model.decoder.gain)
    for mine, theirs in zip(plain.state_dict().values(), _in_order(model), strict=True):
        mine.copy_(theirs)
    return plain.train(model.training)


def _in_order(model: VDVAE) -> list[Tensor]:
    """The model's tensors in the order of the plain one's."""
    state = model.state_dict()
    parts = ("decoder.gain", "decoder.bias", "encoder.in_conv", "encoder.enc_blocks", "decoder.dec_blocks")
    parts += ("decoder.bias_xs", "decoder.out_net")
    return [value for part in parts for key, value in state.items() if key == part or key.startswith(f"{part}.")]


def _with_channels(x: Tensor, channels: int) -> Tensor:
    """The map with channels of zeros appended."""
    missing = channels - x.shape[1]
    return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1) if missing else x
