"""Residual cells of NVAE, the skip paths that change resolution, and the combiners of its two towers.

Attribute names are those of the released checkpoints, so that their keys load as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import SqueezeExcitation, gated_residual
from models.nvae.config import CellOps, ConvOp, InvertedResidualOp, NVAEConfig
from models.nvae.convolutions import conv2d, effective_weight, norm_before_repeat

Resample = Literal["keep", "down", "up"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "elu": F.elu}


def repeat_pixels(x: Tensor) -> Tensor:
    """Each pixel twice in both directions (nearest-neighbour up-sampling)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ConvCellOp(nn.Module):
    """`ConvOp` as a module: [batch norm,] activation, [up-sampling,] 3x3 convolution."""

    def __init__(self, op: ConvOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> None:
        super().__init__()
        self.norm_name = "bn_act" if op.activation == "swish" else "bn"
        if op.batch_norm:
            self.add_module(self.norm_name, nn.BatchNorm2d(c_in, momentum=config.batch_norm_momentum))
        self.activation, self.resample = ACTIVATIONS[op.activation], resample
        self.conv_0 = conv2d(
            c_in,
            c_out,
            3,
            normalised=config.weight_norm,
            data_init=not op.batch_norm,
            dilation=op.dilation,
            stride=2 if resample == "down" else 1,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        norm = getattr(self, self.norm_name, None)
        x = self.activation(x if norm is None else norm(x))
        return self.conv_0(repeat_pixels(x) if self.resample == "up" else x)


class Norm(nn.Module):
    """Batch norm without activation; `before_repeat` says that its output pixels will be repeated so often."""

    def __init__(self, channels: int, config: NVAEConfig, before_repeat: int = 1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, momentum=config.batch_norm_momentum)
        self.before_repeat = before_repeat

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x."""
        return norm_before_repeat(self.bn, x, self.before_repeat)


class ConvNormSwish(nn.Module):
    """Plain convolution without bias, batch norm, swish, [up-sampling]."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, config: NVAEConfig, *, upsample: bool = False, **conv: int
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv2d(c_in, c_out, kernel, normalised=False, bias=False, **conv),
            nn.BatchNorm2d(c_out, momentum=config.batch_norm_momentum),
        )
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        conv, norm = self.conv
        assert isinstance(norm, nn.BatchNorm2d)
        x = F.silu(norm_before_repeat(norm, conv(x), 4 if self.upsample else 1))
        return repeat_pixels(x) if self.upsample else x


class InvertedResidual(nn.Module):
    """`InvertedResidualOp` as a module: norm, 1x1 expansion, KxK grouped, 1x1 projection, norm.

    The original repeats pixels first (index 0 of `conv`, without parameters). Norm, expansion and swish act pixel
    by pixel, so they run before the repetition, at a quarter of the cost.
    """

    def __init__(self, op: InvertedResidualOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> None:
        super().__init__()
        up, hidden = resample == "up", c_in * op.expansion
        groups = op.groups or hidden
        if hidden % groups:
            raise ValueError(f"grouped convolution: expected hidden channels that divide by {groups}, got {hidden}")
        stride = 2 if resample == "down" else 1
        layers: list[nn.Module] = [
            Norm(c_in, config, before_repeat=4 if up else 1),
            ConvNormSwish(c_in, hidden, 1, config, upsample=up),
            ConvNormSwish(hidden, hidden, op.kernel, config, stride=stride, groups=groups),
            conv2d(hidden, c_out, 1, normalised=False, bias=False),
            Norm(c_out, config),
        ]
        self.conv = nn.Sequential(*([nn.Identity()] if up else []), *layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        return self.conv(x)


class FactorizedReduce(nn.Module):
    """Skip path that halves the resolution: swish, then four 1x1 convolutions, each on one pixel of every 2x2.

    They run as one 2x2 convolution of stride 2, whose kernel holds each 1x1 weight at the place of its pixel and
    zeros elsewhere: more products than needed, but faster than four small convolutions.
    """

    places: Tensor

    def __init__(self, c_in: int, c_out: int, config: NVAEConfig) -> None:
        super().__init__()
        quarter = c_out // 4
        widths = (quarter, quarter, quarter, c_out - 3 * quarter)
        make = functools.partial(conv2d, c_in, kernel=1, normalised=config.weight_norm)
        self.conv_1, self.conv_2, self.conv_3, self.conv_4 = (make(c_out=width) for width in widths)
        places = [torch.zeros(width, 1, 2, 2) for width in widths]
        for place, (row, column) in zip(places, ((0, 0), (1, 1), (0, 1), (1, 0)), strict=True):
            place[..., row, column] = 1
        self.register_buffer("places", torch.cat(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h/2, w/2)."""
        convs = (self.conv_1, self.conv_2, self.conv_3, self.conv_4)
        weight = torch.cat([effective_weight(conv) for conv in convs]) * self.places
        bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
        return F.conv2d(F.silu(x), weight, bias, stride=2)


class Upsample(nn.Sequential):
    """Skip path that doubles the resolution: bilinear interpolation and a 1x1 convolution without bias (`1`).

    The two commute; the convolution runs first, on a quarter of the pixels.
    """

    def __init__(self, c_in: int, c_out: int, config: NVAEConfig) -> None:
        super().__init__(nn.Identity(), conv2d(c_in, c_out, 1, normalised=config.weight_norm, bias=False))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, 2h, 2w)."""
        return F.interpolate(super().forward(input), scale_factor=2, mode="bilinear", align_corners=True)


class ResidualCell(nn.Module):
    """skip(x) + gain * gate * ops(x); the first operation changes channels and resolution."""

    def __init__(self, ops: CellOps, c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> None:
        super().__init__()
        self.skip = _skip(c_in, c_out, resample, config)
        self._ops = nn.ModuleList(
            _cell_op(op, c_in if k == 0 else c_out, c_out, resample if k == 0 else "keep", config)
            for k, op in enumerate(ops)
        )
        self.se = SqueezeExcitation(c_out) if config.squeeze_excitation else None
        self.gain = config.residual_gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        branch = x
        for op in self._ops:
            branch = op(branch)
        gate = None if self.se is None else self.se(branch)
        return gated_residual(self.skip(x), branch, gate, self.gain)


def _skip(c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> nn.Module:
    if resample == "down":
        return FactorizedReduce(c_in, c_out, config)
    return Upsample(c_in, c_out, config) if resample == "up" else nn.Identity()


def _cell_op(
    op: ConvOp | InvertedResidualOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig
) -> nn.Module:
    if isinstance(op, ConvOp):
        return ConvCellOp(op, c_in, c_out, resample, config)
    return InvertedResidual(op, c_in, c_out, resample, config)


class EncoderCombiner(nn.Module):
    """Adds the top-down state, through a 1x1 convolution, to a remembered bottom-up feature."""

    def __init__(self, c_feature: int, c_state: int, config: NVAEConfig) -> None:
        super().__init__()
        self.conv = conv2d(c_state, c_feature, 1, normalised=config.weight_norm)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """(B, C_feature, h, w), the input of the posterior's sampler."""
        return feature + self.conv(state)


class DecoderCombiner(nn.Module):
    """Merges the top-down state and z by a 1x1 convolution of both."""

    def __init__(self, c_state: int, c_latent: int, config: NVAEConfig) -> None:
        super().__init__()
        self.conv = conv2d(c_state + c_latent, c_state, 1, normalised=config.weight_norm)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """(B, C_state, h, w), the new state."""
        both = torch.cat((state, z.contiguous(memory_format=torch.channels_last)), dim=1)
        return self.conv(both)
