"""What a model costs before it is run: parameters and multiply-accumulate operations per image."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.reference import REFERENCE
from models.output import Draw, ImageShape, Model


def parameter_count(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs_per_image(model: Model, image: ImageShape) -> int:
    """Multiply-accumulates of one forward pass of one image: FLOPs / 2 on the reference operations.

    Counted in evaluation mode on a copy on the meta device; element-wise work is not counted.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    twin.ops = REFERENCE
    x = torch.zeros(1, image.channels, image.height, image.width, device="meta")
    draw = Draw(torch.zeros((), dtype=torch.int64, device="meta"), at_mean=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(x, draw)
    return counter.get_total_flops() // 2
