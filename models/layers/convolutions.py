"""Convolutions with activation and weight norm, and the bank that computes their effective weights together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kernels.cell_form import CellActivation, LayerForm
from kernels.ops import Activation, NetworkOps, Ops
from kernels.reference.backend import REFERENCE
from kernels.reference.network import ACTIVATIONS, rows_of_norm
from models.layers.kept import Kept

NORM_FLOOR = 1e-5
NORM_FLOOR_AT_START = 1e-2
DATA_INIT_SPREAD = 5.0


class ActivatedConv2d(nn.Conv2d):
    """Activation and convolution, padded so that stride 1 keeps the resolution, through a backend's `network`."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        activation: CellActivation = "none",
        network: NetworkOps = REFERENCE.network,
        **conv: Any,
    ) -> None:
        padding = conv.get("dilation", 1) * (kernel - 1) // 2
        super().__init__(c_in, c_out, kernel, padding=padding, **conv)
        self.form = LayerForm(activation, kernel, self.stride[0], self.dilation[0], groups=self.groups)
        self.network = network

    def effective_weight(self) -> Tensor:
        """The weight that convolves."""
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """Activate and convolve."""
        return self.network.convolution(input, self.effective_weight(), self.bias, self.form)


class WeightNormConv2d(ActivatedConv2d):
    """Convolution whose output channels have weights of norm exp(log_weight_norm) (Salimans & Kingma 2016).

    `mask` (of the weight's shape) multiplies the weight before the norm is taken. With `data_init` the first
    training batch sets scale and bias so that outputs have mean 0 and standard deviation 1/5.
    """

    mask: Tensor | None

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, mask: Tensor | None = None, data_init: bool = False, **conv: Any
    ) -> None:
        super().__init__(c_in, c_out, kernel, **conv)
        self.register_buffer("mask", None if mask is None else mask.to(self.weight.device), persistent=False)
        self.awaits_data = data_init
        self.installed: Tensor | None = None
        self.log_weight_norm = nn.Parameter(torch.empty(c_out, 1, 1, 1))
        if not self.weight.is_meta:
            self.keep_norm()
        self.register_load_state_dict_pre_hook(_cancel_data_init)

    @torch.no_grad()
    def keep_norm(self, factor: float = 1.0) -> None:
        """Set the scale so that the effective weight is about `factor` times the weight."""
        norm = torch.linalg.vector_norm(self.masked_weight(), dim=(1, 2, 3), keepdim=True)
        self.log_weight_norm.copy_(torch.log(norm + NORM_FLOOR_AT_START) + math.log(factor))

    def masked_weight(self) -> Tensor:
        """The weight times its mask."""
        return self.weight if self.mask is None else self.weight * self.mask

    def effective_weight(self) -> Tensor:
        """The weight that convolves: what a bank installed for this pass, else computed here."""
        if self.installed is not None:
            return self.installed
        rows = rows_of_norm(self.masked_weight().flatten(1), self.log_weight_norm.flatten(1), NORM_FLOOR)
        return rows.view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Activate and convolve with the effective weight."""
        if self.awaits_data and self.training:
            self._initialise_from(ACTIVATIONS[self.form.activation](input))
        return super().forward(input)

    @torch.no_grad()
    def _initialise_from(self, x: Tensor) -> None:
        """Set bias and scale from the statistics of unit-norm weights on x."""
        norms = torch.zeros_like(self.log_weight_norm).flatten(1)
        unit = rows_of_norm(self.masked_weight().flatten(1), norms, NORM_FLOOR)
        response = self._conv_forward(x, unit.view_as(self.weight), None)
        spread = DATA_INIT_SPREAD * response.std((0, 2, 3), correction=0) + NORM_FLOOR
        if self.bias is not None:
            self.bias.copy_(-response.mean((0, 2, 3)) / spread)
        self.log_weight_norm.copy_(-spread.log().view_as(self.log_weight_norm))
        self.awaits_data, self.installed = False, None


def _cancel_data_init(module: nn.Module, *_: object) -> None:
    """Loaded weights need no initialisation from data."""
    if isinstance(module, WeightNormConv2d):
        module.awaits_data = False


def conv2d(c_in: int, c_out: int, kernel: int, *, normalised: bool, **conv: Any) -> ActivatedConv2d:
    """A convolution of the configured kind."""
    if normalised:
        return WeightNormConv2d(c_in, c_out, kernel, **conv)
    conv.pop("data_init", None)
    return ActivatedConv2d(c_in, c_out, kernel, **conv)


class WeightBank:
    """Effective weights of many convolutions, normalised together.

    Every pass with gradients computes its own. Those of a pass without are kept until a parameter changes, or a pass
    with gradients comes between.
    """

    def __init__(self, convs: Iterable[nn.Module], network: NetworkOps) -> None:
        self.network = network
        self.convs = [conv for conv in convs if isinstance(conv, WeightNormConv2d)]
        self._kept: Kept[tuple[Tensor, ...]] = Kept()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Convolutions use the bank's weights inside this block."""
        if torch.is_grad_enabled():
            self._kept.clear()
        waiting = any(conv.awaits_data for conv in self.convs)  # they set their own scale, in place, in this pass
        ready = [conv for conv in self.convs if not conv.awaits_data]
        weights = self._normalise(ready) if waiting else self.weights()
        for conv, weight in zip(ready, weights, strict=True):
            conv.installed = weight
        try:
            yield
        finally:
            for conv in self.convs:
                conv.installed = None

    def weights(self) -> tuple[Tensor, ...]:
        """Effective weights in the order of `convs`: those of the last pass while they hold, else new ones."""
        parameters = (p for conv in self.convs for p in (conv.weight, conv.log_weight_norm))
        return self._kept.of(parameters, lambda: self._normalise(self.convs))

    def clear(self) -> None:
        """Forget the weights of the last pass."""
        self._kept.clear()

    def _normalise(self, convs: Sequence[WeightNormConv2d]) -> tuple[Tensor, ...]:
        """New effective weights."""
        weights, norms = [conv.masked_weight() for conv in convs], [conv.log_weight_norm for conv in convs]
        return self.network.weight_norm(weights, norms, NORM_FLOOR)


def norm_swish(norm: nn.BatchNorm2d, x: Tensor, ops: Ops, activation: Activation, repeats: int = 1) -> Tensor:
    """A batch norm and its activation through the backend; `repeats` as in `kernels.ops.NormSwish`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / int(norm.num_batches_tracked) if momentum is None else momentum
    return ops.norm_swish(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training=norm.training,
        momentum=momentum or 0.0,
        eps=norm.eps,
        repeats=repeats,
        activation=activation,
    )
