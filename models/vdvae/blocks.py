"""Blocks of VDVAE: the bottleneck of four convolutions, and the top-down block that draws a latent group.

Attribute names are those of the released checkpoints, so that their keys load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.cell_form import CellForm, CellTensors, Convolution, LayerForm, PackedCell
from kernels.ops import NetworkOps, Ops
from models.layers.convolutions import ActivatedConv2d
from models.layers.halves import halves
from models.layers.kept import Kept
from models.vdvae.config import VDVAEConfig

LARGEST_POINTWISE = 2
"""Largest resolution whose blocks see single pixels: a 3x3 kernel would see padding more than map."""
LINEAR_BELOW = -40.0
"""Where log(ln(1 + e^v)) is v in any precision."""

Parameters = tuple[Tensor, Tensor]
"""Mean and log scale of a latent group, (B, Z, R, R) each."""


def plain_conv(c_in: int, c_out: int, kernel: int, ops: Ops, *, activated: bool = False) -> ActivatedConv2d:
    """[GELU and] a convolution whose bias starts at 0."""
    conv = ActivatedConv2d(c_in, c_out, kernel, activation="gelu" if activated else "none", network=ops.network)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


@torch.no_grad()
def scale_weight(conv: nn.Conv2d, factor: float) -> None:
    """Multiply the weight that a convolution starts with."""
    conv.weight.mul_(factor)


class ConvolutionCell(nn.Module):
    """Convolutions without norms as one operation of `ops.network`; in evaluation weights are packed for many batches.

    Its weights are other modules'.
    """

    def __init__(
        self, layers: Sequence[LayerForm], network: NetworkOps, *, residual: bool, recompute: bool = False
    ) -> None:
        super().__init__()
        self.form, self.network = CellForm(tuple(layers), recompute=recompute, residual=residual), network
        self._packed: Kept[PackedCell] = Kept()

    def forward(self, x: Tensor, skip: Tensor | None, *convolutions: Convolution) -> Tensor:
        """[skip, or x where it is null, +] convolutions of x (B, C, R, R)."""
        tensors = CellTensors((None,) * (len(convolutions) + 1), convolutions)
        if self.training or torch.is_grad_enabled():
            return self.network.residual_cell(x, skip, self.form, tensors, training=True)  # which only norms heed
        made_of = [one for one in tensors.flat() if one is not None]
        packed = self._packed.of(made_of, lambda: self.network.pack_cell(self.form, tensors))
        return self.network.run_packed(packed, x, skip)

    def train(self, mode: bool = True) -> ConvolutionCell:
        """Switch between training and evaluation; what was packed is forgotten."""
        self._packed.clear()
        return super().train(mode)


def convolution_of(conv: ActivatedConv2d) -> Convolution:
    """Weight and bias of a convolution."""
    return Convolution(conv.weight, conv.bias)


class Bottleneck(nn.Module):
    """GELU before each of four convolutions: 1x1 into `hidden` channels, two 3x3 there, 1x1 out; no norm."""

    def __init__(self, channels: tuple[int, int, int], resolution: int, ops: Ops) -> None:
        super().__init__()
        c_in, hidden, c_out = channels
        kernel = 3 if resolution > LARGEST_POINTWISE else 1
        self.c1 = plain_conv(c_in, hidden, 1, ops, activated=True)
        self.c2 = plain_conv(hidden, hidden, kernel, ops, activated=True)
        self.c3 = plain_conv(hidden, hidden, kernel, ops, activated=True)
        self.c4 = plain_conv(hidden, c_out, 1, ops, activated=True)

    @property
    def layers(self) -> tuple[LayerForm, ...]:
        """Forms of the four."""
        return self.c1.form, self.c2.form, self.c3.form, self.c4.form

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Weights and biases of the four."""
        return convolution_of(self.c1), convolution_of(self.c2), convolution_of(self.c3), convolution_of(self.c4)


class ResidualBlock(Bottleneck):
    """A bottleneck added to its input."""

    def __init__(self, width: int, hidden: int, resolution: int, ops: Ops, *, recompute: bool) -> None:
        super().__init__((width, hidden, width), resolution, ops)
        self.cell = ConvolutionCell(self.layers, ops.network, residual=True, recompute=recompute)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, R, R) -> (B, W, R, R)."""
        return self.cell(x, None, *self.convolutions)


class Prior(NamedTuple):
    """What a block says before it sees its latents: their parameters, and what becomes of its state (B, W, R, R)."""

    parameters: Parameters
    state: Tensor


class TopDownBlock(nn.Module):
    """Posterior, prior with a feature of its own, and the way of a latent group into the state.

    Published, the posterior reads state and encoder's map side by side, and the prior gives parameters and feature as
    one map. Here no such map is written: the first convolutions of posterior and prior read the state together, that
    of the encoder's map is added (one for all blocks of a resolution, see `seen`), and the prior's last convolution
    writes its parameters apart from its feature, which it adds to the state. The sums are the same.
    """

    def __init__(self, config: VDVAEConfig, resolution: int, ops: Ops) -> None:
        super().__init__()
        self.config, self.latents, width = config, config.latent_channels, config.width_at(resolution)
        self.width, self.hidden, self.network = width, config.hidden(width), ops.network
        self.enc = Bottleneck((2 * width, self.hidden, 2 * self.latents), resolution, ops)
        self.prior = Bottleneck((width, self.hidden, 2 * self.latents + width), resolution, ops)
        self.z_proj = plain_conv(self.latents, width, 1, ops)
        self.resnet = ResidualBlock(width, self.hidden, resolution, ops, recompute=config.recompute)
        scale_weight(self.prior.c4, 0.0)  # the prior starts as N(0, 1)
        for conv in (self.z_proj, self.resnet.c4):
            scale_weight(conv, math.sqrt(1 / len(config.decoder)))
        layers, network = self.prior.layers, ops.network
        self.posterior_cell = ConvolutionCell(layers[1:], network, residual=False)
        self.prior_cell = ConvolutionCell(layers[:3], network, residual=False)
        self.prior_rest_cell = ConvolutionCell(layers[1:3], network, residual=False)
        self.parameters_cell = ConvolutionCell(layers[3:], network, residual=False)
        self.feature_cell = ConvolutionCell(layers[3:], network, residual=True)
        self.latent_cell = ConvolutionCell((self.z_proj.form,), network, residual=True)

    def seen_weight(self) -> Tensor:
        """What the posterior's first convolution does to the encoder's map, (hidden, W, 1, 1)."""
        return self.enc.c1.weight[:, self.width :]

    def prior_of(self, x: Tensor) -> Prior:
        """Prior from the state x (B, W, R, R)."""
        return self._prior(x, self.prior_cell(x, None, *self.prior.convolutions[:3]))

    def both_of(self, x: Tensor, seen: Tensor) -> tuple[Prior, Parameters]:
        """Prior and posterior from the state x (B, W, R, R) and what is seen of the image, (B, hidden, R, R)."""
        posterior, prior = self.enc.c1, self.prior.c1
        assert posterior.bias is not None
        assert prior.bias is not None
        weight = torch.cat((prior.weight, posterior.weight[:, : self.width]))
        bias = torch.cat((prior.bias, posterior.bias))
        both = self.network.convolution(x, weight, bias, prior.form)
        of_prior, of_posterior = both.split(self.hidden, dim=1)
        found = self._prior(x, self.prior_rest_cell(of_prior, None, *self.prior.convolutions[1:3]))
        return found, self._raw(self.posterior_cell(of_posterior + seen, None, *self.enc.convolutions[1:]))

    def merged(self, state: Tensor, z: Tensor) -> Tensor:
        """The state behind the block, from the prior's (B, W, R, R) and z (B, Z, R, R)."""
        return self.resnet(self.latent_cell(z, state, convolution_of(self.z_proj)))

    def _prior(self, x: Tensor, hidden: Tensor) -> Prior:
        """The prior from the state and the map before its last convolution."""
        last, sizes = self.prior.c4, (2 * self.latents, self.width)
        assert last.bias is not None
        parameters, feature = map(Convolution, last.weight.split(sizes), last.bias.split(sizes))
        raw = self._raw(self.parameters_cell(hidden, None, parameters))
        return Prior(raw, self.feature_cell(hidden, x, feature))

    def _raw(self, raw: Tensor) -> Parameters:
        mean, scale = halves(raw)
        return mean, latent_log_scale(scale, self.config)


def latent_log_scale(raw: Tensor, config: VDVAEConfig) -> Tensor:
    """Log scale of a Gaussian from what a network gives (Child 2021; smoothed: Hazami et al. 2022, section 4)."""
    if config.latent_scale == "log":
        return raw
    smooth = raw * config.smoothing
    if config.latent_scale == "smooth log":
        return smooth
    log = F.softplus(smooth.clamp_min(LINEAR_BELOW)).log()
    return torch.where(smooth < LINEAR_BELOW, smooth, log) - math.log(config.smoothing)
