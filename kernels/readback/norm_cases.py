"""Kernels of batch norm and swish as `kernels.readback.static_profile` compiles them: full programs, channels-last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from kernels.gpu.latent_plan import Fast

COLUMNS = 64
"""Channels of one program."""
STEPS = 32
"""Of one program. Its channels' parameters count 128 bits a field and thread; most come from the cache."""


@dataclass(frozen=True)
class NormKernel:
    """One pass of batch norm and swish: the reduction, or the pass that writes a tensor.

    Plain PyTorch's two operations stand beside them: batch norm beside the reduction, swish beside the other pass.
    """

    name: str
    reduces: bool

    def function(self, direction: Literal["forward", "backward"]) -> Any:
        """The kernel."""
        from kernels.gpu import norm as norm_kernels

        if direction == "forward":
            return norm_kernels.statistics if self.reduces else norm_kernels.forward
        return norm_kernels.backward_sums if self.reduces else norm_kernels.backward

    def signature(self, direction: Literal["forward", "backward"], dtype: str) -> dict[str, Any]:
        """Types of the kernel's arguments."""
        field, extent = (f"*{dtype}", "i32", "i32"), dict.fromkeys(("lines", "units", "steps"), "i32")
        given = {"affine": ("*fp32",) * 4}
        if direction == "forward":
            if self.reduces:
                return {"x": field, "parts": "*fp32"} | extent
            return {"x": field, "y": field} | given | extent | {"eps": "fp32"}
        fields = {"grad_y": field, "x": field}
        if self.reduces:
            return fields | given | {"parts": "*fp32"} | extent | {"eps": "fp32"}
        sums = {"sums": ("*fp32",) * 2}
        return fields | {"grad_x": field} | given | sums | extent | {"eps": "fp32", "share": "fp32"}

    def constants(self, direction: Literal["forward", "backward"], itemsize: int, fast: Fast) -> dict[str, Any]:
        """The kernel's constants: its sweep, and its formulas where it has a choice."""
        from kernels.gpu.norm_plan import THREADS, TURNS, Norm, Sweep

        statistics = self.reduces and direction == "forward"
        turns = TURNS if statistics else TURNS // 2
        rows = turns * THREADS * 16 // itemsize // COLUMNS
        sweep = Sweep("channels_last", 16, rows, COLUMNS, turns, full=True, fast=fast)
        return {"SWEEP": sweep} | ({} if statistics else {"NORM": Norm(training=True, swish=True)})

    def eager_call(self, dtype: torch.dtype) -> tuple[list[Tensor], Callable[[], tuple[Tensor]]]:
        """The input and the forward pass of the operation of plain PyTorch that stands beside this pass."""
        x = torch.randn(8, COLUMNS, 32, 32, generator=torch.Generator().manual_seed(0))
        x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        mean, var, weight, bias = (torch.ones(COLUMNS) for _ in range(4))
        if self.reduces:
            return [x], lambda: (F.batch_norm(x, mean, var, weight, bias, training=True),)
        return [x], lambda: (F.silu(x),)

    def bytes_floor(self, direction: Literal["forward", "backward"], itemsize: int) -> float:
        """Bytes per element: x is read, in the backward pass its gradient too, and the other pass writes."""
        return (1 + (direction == "backward") + (not self.reduces)) * itemsize


NORM_KERNELS = (
    NormKernel("batch norm and swish, reduction", reduces=True),
    NormKernel("batch norm and swish, writing", reduces=False),
)
