"""Layers of the plain NVAE: convolutions, cells and combiners as one would first write them.

What is deliberately slow, and stays so because `plain_nvae` is a yardstick, is said there. Attribute names are those of
`models.nvae`, so that states load both ways.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nvae.config import CellOps, ConvOp, InvertedResidualOp, NVAEConfig

Resample = Literal["keep", "down", "up"]
NORM_FLOOR = 1e-5
NORM_FLOOR_AT_START = 1e-2


class Swish(torch.autograd.Function):
    """x sigmoid(x) in two passes over memory; keeps its input only and takes the sigmoid again in the backward pass.

    What a pass over memory makes is changed in place by the next one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """X sigmoid(x)."""
        ctx.save_for_backward(x)
        return torch.sigmoid(x).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Gradient times s (1 + x (1 - s)), s the sigmoid."""
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return (1 - s).mul_(x).add_(1).mul_(s).mul_(gradients[0])


def swish(x: Tensor) -> Tensor:
    """X sigmoid(x), elementwise."""
    return Swish.apply(x)  # pyright: ignore[reportReturnType]


class NormalisedConv2d(nn.Conv2d):
    """Weight-normalised convolution (Salimans & Kingma 2016), its weight computed anew in every forward pass.

    `effective` is the weight of the latest pass, for the spectral term.
    """

    effective: Tensor

    def __init__(self, c_in: int, c_out: int, kernel: int, **conv: Any) -> None:
        super().__init__(c_in, c_out, kernel, **conv)
        norm = torch.linalg.vector_norm(self.weight.detach(), dim=(1, 2, 3), keepdim=True)
        self.log_weight_norm = nn.Parameter(torch.log(norm + NORM_FLOOR_AT_START))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with exp(log_weight_norm) w / (|w| + 1e-5)."""
        norm = torch.sqrt((self.weight * self.weight).sum((1, 2, 3), keepdim=True))
        self.effective = torch.exp(self.log_weight_norm) * self.weight / (norm + NORM_FLOOR)
        return self._conv_forward(input, self.effective, self.bias)


def conv2d(c_in: int, c_out: int, kernel: int, *, normalised: bool, **conv: Any) -> nn.Conv2d:
    """A convolution of the configured kind, padded so that stride 1 keeps the resolution."""
    conv.setdefault("padding", conv.get("dilation", 1) * (kernel - 1) // 2)
    return (NormalisedConv2d if normalised else nn.Conv2d)(c_in, c_out, kernel, **conv)


def effective_weight(conv: nn.Conv2d) -> Tensor:
    """The weight of the convolution's latest pass."""
    return conv.effective if isinstance(conv, NormalisedConv2d) else conv.weight


def batch_norm(channels: int, config: NVAEConfig) -> nn.BatchNorm2d:
    """Batch norm with the configured momentum."""
    return nn.BatchNorm2d(channels, momentum=config.batch_norm_momentum)


class PlainConvCellOp(nn.Module):
    """`ConvOp` as a module: [batch norm,] activation, [repetition of pixels,] 3x3 convolution."""

    def __init__(self, op: ConvOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> None:
        super().__init__()
        self.norm_name = "bn_act" if op.activation == "swish" else "bn"
        if op.batch_norm:
            self.add_module(self.norm_name, batch_norm(c_in, config))
        self.activation = swish if op.activation == "swish" else F.elu
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if resample == "up" else nn.Identity()
        stride = 2 if resample == "down" else 1
        self.conv_0 = conv2d(c_in, c_out, 3, normalised=config.weight_norm, dilation=op.dilation, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        norm = getattr(self, self.norm_name, None)
        x = x if norm is None else norm(x)
        return self.conv_0(self.upsample(self.activation(x)))


class PlainNorm(nn.Module):
    """Batch norm without activation."""

    def __init__(self, channels: int, config: NVAEConfig) -> None:
        super().__init__()
        self.bn = batch_norm(channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x."""
        return self.bn(x)


class PlainConvNormSwish(nn.Module):
    """Plain convolution without bias, batch norm, swish."""

    def __init__(self, c_in: int, c_out: int, kernel: int, config: NVAEConfig, **conv: int) -> None:
        super().__init__()
        plain = conv2d(c_in, c_out, kernel, normalised=False, bias=False, **conv)
        self.conv = nn.Sequential(plain, batch_norm(c_out, config))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        return swish(self.conv(x))


class PlainInvertedResidual(nn.Module):
    """`InvertedResidualOp` as a module; pixels are repeated first, so everything after runs on four times as many."""

    def __init__(self, op: InvertedResidualOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> None:
        super().__init__()
        hidden = c_in * op.expansion
        stride = 2 if resample == "down" else 1
        layers: list[nn.Module] = [
            PlainNorm(c_in, config),
            PlainConvNormSwish(c_in, hidden, 1, config),
            PlainConvNormSwish(hidden, hidden, op.kernel, config, stride=stride, groups=op.groups or hidden),
            conv2d(hidden, c_out, 1, normalised=False, bias=False),
            PlainNorm(c_out, config),
        ]
        repetition = [nn.Upsample(scale_factor=2, mode="nearest")] if resample == "up" else []
        self.conv = nn.Sequential(*repetition, *layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        return self.conv(x)


class PlainFactorizedReduce(nn.Module):
    """Skip path that halves the resolution: swish, four strided 1x1 convolutions of shifted maps, concatenation."""

    def __init__(self, c_in: int, c_out: int, config: NVAEConfig) -> None:
        super().__init__()
        quarter = c_out // 4
        strided: dict[str, Any] = {"normalised": config.weight_norm, "stride": 2}
        self.conv_1 = conv2d(c_in, quarter, 1, **strided)
        self.conv_2 = conv2d(c_in, quarter, 1, **strided)
        self.conv_3 = conv2d(c_in, quarter, 1, **strided)
        self.conv_4 = conv2d(c_in, c_out - 3 * quarter, 1, **strided)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h/2, w/2)."""
        x = swish(x)
        shifted = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :])
        convs = (self.conv_1, self.conv_2, self.conv_3, self.conv_4)
        return torch.cat([conv(part) for conv, part in zip(convs, shifted, strict=True)], dim=1)


def upsampling_skip(c_in: int, c_out: int, config: NVAEConfig) -> nn.Sequential:
    """Skip path that doubles the resolution: bilinear interpolation, then a 1x1 convolution without bias (`1`)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        conv2d(c_in, c_out, 1, normalised=config.weight_norm, bias=False),
    )


class PlainSqueezeExcitation(nn.Module):
    """Channels times their gates in (0, 1) (Hu et al. 2018): pool, bottleneck of C / 16 (at least 4), sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.se = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), gated."""
        return x * self.se(x.mean((2, 3)))[:, :, None, None]


class PlainCell(nn.Module):
    """skip(x) + gain * gated ops(x); the first operation changes channels and resolution."""

    def __init__(self, ops: CellOps, c_in: int, c_out: int, resample: Resample, config: NVAEConfig) -> None:
        super().__init__()
        self.skip = nn.Identity()
        if resample == "down":
            self.skip = PlainFactorizedReduce(c_in, c_out, config)
        elif resample == "up":
            self.skip = upsampling_skip(c_in, c_out, config)
        first, *later = ops
        self._ops = nn.Sequential(
            _cell_op(first, c_in, c_out, resample, config),
            *(_cell_op(op, c_out, c_out, "keep", config) for op in later),
        )
        self.se = PlainSqueezeExcitation(c_out) if config.squeeze_excitation else None
        self.gain = config.residual_gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        branch = self._ops(x)
        if self.se is not None:
            branch = self.se(branch)
        return self.skip(x) + self.gain * branch


def _cell_op(
    op: ConvOp | InvertedResidualOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig
) -> nn.Module:
    kind = PlainConvCellOp if isinstance(op, ConvOp) else PlainInvertedResidual
    return kind(op, c_in, c_out, resample, config)  # pyright: ignore[reportArgumentType]


class PlainEncoderCombiner(nn.Module):
    """Adds the top-down state, through a 1x1 convolution, to a remembered bottom-up feature."""

    def __init__(self, c_feature: int, c_state: int, config: NVAEConfig) -> None:
        super().__init__()
        self.conv = conv2d(c_state, c_feature, 1, normalised=config.weight_norm)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """(B, C_feature, h, w), the input of the posterior's sampler."""
        return feature + self.conv(state)


class PlainDecoderCombiner(nn.Module):
    """Merges the top-down state and z by a 1x1 convolution of both."""

    def __init__(self, c_state: int, c_latent: int, config: NVAEConfig) -> None:
        super().__init__()
        self.conv = conv2d(c_state + c_latent, c_state, 1, normalised=config.weight_norm)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """(B, C_state, h, w), the new state."""
        return self.conv(torch.cat((state, z), dim=1))
