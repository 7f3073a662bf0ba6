"""Batch norms of a model over the images of several processes."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.reference.backend import REFERENCE
from kernels.reference.synchronised import synchronised
from models.layers.convolutions import norm_swish

OPS = synchronised(REFERENCE)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all processes, on any device and also by gloo."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) of this process -> (B, C, h, w)."""
        return norm_swish(self, input, OPS, "none")


def synchronise(model: nn.Module) -> None:
    """Let the norms that `model` calls as modules be those of all processes; others are its backend's."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
