"""The plain NVAE: the published architecture in the design of the published code, a yardstick for timings.

Written from the description of the architecture (Vahdat & Kautz 2021, "NVAE: A Deep Hierarchical Variational
Autoencoder", and measurements of where the released code spends its time), not from that code. It loads the state of
`models.nvae.NVAE`, gives the same values and gradients, and shares no code with it but configuration and protocols.

Deliberately kept slow, because the released code works so and the yardstick must be as fast as it, neither faster nor
slower:

* eager, images and features in NCHW; batch norm, sigmoid and product are separate passes over memory;
* weight norm once per convolution in every forward pass, also in evaluation and sampling;
* pixels repeated and interpolated before the pointwise work, which then runs on four times as many;
* the skip path that halves the resolution as four strided convolutions and a concatenation;
* log q, log p and the KL per channel of every latent group in every pass, also where nothing uses them;
* likelihoods that materialise every term;
* importance weights from complete passes, encoder included, one per draw;
* and the training step of `plain_training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.baseline.distributions import PlainLikelihood, PlainNormal, plain_likelihood
from benchmarks.speed.baseline.layers import PlainCell, PlainDecoderCombiner, PlainEncoderCombiner, conv2d
from models.nvae.config import ARCHITECTURES, CellOps, NVAEConfig
from models.nvae.model import NVAE
from models.output import ImageShape, LikelihoodSpec, fitting_pad

Noise = Callable[[int, torch.Size], Tensor]
"""External noise of a latent group, from the group's index and its shape."""


@dataclass(frozen=True)
class PlainPass:
    """What one pass over images computes, used or not: nats per image, groups coarse -> fine.

    `rates` are (B,) per group; `rates_per_channel` (Z,) per group, means over the batch, which the released code logs;
    `log_q` and `log_p` (B,) are summed over all groups.
    """

    likelihood: PlainLikelihood
    rates: list[Tensor]
    rates_per_channel: list[Tensor]
    log_q: Tensor
    log_p: Tensor


class PlainNVAE(nn.Module):
    """NVAE without flows, for Bernoulli and logistic-mixture likelihoods; images are in [0, 1] and unpadded.

    Raises:
        ValueError: a configuration with flows, or another likelihood.
    """

    def __init__(self, config: NVAEConfig, image: ImageShape, likelihood: LikelihoodSpec) -> None:
        super().__init__()
        if config.flows:
            raise ValueError(f"plain NVAE: expected a configuration without flows, got flows = {config.flows}")
        self.config, self.image, self.likelihood = config, image, likelihood
        self.pad = fitting_pad(image, 2**config.halvings, config.pad)
        top = config.channels_at(config.channels_decoder, config.halvings)
        self.prior_ftr0 = nn.Parameter(torch.rand(top, *self._resolution(config.halvings)))
        self.stem = conv2d(image.channels, config.channels_encoder, 3, normalised=config.weight_norm)
        self.pre_process = nn.Sequential(*_preprocess_cells(config))
        self._build_towers()
        self.post_process = nn.Sequential(*_postprocess_cells(config))
        outputs = likelihood.parameter_channels(image.channels)
        plain_likelihood(likelihood, torch.empty(1, outputs, 1, 1))
        self.image_conditional = nn.Sequential(
            nn.ELU(), conv2d(config.channels_decoder, outputs, 3, normalised=config.weight_norm)
        )

    def _build_towers(self) -> None:
        """The parts between pre- and post-processing, in the order of the keys of `models.nvae`."""
        config, normalised = self.config, self.config.weight_norm
        single = config.single_group
        self.enc_tower = nn.ModuleList([] if single else _encoder_layers(config))
        coarse = config.channels_at(config.channels_encoder, config.halvings)
        self.enc0 = nn.Sequential(nn.ELU(), conv2d(coarse, coarse, 1, normalised=normalised), nn.ELU())
        levels, raw = _group_halvings(config), 2 * config.latent_channels
        encoder, decoder = config.channels_encoder, config.channels_decoder
        self.enc_sampler = nn.ModuleList(
            conv2d(config.channels_at(encoder, level), raw, 3, normalised=normalised) for level in levels
        )
        self.dec_sampler = nn.ModuleList(
            nn.Sequential(nn.ELU(), conv2d(config.channels_at(decoder, level), raw, 1, normalised=normalised))
            for level in levels[1:]
        )
        if single:
            self.stem_decoder = conv2d(config.latent_channels, coarse, 1, normalised=normalised)
        else:
            self.dec_tower = nn.ModuleList(_decoder_layers(config))

    def _resolution(self, halvings: int) -> tuple[int, int]:
        """Height and width of features after `halvings` halvings of the padded image."""
        return (self.image.height + 2 * self.pad) >> halvings, (self.image.width + 2 * self.pad) >> halvings

    def forward(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, list[Tensor]]:
        """Log p(x given z) (B,), and KL(posterior, prior) (B,) of each latent group, coarse -> fine, in nats."""
        done = self.infer(x, noise)
        return done.likelihood.log_prob(x), done.rates

    @torch.no_grad()
    def elbo(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Evidence lower bound (B,), nats per image, from one draw."""
        log_prob, rates = self(x, noise)
        return log_prob - torch.stack(rates).sum(0)

    @torch.no_grad()
    def iwae(self, x: Tensor, k: int, noise: Noise | None = None) -> Tensor:
        """Importance-weighted bound (B,) of `k` complete passes: log 1/K sum_k p(x given z_k) p(z_k) / q(z_k)."""
        log_weights = []
        for _ in range(k):
            done = self.infer(x, noise)
            log_weights.append(done.likelihood.log_prob(x) - done.log_q + done.log_p)
        return torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(k)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Mean images (B, C, H, W) of `n` draws from the prior, whose scales are multiplied by `temperature`."""
        return plain_likelihood(self.likelihood, self.sample_parameters(n, temperature, noise)).mean()

    def sample_parameters(self, n: int, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Likelihood parameters (B, P, H, W) of `n` draws from the prior."""
        shape = (n, self.config.latent_channels, *self._resolution(self.config.halvings))

        def generate(index: int, state: Tensor) -> Tensor:
            if index == 0:
                mean = log_scale = torch.zeros(shape, dtype=state.dtype, device=state.device)
            else:
                mean, log_scale = self.dec_sampler[index - 1](state).chunk(2, dim=1)
            return PlainNormal(mean, log_scale, temperature).draw(_noise(mean, index, noise))

        return self._decode(self._top_down(n, generate))

    def infer(self, x: Tensor, noise: Noise | None = None) -> PlainPass:
        """One pass over images x (B, C, H, W): bottom-up, top-down with z from the posterior, and decoding."""
        top, remembered = self._bottom_up(x)
        log_q: list[Tensor] = []
        log_p: list[Tensor] = []
        divergences: list[Tensor] = []

        def draw(index: int, state: Tensor) -> Tensor:
            posterior, prior = self._beliefs(index, state, top, remembered)
            z = posterior.draw(_noise(posterior.mean, index, noise))
            log_q.append(posterior.log_prob(z).sum((1, 2, 3)))
            log_p.append(prior.log_prob(z).sum((1, 2, 3)))
            divergences.append(posterior.kl(prior))
            return z

        parameters = self._decode(self._top_down(len(x), draw))
        return PlainPass(
            plain_likelihood(self.likelihood, parameters),
            [kl.sum((1, 2, 3)) for kl in divergences],
            [kl.sum((2, 3)).mean(0) for kl in divergences],
            torch.stack(log_q).sum(0),
            torch.stack(log_p).sum(0),
        )

    def _beliefs(
        self, index: int, state: Tensor, top: Tensor, remembered: list[tuple[PlainEncoderCombiner, Tensor]]
    ) -> tuple[PlainNormal, PlainNormal]:
        """Posterior and prior of a latent group, given the top-down state before it."""
        if index == 0:
            mean, log_scale = self.enc_sampler[0](top).chunk(2, dim=1)
            return PlainNormal(mean, log_scale), PlainNormal(torch.zeros_like(mean), torch.zeros_like(log_scale))
        combiner, feature = remembered.pop()
        prior_mean, prior_log_scale = self.dec_sampler[index - 1](state).chunk(2, dim=1)
        mean, log_scale = self.enc_sampler[index](combiner(feature, state)).chunk(2, dim=1)
        if self.config.residual_posterior:
            mean, log_scale = mean + prior_mean, log_scale + prior_log_scale
        return PlainNormal(mean, log_scale), PlainNormal(prior_mean, prior_log_scale)

    def _bottom_up(self, x: Tensor) -> tuple[Tensor, list[tuple[PlainEncoderCombiner, Tensor]]]:
        """Coarsest feature, and the features that later groups' posteriors need, with their combiners."""
        state = self.pre_process(self.stem(2 * F.pad(x, (self.pad,) * 4) - 1))
        remembered: list[tuple[PlainEncoderCombiner, Tensor]] = []
        for layer in self.enc_tower:
            if isinstance(layer, PlainEncoderCombiner):
                remembered.append((layer, state))
            else:
                state = layer(state)
        return self.enc0(state), remembered

    def _top_down(self, n: int, latent: Callable[[int, Tensor], Tensor]) -> Tensor:
        """State after all groups; `latent` gives z of a group from its index and the state before it."""
        state = self.prior_ftr0.expand(n, -1, -1, -1)
        if self.config.single_group:
            return self.stem_decoder(latent(0, state))
        group = 0
        for layer in self.dec_tower:
            if isinstance(layer, PlainDecoderCombiner):
                state = layer(state, latent(group, state))
                group += 1
            else:
                state = layer(state)
        return state

    def _decode(self, state: Tensor) -> Tensor:
        """Likelihood parameters (B, P, H, W) of the unpadded image."""
        parameters = self.image_conditional(self.post_process(state))
        bottom, right = self.pad + self.image.height, self.pad + self.image.width
        return parameters[:, :, self.pad : bottom, self.pad : right]


def plain_nvae(model: NVAE) -> PlainNVAE:
    """The plain NVAE of a built model's configuration, state, type, device and mode.

    Raises:
        ValueError: a residual VAE, flows, or a likelihood that the plain one lacks.
    """
    if not model.hierarchical:
        raise ValueError(f"plain NVAE: expected latents in all groups, got a {type(model).__name__}")
    plain = PlainNVAE(model.config, model.image, model.likelihood).to(model.prior_ftr0)
    state = model.state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if not key.startswith("norms.")})
    return plain.train(model.training)


def _noise(like: Tensor, group: int, noise: Noise | None) -> Tensor:
    """Standard normal noise of a group's shape, or the external one."""
    return torch.randn_like(like) if noise is None else noise(group, like.shape).to(like)


def _group_halvings(config: NVAEConfig) -> list[int]:
    """Halvings between the image and each latent group, coarse -> fine."""
    levels = reversed(list(enumerate(config.groups_fine_to_coarse)))
    return [config.preprocess_blocks + level for level, groups in levels for _ in range(groups)]


def _keep(ops: CellOps, count: int, channels: int, config: NVAEConfig) -> Iterator[nn.Module]:
    """`count` cells that change neither channels nor resolution."""
    return (PlainCell(ops, channels, channels, "keep", config) for _ in range(count))


def _preprocess_cells(config: NVAEConfig) -> Iterator[nn.Module]:
    """Cells from the stem to the first latent resolution; each block ends with a down-sampling cell."""
    ops, base = ARCHITECTURES[config.arch].preprocess, config.channels_encoder
    for block in range(config.preprocess_blocks):
        wide, wider = config.channels_at(base, block), config.channels_at(base, block + 1)
        yield from _keep(ops, config.preprocess_cells - 1, wide, config)
        yield PlainCell(ops, wide, wider, "down", config)


def _encoder_layers(config: NVAEConfig) -> Iterator[nn.Module]:
    """Bottom-up cells, fine to coarse; each group but the coarsest ends with its combiner."""
    ops, base, left = ARCHITECTURES[config.arch].encoder, config.channels_encoder, config.total_groups
    for level, groups in enumerate(config.groups_fine_to_coarse, start=config.preprocess_blocks):
        wide = config.channels_at(base, level)
        for _ in range(groups):
            yield from _keep(ops, config.cells_per_group_encoder, wide, config)
            left -= 1
            if left:
                yield PlainEncoderCombiner(wide, config.channels_at(config.channels_decoder, level), config)
        if level < config.halvings:
            yield PlainCell(ops, wide, config.channels_at(base, level + 1), "down", config)


def _decoder_layers(config: NVAEConfig) -> Iterator[nn.Module]:
    """Top-down cells, coarse to fine; each group ends with its combiner, and the first has no cells before it."""
    ops, base = ARCHITECTURES[config.arch].decoder, config.channels_decoder
    levels = _group_halvings(config)
    for index, level in enumerate(levels):
        wide = config.channels_at(base, level)
        if index:
            yield from _keep(ops, config.cells_per_group_decoder, wide, config)
        yield PlainDecoderCombiner(wide, config.latent_channels, config)
        if index + 1 < len(levels) and levels[index + 1] < level:
            yield PlainCell(ops, wide, config.channels_at(base, level - 1), "up", config)


def _postprocess_cells(config: NVAEConfig) -> Iterator[nn.Module]:
    """Cells from the finest latent resolution to the image; each block starts with an up-sampling cell."""
    ops, base = ARCHITECTURES[config.arch].postprocess, config.channels_decoder
    for block in reversed(range(config.preprocess_blocks)):
        narrow = config.channels_at(base, block)
        yield PlainCell(ops, config.channels_at(base, block + 1), narrow, "up", config)
        yield from _keep(ops, config.postprocess_cells - 1, narrow, config)
