"""What a residual cell is made of, as data: the arguments of the operations `Ops.network`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

CellActivation = Literal["none", "swish", "elu", "gelu"]


@dataclass(frozen=True)
class LayerForm:
    """Activation, [each pixel twice in both directions,] convolution, padded so that stride 1 keeps the resolution."""

    activation: CellActivation = "none"
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    repeat: bool = False
    groups: int = 1


@dataclass(frozen=True)
class CellForm:
    """Layers of the branch, the factor on it, and whether it is added to something."""

    layers: tuple[LayerForm, ...]
    gain: float = 1.0
    recompute: bool = False
    residual: bool = True


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
    """Weight (C_out, C_in / groups, k, k) and bias (C_out), if any."""

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
    """skip + gain * gate * branch(x), the branch being [norm,] activation, convolution, ..., [norm]; differentiable.

    Of a form that is not residual, gain * gate * branch(x).
    """

    def __call__(
        self, x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, *, training: bool
    ) -> Tensor:
        """Run the cell.

        Args:
            x: (B, C, h, w).
            skip: (B, C_out, h', w'), or None for x itself; None of a form that is not residual.
            form: layers, factor on the branch.
            tensors: parameters and running statistics; the latter are moved in training.
            training: normalise by the batch's own statistics.
        """
        ...


@dataclass(frozen=True)
class PackedCell:
    """A cell for many batches without gradients; a backend adds what it works out once.

    Holds the tensors that it was made of, so that no other tensor can come to lie at their addresses.
    """

    form: CellForm
    tensors: CellTensors


class PackCell(Protocol):
    """A cell in evaluation, its norms folded and weights packed once for many batches."""

    def __call__(self, form: CellForm, tensors: CellTensors) -> PackedCell:
        """Pack, from the running statistics."""
        ...


class RunPacked(Protocol):
    """What `ResidualCell` gives, of a packed cell and without gradients."""

    def __call__(self, cell: PackedCell, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C_out, h', w'); a null skip stands for x where the form is residual."""
        ...


class ActivatedConvolution(Protocol):
    """Activation and convolution of a map; differentiable."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor:
        """(B, C, h, w) -> (B, C_out, h', w')."""
        ...
