"""What a model costs before it is run: parameters, multiply-accumulate operations per image, memory of its training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.suites.config import TrainingConfig
from benchmarks.training.memory import estimate_memory
from kernels.reference.backend import REFERENCE
from models.output import Draw, ImageShape, Model


def parameter_count(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs_per_image(model: Model, image: ImageShape) -> int:
    """Multiply-accumulates of one forward pass of one image, counted as `macs_of` does."""
    return macs_of(model, image, lambda twin, x, draw: twin(x, draw))


def macs_of(model: Model, image: ImageShape, call: Callable[[Model, Tensor, Draw], object]) -> int:
    """Multiply-accumulates of a call of the model on one image (1, C, H, W): FLOPs / 2 on the reference operations.

    Counted in evaluation mode on a copy on the meta device, with every z at its mean; element-wise work is not counted.
    """
    twin = copy.deepcopy(model).to("meta").eval().requires_grad_(False)  # or the counter looks for gradients' functions
    twin.ops = REFERENCE
    x = torch.zeros(1, image.channels, image.height, image.width, device="meta")
    draw = Draw(torch.zeros((), dtype=torch.int64, device="meta"), at_mean=True)
    return counted_macs(lambda: call(twin, x, draw))


def counted_macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of matrix products and convolutions in a call, which is made: FLOPs / 2."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def training_memory(model: Model, training: TrainingConfig) -> int:
    """Bytes of a training step of the configured batch in float32; `model` may be on the meta device.

    Besides weights, gradients and activations: two optimiser values a parameter, the averaged weights, and with Adamax
    the copies that undo a step which is not finite (on a GPU; a CPU does without). Activations are those of single
    layers; cells in C keep less.
    """
    copies = 3 if training.optimizer == "adamax" else 0
    return estimate_memory(model, 2 + bool(training.ema) + copies).training(training.batch_size)
