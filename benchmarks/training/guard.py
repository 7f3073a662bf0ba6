"""The optimizer's step, of which nothing is left where the loss or a gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm () of all gradients together; on a CPU each is dense, and the norm is a float64."""
    if gradients and gradients[0].device.type != "cpu":
        return nn.utils.get_total_norm(gradients)
    rows = [one if one.ndim == 1 else one.as_strided((one.numel(),), (1,)) for one in gradients]  # in memory's order
    squares = torch.stack(list(map(torch.dot, rows, rows))).tolist() if rows else []
    return torch.tensor(math.sqrt(sum(squares)), dtype=torch.float64)


class StepGuard:
    """The optimizer's step, clipped; one whose loss or gradient is not finite is not taken, and leaves no trace.

    Buffers (batch-norm statistics), which the forward pass has moved, are copied before each step and put back. Norm
    and loss are read before the step, one wait for the device; what that costs is far less than to copy parameters and
    the optimizer's state as well, or to ask each of them on the device.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.buffers: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            self.buffers.setdefault(buffer.dtype, []).append(buffer.detach())
        self.before = {kind: [torch.empty_like(one) for one in given] for kind, given in self.buffers.items()}

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers before a step, and drop the gradients of the step before."""
        for kind, buffers in self.buffers.items():
            torch._foreach_copy_(self.before[kind], buffers)  # pyright: ignore[reportPrivateImportUsage]
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget all gradients and give their memory back."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def measure(self, loss: Tensor) -> Tensor:
        """Norm of all gradients, and the loss: (2,) on the device, finite if the step may be taken."""
        norm = gradient_norm([p.grad for p in self.parameters if p.grad is not None])
        return torch.stack([norm, loss.detach().to(norm.dtype)])

    @torch.no_grad()
    def take(self, found: Tensor, limit: float | None) -> None:
        """Take the step, the gradients scaled down to the norm `limit` from what was measured; None leaves them."""
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, found[0].float())
        self.optimizer.step()

    @torch.no_grad()
    def undo(self) -> None:
        """Put the buffers back."""
        for kind, buffers in self.buffers.items():
            torch._foreach_copy_(buffers, self.before[kind])  # pyright: ignore[reportPrivateImportUsage]
