"""Inverse autoregressive flow cells (Kingma et al. 2016), volume preserving, on a map of latents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.convolutions import WeightNormConv2d
from models.output import LatentGroup

HIDDEN_PER_CHANNEL = 6
SHIFT_SCALE_AT_START = 0.1


@functools.cache
def autoregressive_mask(
    kernel: int, c_in: int, c_out: int, *, strict: bool, depthwise: bool = False, mirror: bool = False
) -> Tensor:
    """(c_out, c_in or 1, kernel, kernel) mask of a convolution that sees only what comes before in raster order.

    Rows above the centre and taps left of it are seen; at the centre `channel_mask` decides. `mirror` reverses the
    raster order (both axes), not the order of channels. One tensor on the CPU per set of arguments, shared.
    """
    centre = kernel // 2
    with torch.device("cpu"):
        at_centre = channel_mask(c_in, c_out, strict, depthwise)
        mask = torch.zeros(*at_centre.shape, kernel, kernel)
        mask[:, :, :centre] = 1
        mask[:, :, centre, :centre] = 1
        mask[:, :, centre, centre] = at_centre
        return mask.flip(2, 3) if mirror else mask


def channel_mask(c_in: int, c_out: int, strict: bool, depthwise: bool = False) -> Tensor:
    """(c_out, c_in) mask at the central tap: which input channels an output channel may see.

    Channels follow an order in which the wider side repeats every channel of the narrower one r times. An output
    sees the inputs up to its own place in that order; with `strict`, those before it.
    """
    if depthwise:
        return torch.full((c_out, 1), 0.0 if strict else 1.0)
    places = min(c_in, c_out)
    place_in = torch.arange(c_in) // (c_in // places)
    place_out = torch.arange(c_out)[:, None] // (c_out // places)
    return (place_in < place_out if strict else place_in <= place_out).float()


def masked_conv(
    kernel: int, c_in: int, c_out: int, *, strict: bool, mirror: bool, depthwise: bool = False, bias: bool = False
) -> WeightNormConv2d:
    """Weight-normalised convolution under an autoregressive mask."""
    mask = autoregressive_mask(kernel, c_in, c_out, strict=strict, depthwise=depthwise, mirror=mirror)
    groups = c_in if depthwise else 1
    return WeightNormConv2d(c_in, c_out, kernel, mask=mask, groups=groups, bias=bias)


class _Causal(nn.Module):
    """Strictly causal 3x3 to 6 Z channels, ELU, depthwise 5x5, ELU."""

    def __init__(self, channels: int, mirror: bool) -> None:
        super().__init__()
        hidden = HIDDEN_PER_CHANNEL * channels
        self.convz = nn.Sequential(
            masked_conv(3, channels, hidden, strict=True, mirror=mirror),
            nn.ELU(),
            masked_conv(5, hidden, hidden, strict=False, mirror=mirror, depthwise=True),
            nn.ELU(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.convz(z)


class _Shift(nn.Module):
    """ELU, 1x1 back to Z channels, small at the start."""

    def __init__(self, channels: int, mirror: bool) -> None:
        super().__init__()
        hidden = HIDDEN_PER_CHANNEL * channels
        self.conv_0 = masked_conv(1, hidden, channels, strict=False, mirror=mirror, bias=True)
        if not self.conv_0.weight.is_meta:
            self.conv_0.keep_norm(SHIFT_SCALE_AT_START)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_0(F.elu(features))


class FlowCell(nn.Module):
    """z - shift(z), where the shift of a variable depends on the variables before it only: log-determinant 0."""

    def __init__(self, channels: int, mirror: bool) -> None:
        super().__init__()
        self.conv = _Causal(channels, mirror)
        self.mu = _Shift(channels, mirror)

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, Z, h, w)."""
        return z - self.mu(self.conv(z))


class FlowPair(nn.Module):
    """A flow cell in raster order, then one in reversed order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell1 = FlowCell(channels, mirror=False)
        self.cell2 = FlowCell(channels, mirror=True)

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, Z, h, w)."""
        return self.cell2(self.cell1(z))


def through_flows(group: LatentGroup, flows: Iterable[nn.Module]) -> LatentGroup:
    """The group with its z moved by the flows; its rate becomes the single-sample log q(z_0) - log p(z_K)."""
    group = dataclasses.replace(
        group,
        raw_posterior=_widened(group.raw_posterior),
        raw_prior=None if group.raw_prior is None else _widened(group.raw_prior),
    )
    z = group.z
    for flow in flows:
        z = flow(z)
    log_ratio = (group.posterior.log_prob(group.z) - group.prior.log_prob(z)).flatten(1).sum(1)  # (B,); volume kept
    return dataclasses.replace(group, z=z, rate=log_ratio, log_ratio=log_ratio)


def _widened(raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and log scale in float32, or float64 if they are that."""
    dtype = torch.promote_types(raw[0].dtype, torch.float32)
    return raw[0].to(dtype), raw[1].to(dtype)
