"""What a model costs before it is run: parameters, multiply-accumulate operations per image, memory of its training."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.suites.config import TrainingConfig
from benchmarks.training.memory import estimate_memory
from models.output import Draw, ImageShape, Model

SMALL = 1 << 22
"""Parameters of a model that is counted on the CPU, which takes less time than to import what meta tensors need."""


def parameter_count(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs_per_image(model: Model, image: ImageShape) -> int:
    """Multiply-accumulates of one forward pass of one image, counted as `macs_of` does."""
    return macs_of(model, image, lambda twin, x, draw: twin(x, draw))


def macs_of(model: Model, image: ImageShape, call: Callable[[Model, Tensor, Draw], object]) -> int:
    """Multiply-accumulates of a call of the model on one image (1, C, H, W): FLOPs / 2 on the reference operations.

    Counted in evaluation mode on a copy, of a large model on the meta device, with every z at its mean; element-wise
    work is not counted.
    """
    device = "cpu" if parameter_count(model) < SMALL else "meta"
    twin = _copied(model, device).eval().requires_grad_(False)  # or the formulas look for gradients' functions
    twin = twin.double()  # which all operations leave to the reference
    x = torch.zeros(1, image.channels, image.height, image.width, device=device, dtype=torch.float64)
    draw = Draw(torch.zeros((), dtype=torch.int64, device=device), at_mean=True)
    return counted_macs(lambda: call(twin, x, draw))


def counted_macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of matrix products and convolutions in a call, which is made: FLOPs / 2."""
    with torch.no_grad(), FlopCounter() as counter:
        call()
    return counter.flops // 2


def _copied(model: Model, device: str) -> Model:
    """A copy on the device; of a model on the meta device one of zeros."""
    twin = copy.deepcopy(model)
    if device == "meta" or not next(model.parameters()).is_meta:
        return twin.to(device)
    return twin._apply(lambda one: torch.zeros(one.shape, dtype=one.dtype, device=device))


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of all operations for which torch has a formula.

    `torch.utils.flop_counter.FlopCounterMode` finds as many, and imports torch's compiler for it: longer than a small
    model takes from its plan to its first step.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports Triton

        super().__init__()
        self.flops, self.formulas = 0, flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled() and func._can_decompose():  # not taken apart there
            with self:
                return func.decompose(*args, **(kwargs or {}))
        found = func(*args, **(kwargs or {}))
        self.flops += 0 if formula is None else formula(*args, **(kwargs or {}), out_val=found)
        return found


FlopCounter.__torch_dispatch__ = inspect.unwrap(FlopCounter.__torch_dispatch__)  # of what imports the compiler


def training_memory(model: Model, training: TrainingConfig) -> int:
    """Bytes of a training step of the configured batch in float32; `model` may be on the meta device.

    Besides weights, gradients and activations: two optimiser values a parameter, the averaged weights, and with Adamax
    the copies that undo a step which is not finite (on a GPU; a CPU does without). Activations are those of single
    layers; cells in C keep less.
    """
    copies = 3 if training.optimizer == "adamax" else 0
    return estimate_memory(model, 2 + bool(training.ema) + copies).training(training.batch_size)
