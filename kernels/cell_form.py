"""What a residual cell is made of, as data: the arguments of the fused operation `Ops.residual_cell`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

CellActivation = Literal["none", "swish", "elu"]


@dataclass(frozen=True)
class LayerForm:
    """Activation, [each pixel twice in both directions,] convolution, padded so that stride 1 keeps the resolution."""

    activation: CellActivation = "none"
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    repeat: bool = False
    depthwise: bool = False


@dataclass(frozen=True)
class CellForm:
    """Layers of the residual branch, and the factor on it."""

    layers: tuple[LayerForm, ...]
    gain: float = 1.0
    recompute: bool = False


@dataclass(frozen=True)
class CellNorm:
    """A batch norm: parameters (C), running statistics (C) updated in place in training, and its constants.

    `repeats`: how often each of its pixels counts in the running estimate of the unbiased variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    epsilon: float
    momentum: float
    repeats: int = 1


@dataclass(frozen=True)
class Convolution:
    """Weight (C_out, C_in or 1, k, k) and bias (C_out), if any."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class CellTensors:
    """What a cell computes with.

    The norm before each layer and after the last, the convolutions, and the gate's two linear layers (weight, bias,
    weight, bias), empty without squeeze-excitation.
    """

    norms: tuple[CellNorm | None, ...]
    convolutions: tuple[Convolution, ...]
    gate: tuple[Tensor, ...] = ()

    def flat(self) -> list[Tensor | None]:
        """All tensors that take gradients, in a fixed order."""
        norms = [one for norm in self.norms for one in ((norm.weight, norm.bias) if norm else (None, None))]
        return [*norms, *(one for conv in self.convolutions for one in (conv.weight, conv.bias)), *self.gate]


class ResidualCell(Protocol):
    """skip + gain * gate * branch(x), the branch being [norm,] activation, convolution, ..., [norm]; differentiable."""

    def __call__(
        self, x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, *, training: bool
    ) -> Tensor | None:
        """Run the cell, or return None where the backend leaves it to single layers.

        Args:
            x: (B, C, h, w).
            skip: (B, C_out, h', w'), or None for x itself.
            form: layers, factor on the branch.
            tensors: parameters and running statistics; the latter are moved in training.
            training: normalise by the batch's own statistics.
        """
        ...


@dataclass(frozen=True)
class PreparedCell:
    """A cell ready to run without gradients.

    Each norm (4, C) as mean, inverse deviation, scale and shift; packed weights and biases; the gate; output channels
    of each layer.
    """

    form: CellForm
    norms: tuple[Tensor, ...]
    packed: tuple[Tensor, ...]
    start: tuple[Tensor, ...]
    gate: tuple[Tensor, ...]
    channels: tuple[int, ...]


class PrepareCell(Protocol):
    """A cell in evaluation, its norms folded and weights packed once for many batches."""

    def __call__(self, form: CellForm, tensors: CellTensors) -> PreparedCell | None:
        """Prepare from the running statistics; None where the backend leaves the cell to single layers."""
        ...


class RunPrepared(Protocol):
    """skip + gain * gate * branch(x) of a prepared cell, without gradients."""

    def __call__(self, cell: PreparedCell, x: Tensor, skip: Tensor | None) -> Tensor | None:
        """(B, C, h, w) -> (B, C_out, h', w'); a null skip stands for x. None where the backend does not take x."""
        ...


class ActivatedConvolution(Protocol):
    """Activation and convolution of a map in one pass; differentiable."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor | None:
        """(B, C, h, w) -> (B, C_out, h', w'), channels-last; None where the backend leaves it to single operations."""
        ...
