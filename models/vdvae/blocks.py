"""Blocks of VDVAE: the bottleneck of four convolutions, and the top-down block that draws a latent group.

Attribute names are those of the released checkpoints, so that their keys load as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.cell_form import CellForm, CellTensors, Convolution, PackedCell
from kernels.ops import Ops
from models.layers.convolutions import ActivatedConv2d
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


class Bottleneck(nn.Module):
    """GELU before each of four convolutions: 1x1 into `hidden` channels, two 3x3 there, 1x1 out; no norm.

    With `residual` it is added to its input. It runs as one operation of `ops.network`; in evaluation its weights are
    packed once for many batches.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        resolution: int,
        ops: Ops,
        *,
        residual: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        c_in, hidden, c_out = channels
        kernel = 3 if resolution > LARGEST_POINTWISE else 1
        self.network = ops.network
        self._packed: Kept[PackedCell] = Kept()
        self.c1 = plain_conv(c_in, hidden, 1, ops, activated=True)
        self.c2 = plain_conv(hidden, hidden, kernel, ops, activated=True)
        self.c3 = plain_conv(hidden, hidden, kernel, ops, activated=True)
        self.c4 = plain_conv(hidden, c_out, 1, ops, activated=True)
        layers = tuple(conv.form for conv in self._convolutions())
        self.form = CellForm(layers, recompute=recompute, residual=residual)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R) -> (B, C_out, R, R)."""
        tensors = self._tensors()
        if self.training or torch.is_grad_enabled():
            return self.network.residual_cell(x, None, self.form, tensors, training=True)  # which only norms heed
        made_of = [one for one in tensors.flat() if one is not None]
        packed = self._packed.of(made_of, lambda: self.network.pack_cell(self.form, tensors))
        return self.network.run_packed(packed, x, None)

    def train(self, mode: bool = True) -> Bottleneck:
        """Switch between training and evaluation; what was packed is forgotten."""
        self._packed.clear()
        return super().train(mode)

    def _tensors(self) -> CellTensors:
        """What the cell computes with: convolutions, no norms."""
        convolutions = tuple(Convolution(conv.weight, conv.bias) for conv in self._convolutions())
        return CellTensors((None,) * (len(convolutions) + 1), convolutions)

    def _convolutions(self) -> tuple[ActivatedConv2d, ...]:
        return self.c1, self.c2, self.c3, self.c4


class Prior(NamedTuple):
    """What a block says before it sees its latents: their parameters, and what it adds to the state (B, W, R, R)."""

    parameters: Parameters
    feature: Tensor


class TopDownBlock(nn.Module):
    """Posterior, prior with a feature of its own, and the way of a latent group into the state."""

    def __init__(self, config: VDVAEConfig, resolution: int, ops: Ops) -> None:
        super().__init__()
        self.config, self.latents, width = config, config.latent_channels, config.width_at(resolution)
        hidden = config.hidden(width)
        self.enc = Bottleneck((2 * width, hidden, 2 * self.latents), resolution, ops)
        self.prior = Bottleneck((width, hidden, 2 * self.latents + width), resolution, ops)
        self.z_proj = plain_conv(self.latents, width, 1, ops)
        self.resnet = Bottleneck((width, hidden, width), resolution, ops, residual=True, recompute=config.recompute)
        scale_weight(self.prior.c4, 0.0)  # the prior starts as N(0, 1)
        for conv in (self.z_proj, self.resnet.c4):
            scale_weight(conv, math.sqrt(1 / len(config.decoder)))

    def posterior_of(self, x: Tensor, activation: Tensor) -> Parameters:
        """Posterior parameters from the state x and the encoder's map, (B, W, R, R) each."""
        return self._raw(self.enc(torch.cat((x, activation), dim=1)))

    def prior_of(self, x: Tensor) -> Prior:
        """Prior parameters and feature from the state x (B, W, R, R)."""
        parameters, feature = self.prior(x).split((2 * self.latents, x.shape[1]), dim=1)
        return Prior(self._raw(parameters), feature)

    def merged(self, x: Tensor, feature: Tensor, z: Tensor) -> Tensor:
        """The state behind the block, of the state x before it and z (B, Z, R, R)."""
        return self.resnet(x + feature + self.z_proj(z))

    def _raw(self, raw: Tensor) -> Parameters:
        mean, scale = raw.chunk(2, dim=1)
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
