"""Residual cells of NVAE, the skip paths that change resolution, and the combiners of its two towers.

Attribute names are those of the released checkpoints, so that their keys load as they are.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.cell_form import CellForm, CellNorm, CellTensors, Convolution, LayerForm, PackedCell
from kernels.ops import Ops
from kernels.reference.network import ACTIVATIONS, gated_residual, repeat_pixels
from models.layers.convolutions import ActivatedConv2d, WeightNormConv2d, conv2d, norm_swish
from models.layers.kept import Kept
from models.layers.squeeze_excitation import SqueezeExcitation
from models.nvae.config import CellOps, ConvOp, InvertedResidualOp, NVAEConfig

Resample = Literal["keep", "down", "up"]


class CellLayer(NamedTuple):
    """One layer of a cell: norm, how often the norm's pixels are repeated later, form, convolution."""

    norm: nn.BatchNorm2d | None
    repeats: int
    form: LayerForm
    conv: ActivatedConv2d


class CellOp(nn.Module):
    """One operation of a residual cell: a module that also says which layers it is made of."""

    def layers(self) -> list[CellLayer]:
        """The operation as layers of a cell."""
        raise NotImplementedError

    def after(self) -> tuple[nn.BatchNorm2d | None, int]:
        """The norm behind the last convolution, and how often its pixels will be repeated."""
        return None, 1


class ConvCellOp(CellOp):
    """`ConvOp` as a module: [batch norm,] activation, [up-sampling,] 3x3 convolution."""

    def __init__(self, op: ConvOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig, backend: Ops) -> None:
        super().__init__()
        self.backend = backend
        self.op, self.norm_name = op, "bn_act" if op.activation == "swish" else "bn"
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

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        """The batch norm, if there is one."""
        return getattr(self, self.norm_name, None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        norm, fused = self.norm, self.op.activation == "swish"
        if norm is not None:
            x = norm_swish(norm, x, self.backend, "swish" if fused else "none")
        if norm is None or not fused:
            x = self.activation(x)
        return self.conv_0(repeat_pixels(x) if self.resample == "up" else x)

    def layers(self) -> list[CellLayer]:
        """The operation as layers of a cell."""
        conv, up = self.conv_0, self.resample == "up"
        form = LayerForm(self.op.activation, 3, conv.stride[0], conv.dilation[0], up)  # pyright: ignore[reportArgumentType]
        return [CellLayer(self.norm, 1, form, conv)]


class Norm(nn.Module):
    """Batch norm without activation; `before_repeat` says that its output pixels will be repeated so often."""

    def __init__(self, channels: int, config: NVAEConfig, backend: Ops, before_repeat: int = 1) -> None:
        super().__init__()
        self.backend = backend
        self.bn = nn.BatchNorm2d(channels, momentum=config.batch_norm_momentum)
        self.before_repeat = before_repeat

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x."""
        return norm_swish(self.bn, x, self.backend, "none", self.before_repeat)


class ConvNormSwish(nn.Module):
    """Plain convolution without bias, batch norm, swish, [up-sampling]."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        config: NVAEConfig,
        backend: Ops,
        *,
        upsample: bool = False,
        **conv: int,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.conv = nn.Sequential(
            conv2d(c_in, c_out, kernel, normalised=False, bias=False, **conv),
            nn.BatchNorm2d(c_out, momentum=config.batch_norm_momentum),
        )
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        conv, norm = self.conv
        assert isinstance(norm, nn.BatchNorm2d)
        x = norm_swish(norm, conv(x), self.backend, "swish", 4 if self.upsample else 1)
        return repeat_pixels(x) if self.upsample else x


class InvertedResidual(CellOp):
    """`InvertedResidualOp` as a module: norm, 1x1 expansion, KxK grouped, 1x1 projection, norm.

    The published code repeats pixels first (index 0 of `conv`, without parameters). Norm, expansion and swish act pixel
    by pixel, so they run before the repetition, at a quarter of the cost.
    """

    def __init__(
        self, op: InvertedResidualOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig, backend: Ops
    ) -> None:
        super().__init__()
        up, hidden = resample == "up", c_in * op.expansion
        groups = op.groups or hidden
        if hidden % groups:
            raise ValueError(f"grouped convolution: expected hidden channels that divide by {groups}, got {hidden}")
        stride = 2 if resample == "down" else 1
        layers: list[nn.Module] = [
            Norm(c_in, config, backend, before_repeat=4 if up else 1),
            ConvNormSwish(c_in, hidden, 1, config, backend, upsample=up),
            ConvNormSwish(hidden, hidden, op.kernel, config, backend, stride=stride, groups=groups),
            conv2d(hidden, c_out, 1, normalised=False, bias=False),
            Norm(c_out, config, backend),
        ]
        self.conv = nn.Sequential(*([nn.Identity()] if up else []), *layers)

    @property
    def _parts(self) -> Any:
        return self.conv[-5:]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        return self.conv(x)

    def layers(self) -> list[CellLayer]:
        """Three layers."""
        first, expand, grouped, project, _ = self._parts
        (widen, norm_1), (filter, norm_2) = expand.conv, grouped.conv
        kernel, stride, repeats = filter.kernel_size[0], filter.stride[0], first.before_repeat
        middle = LayerForm("swish", kernel, stride, repeat=expand.upsample, groups=filter.groups)
        return [
            CellLayer(first.bn, repeats, LayerForm("none"), widen),
            CellLayer(norm_1, repeats, middle, filter),
            CellLayer(norm_2, 1, LayerForm("swish"), project),
        ]

    def after(self) -> tuple[nn.BatchNorm2d | None, int]:
        """The norm behind the projection."""
        last = self._parts[-1]
        return last.bn, last.before_repeat


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
        weight = torch.cat([conv.effective_weight() for conv in convs]) * self.places
        bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
        return F.conv2d(F.silu(x), weight, bias, stride=2)


class Upsample(nn.Sequential):
    """Skip path that doubles the resolution: bilinear interpolation and a 1x1 convolution without bias (`1`).

    The two commute; the convolution runs first, on a quarter of the pixels.
    """

    def __init__(self, c_in: int, c_out: int, config: NVAEConfig, backend: Ops) -> None:
        conv = conv2d(c_in, c_out, 1, normalised=config.weight_norm, bias=False, network=backend.network)
        super().__init__(nn.Identity(), conv)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, 2h, 2w)."""
        return F.interpolate(super().forward(input), scale_factor=2, mode="bilinear", align_corners=True)


class ResidualCell(nn.Module):
    """skip(x) + gain * gate * ops(x); the first operation changes channels and resolution.

    Its parts are modules, which hold the parameters under the checkpoints' names; it runs as one operation of
    `backend`. Its modules run one by one while a convolution waits for the batch that sets its scale, or somebody
    watches one of them through a hook.
    """

    def __init__(
        self, ops: CellOps, c_in: int, c_out: int, resample: Resample, config: NVAEConfig, backend: Ops
    ) -> None:
        super().__init__()
        self.skip = _skip(c_in, c_out, resample, config, backend)
        self._ops = nn.ModuleList(
            _cell_op(op, c_in if k == 0 else c_out, c_out, resample if k == 0 else "keep", config, backend)
            for k, op in enumerate(ops)
        )
        self.se = SqueezeExcitation(c_out) if config.squeeze_excitation else None
        self.gain, self.network = config.residual_gain, backend.network
        self._packed: Kept[PackedCell] = Kept()
        self._inside = (*self._ops.modules(), *(self.se.modules() if self.se else ()))
        self._layers, self._after = _taken_apart(cast("list[CellOp]", list(self._ops)))
        self._gate = [one for one in self._inside if isinstance(one, nn.Linear)]
        self.form = CellForm(tuple(layer.form for layer in self._layers), config.residual_gain, config.recompute)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h', w')."""
        skip = self.skip(x)
        if self._needs_modules():
            return self.module_by_module(x, skip)
        tensors, other = self._tensors(), None if skip is x else skip
        if not (self.training or torch.is_grad_enabled()):
            return self.network.run_packed(self._pack(tensors), x, other)
        out = self.network.residual_cell(x, other, self.form, tensors, training=self.training)
        if self.training:
            self._count_batch()
        return out

    def _needs_modules(self) -> bool:
        waits = any(isinstance(layer.conv, WeightNormConv2d) and layer.conv.awaits_data for layer in self._layers)
        return waits or (not torch.compiler.is_compiling() and any(one._forward_hooks for one in self._inside))

    def module_by_module(self, x: Tensor, skip: Tensor) -> Tensor:
        """The cell through the modules it is made of."""
        branch = x
        for op in self._ops:
            branch = op(branch)
        gate = None if self.se is None else self.se(branch)
        return gated_residual(skip, branch, gate, self.gain)

    def _pack(self, tensors: CellTensors) -> PackedCell:
        """The cell packed for evaluation: the kept one while all it was made of stays as it was."""
        running = [one for norm in tensors.norms if norm for one in (norm.running_mean, norm.running_var)]
        made_of = [one for one in (*tensors.flat(), *running) if one is not None]
        return self._packed.of(made_of, lambda: self.network.pack_cell(self.form, tensors))

    def _count_batch(self) -> None:
        """One more batch went through the norms."""
        for norm in (*(layer.norm for layer in self._layers), self._after[0]):
            if norm is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)

    def train(self, mode: bool = True) -> ResidualCell:
        """Switch between training and evaluation; what was packed is forgotten."""
        self._packed.clear()
        return super().train(mode)

    def _tensors(self) -> CellTensors:
        """What the cell computes with."""
        norms = [*((layer.norm, layer.repeats) for layer in self._layers), self._after]
        convolutions = (Convolution(one.conv.effective_weight(), one.conv.bias) for one in self._layers)
        gate = (one for linear in self._gate for one in (linear.weight, linear.bias))
        return CellTensors(tuple(_norm(*norm) for norm in norms), tuple(convolutions), tuple(gate))


def _taken_apart(ops: list[CellOp]) -> tuple[list[CellLayer], tuple[nn.BatchNorm2d | None, int]]:
    """The layers of all operations, and what is behind them; none but the last may end in a norm."""
    if any(op.after()[0] is not None for op in ops[:-1]):
        raise ValueError("residual cell: expected an inverted residual as the last operation only")
    return [layer for op in ops for layer in op.layers()], ops[-1].after()


def _norm(module: nn.BatchNorm2d | None, repeats: int) -> CellNorm | None:
    """A batch norm's tensors and constants; momentum None is a cumulative average."""
    if module is None:
        return None
    assert module.running_mean is not None
    assert module.running_var is not None
    assert module.num_batches_tracked is not None
    momentum = 1 / (1 + int(module.num_batches_tracked)) if module.momentum is None else module.momentum
    return CellNorm(module.weight, module.bias, module.running_mean, module.running_var, module.eps, momentum, repeats)


def _skip(c_in: int, c_out: int, resample: Resample, config: NVAEConfig, backend: Ops) -> nn.Module:
    if resample == "down":
        return FactorizedReduce(c_in, c_out, config)
    return Upsample(c_in, c_out, config, backend) if resample == "up" else nn.Identity()


def _cell_op(
    op: ConvOp | InvertedResidualOp, c_in: int, c_out: int, resample: Resample, config: NVAEConfig, backend: Ops
) -> nn.Module:
    if isinstance(op, ConvOp):
        return ConvCellOp(op, c_in, c_out, resample, config, backend)
    return InvertedResidual(op, c_in, c_out, resample, config, backend)


class EncoderCombiner(nn.Module):
    """Adds the top-down state, through a 1x1 convolution, to a remembered bottom-up feature."""

    def __init__(self, c_feature: int, c_state: int, config: NVAEConfig, backend: Ops) -> None:
        super().__init__()
        self.conv = conv2d(c_state, c_feature, 1, normalised=config.weight_norm, network=backend.network)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """(B, C_feature, h, w), the input of the posterior's sampler."""
        return feature + self.conv(state)


class DecoderCombiner(nn.Module):
    """Merges the top-down state and z by a 1x1 convolution of both."""

    def __init__(self, c_state: int, c_latent: int, config: NVAEConfig, backend: Ops) -> None:
        super().__init__()
        self.conv = conv2d(c_state + c_latent, c_state, 1, normalised=config.weight_norm, network=backend.network)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """(B, C_state, h, w), the new state."""
        both = torch.cat((state, z.contiguous(memory_format=torch.channels_last)), dim=1)
        return self.conv(both)
