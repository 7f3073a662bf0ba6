"""The two towers of VDVAE: encoder from the image to the coarsest map, decoder back, a latent group a block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.ops import Ops
from models.vdvae.blocks import Parameters, ResidualBlock, TopDownBlock, plain_conv, scale_weight
from models.vdvae.config import VDVAEConfig
from models.vdvae.layers import DecoderBlock

Activations = dict[int, Tensor]
"""The encoder's last map (B, W, R, R) at each resolution R."""
Latent = Callable[[int, Parameters, Parameters | None], Tensor]
"""z of a group from its index, the prior's parameters, and the posterior's where images are seen."""


class Encoder(nn.Module):
    """A 3x3 convolution of the image, then residual blocks and average pooling."""

    def __init__(self, config: VDVAEConfig, channels: int, ops: Ops) -> None:
        super().__init__()
        self.config = config
        self.in_conv = plain_conv(channels, config.width, 3, ops)
        self.enc_blocks = nn.ModuleList()
        for layer in config.encoder:
            width = config.width_at(layer.resolution)
            block = ResidualBlock(width, config.hidden(width), layer.resolution, ops, recompute=config.recompute)
            scale_weight(block.c4, math.sqrt(1 / len(config.encoder)))
            self.enc_blocks.append(block)

    def forward(self, x: Tensor) -> Activations:
        """Maps of images (B, C, R, R) in [0, 1] by resolution."""
        config = self.config
        pixels = (255 * x - config.pixel_mean) / config.pixel_std
        x = self.in_conv(pixels.contiguous(memory_format=torch.channels_last))
        found = {config.side: x}
        for layer, block in zip(config.encoder, self.enc_blocks, strict=True):
            x = block(x)
            if layer.pool > 1:
                x = F.avg_pool2d(x, layer.pool)
            appended = config.width_at(layer.out) - x.shape[1]
            found[layer.out] = x = F.pad(x, (0, 0, 0, 0, 0, appended)) if appended else x
        return found


class OutNet(nn.Module):
    """1x1 convolution of the last state to likelihood parameters."""

    def __init__(self, width: int, parameters: int, ops: Ops) -> None:
        super().__init__()
        self.out_conv = plain_conv(width, parameters, 1, ops)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, R, R) -> (B, P, R, R)."""
        return self.out_conv(x)


class Decoder(nn.Module):
    """Top-down blocks over one state a resolution, a gain and bias a channel, and the likelihood's parameters."""

    def __init__(self, config: VDVAEConfig, parameters: int, ops: Ops) -> None:
        super().__init__()
        self.config, self.layers, self.network = config, config.decoder, ops.network
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.dec_blocks = nn.ModuleList(TopDownBlock(config, layer.resolution, ops) for layer in self.layers)
        self.bias_xs = nn.ParameterList(torch.zeros(1, config.width_at(r), r, r) for r in config.biased)
        self.out_net = OutNet(config.width, parameters, ops)

    def forward(self, n: int, latent: Latent, features: Activations | None = None) -> Tensor:
        """The last state (n, W, R, R), scaled and shifted, of `n` images whose latents `latent` gives.

        Posteriors are worked out where the encoder's maps of the images are given.
        """
        seen = None if features is None else self._seen(features)
        states = {
            resolution: bias.expand(n, -1, -1, -1).contiguous(memory_format=torch.channels_last)
            for resolution, bias in zip(self.config.biased, self.bias_xs, strict=True)
        }
        for index, (layer, block) in enumerate(self._blocks()):
            x = self._before(layer, states, n)
            prior, posterior = (block.prior_of(x), None) if seen is None else block.both_of(x, seen[index])
            z = latent(index, prior.parameters, posterior)
            states[layer.resolution] = block.merged(prior.state, z)
        return torch.addcmul(self.bias, states[self.config.side], self.gain)

    def _seen(self, features: Activations) -> list[Tensor]:
        """What the posterior of each block sees of the encoder's maps, (B, hidden, R, R): one pass over each."""
        found: list[Tensor] = []
        for resolution, group in itertools.groupby(self._blocks(), lambda one: one[0].resolution):  # they never fall
            blocks = [block for _, block in group]
            weights = torch.cat([block.seen_weight() for block in blocks])
            maps = self.network.convolution(features[resolution], weights, None, blocks[0].enc.c1.form)
            found += maps.split(blocks[0].hidden, dim=1)
        return found

    def _blocks(self) -> list[tuple[DecoderBlock, TopDownBlock]]:
        """The layers and their blocks."""
        return list(zip(self.layers, cast(Iterable[TopDownBlock], self.dec_blocks), strict=True))

    def _before(self, layer: DecoderBlock, states: Activations, n: int) -> Tensor:
        """The state before a block: its resolution's, with the source's pixels repeated; zero where it has none yet."""
        resolution, width = layer.resolution, self.config.width_at(layer.resolution)
        if layer.source is None:
            return states[resolution] if resolution in states else self.gain.new_zeros(n, width, resolution, resolution)
        coarse = states[layer.source][:, :width]
        repeated = F.interpolate(coarse, scale_factor=resolution // layer.source, mode="nearest")
        return states[resolution] + repeated if resolution in states else repeated
