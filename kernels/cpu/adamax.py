# pyright: reportPrivateImportUsage=false
"""Adamax: on a CPU one pass over memory, in C (`adamax.c`); on a GPU a few launches for all parameters together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.structures import Parameter
from kernels.cpu.tables import addresses, table


class Adamax(torch.optim.Adamax):
    """`torch.optim.Adamax` (Kingma & Ba 2015), with the same state; fused on the CPU where there is a C compiler.

    Torch's own capturable form corrects the bias of each parameter in a launch of its own; here parameters of equal
    age share their correction.
    """

    def __init__(self, parameters: Iterable[Tensor], **options: Any) -> None:
        super().__init__(parameters, **options)
        self._ages: dict[Tensor, int] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; see `torch.optim.Optimizer.step`."""
        taken = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if closure is None and all(group["capturable"] for group in self.param_groups):
            for group, parameters in zip(self.param_groups, taken, strict=True):
                for others in self._of_equal_age(parameters):
                    self._together(group, others)
            return None
        if closure is not None or not all(map(self._fit, taken)):
            return super().step(closure)
        for group, parameters in zip(self.param_groups, taken, strict=True):
            if parameters:
                self._fused(group, parameters)
        return None

    def _fit(self, parameters: list[Tensor]) -> bool:
        """Whether the C kernel takes these: float32 on the CPU, they and their gradients contiguous."""
        steps = [state["step"] for p in parameters if (state := self.state.get(p))]
        both = parameters + _gradients(parameters)
        return library.takes(*both, *steps, autocast=True) and all(map(Tensor.is_contiguous, both))

    def _fused(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """One step of a group's parameters."""
        states, (beta_1, beta_2) = [self._state_of(p) for p in parameters], group["betas"]
        rows = table(
            Parameter,
            value=addresses(parameters),
            gradient=addresses(_gradients(parameters)),
            average=addresses(state["exp_avg"] for state in states),
            largest=addresses(state["exp_inf"] for state in states),
            steps=addresses(state["step"] for state in states),
            count=list(map(Tensor.numel, parameters)),
        )
        library.loaded().vaebench_adamax(
            *(rows.ctypes.data, len(rows), group["lr"]),
            *(beta_1, beta_2, group["eps"], group["weight_decay"]),
            torch.get_num_threads(),
        )
        torch.autograd.graph.increment_version(parameters)

    def _of_equal_age(self, parameters: list[Tensor]) -> Iterable[list[Tensor]]:
        """Parameters of one device and type that have taken equally many steps.

        Ages are counted on the host, from what the state says at first sight. Where steps are replayed they stand
        still, all of them.
        """
        found: dict[tuple[int, torch.device, torch.dtype], list[Tensor]] = {}
        fresh = [p for p in parameters if p not in self._ages]
        if known := [p for p in fresh if self.state.get(p)]:
            counts = torch.stack([self.state[p]["step"] for p in known]).tolist()
            self._ages.update(zip(known, map(int, counts), strict=True))
        for parameter in parameters:
            age = self._ages.setdefault(parameter, 0)
            self._ages[parameter] = age + 1
            found.setdefault((age, parameter.device, parameter.dtype), []).append(parameter)
        return found.values()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and forget what was known of the ages."""
        super().load_state_dict(state_dict)
        self._ages.clear()

    def _together(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """One step of parameters of equal age: torch's own operations, with one correction for all."""
        states = [self._state_of(p) for p in parameters]
        steps, averages, largest = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_inf"))
        gradients = _gradients(parameters)
        beta_1, beta_2 = group["betas"]
        torch._foreach_add_(steps, 1)
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        torch._foreach_lerp_(averages, gradients, 1 - beta_1)
        torch._foreach_mul_(largest, beta_2)
        sizes = torch._foreach_abs(gradients)
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_maximum_(largest, sizes)
        correction = (beta_1 ** steps[0] - 1) / group["lr"]
        scaled = torch._foreach_mul(largest, correction)
        torch._foreach_addcdiv_(parameters, averages, scaled)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The parameter's state, fresh at its first step; the count lies where the parameter does."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_inf"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of those that have one."""
    return [gradient for p in parameters if (gradient := p.grad) is not None]
