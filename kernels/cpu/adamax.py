"""Adamax whose step on the CPU is one pass over memory, in C (`adamax.c`); elsewhere torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import library

_PARAMETER = np.dtype(
    [*((name, np.uint64) for name in ("value", "gradient", "average", "largest")), ("count", np.int64), ("rate", float)]
)


class Adamax(torch.optim.Adamax):
    """`torch.optim.Adamax` (Kingma & Ba 2015), with the same state; fused on the CPU where there is a C compiler."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; see `torch.optim.Optimizer.step`."""
        taken = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if closure is not None or not all(_fits(p) for group in taken for p in group):
            return super().step(closure)
        for group, parameters in zip(self.param_groups, taken, strict=True):
            if parameters:
                self._fused(group, parameters)
        return None

    def _fused(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """One step of a group's parameters."""
        states = [self._state_of(p) for p in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        beta_1, beta_2 = group["betas"]
        table = np.empty(len(parameters), _PARAMETER)
        table["value"] = [p.data_ptr() for p in parameters]
        table["gradient"] = [p.grad.data_ptr() for p in parameters if p.grad is not None]
        table["average"] = [state["exp_avg"].data_ptr() for state in states]
        table["largest"] = [state["exp_inf"].data_ptr() for state in states]
        table["count"] = [p.numel() for p in parameters]
        table["rate"] = group["lr"] / (1 - beta_1 ** torch.stack(steps).double().numpy())
        library.loaded().vaebench_adamax(
            table.ctypes.data,
            len(parameters),
            *(beta_1, beta_2, group["eps"], group["weight_decay"]),
            torch.get_num_threads(),
        )
        torch.autograd.graph.increment_version(parameters)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The parameter's state, fresh at its first step."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_inf"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _fits(parameter: Tensor) -> bool:
    """Whether the C kernel takes this parameter: float32 on the CPU, it and its gradient contiguous."""
    gradient = parameter.grad
    if gradient is None or not library.takes(parameter, gradient, autocast=True):
        return False
    return parameter.is_contiguous() and gradient.is_contiguous()
