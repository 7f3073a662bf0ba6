"""The optimizer's step, of which nothing is left where the loss or a gradient is not finite."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """L2 norm of all gradients together, each dense in the memory of a CPU."""
    rows = (gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients)  # in the order of memory
    return math.sqrt(sum(torch.dot(row, row).item() for row in rows))


class StepGuard(abc.ABC):
    """The optimizer's step, clipped; one whose loss or gradient is not finite leaves no trace.

    Buffers (batch-norm statistics) are copied before each step and put back; the kinds of guard differ in how they keep
    parameters and the optimizer's state from moving.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the state before a step, and drop the gradients of the step before."""
        self.before = [(tensor, tensor.detach().clone()) for tensor in self.guarded()]
        for parameter in self.parameters:
            parameter.grad = None

    def guarded(self) -> Iterable[Tensor]:
        """What is copied before a step."""
        return self.model.buffers()

    @abc.abstractmethod
    def step(self, loss: Tensor, limit: float) -> Tensor:
        """Take the step for `loss` (), its gradients scaled down to the norm `limit` (0: never) where they exceed it.

        Returns:
            The loss; NaN where the step was not finite and the remembered state is back.
        """


class WaitingGuard(StepGuard):
    """On a CPU: the norm is known before the step, which is not taken where it is not finite."""

    @torch.no_grad()
    def step(self, loss: Tensor, limit: float) -> Tensor:
        """Take the step, or put the buffers back."""
        norm = gradient_norm([p.grad for p in self.parameters if p.grad is not None])
        if not math.isfinite(norm + loss.item()):
            for tensor, old in self.before:
                tensor.copy_(old)
            return torch.full_like(loss, torch.nan)
        if limit and norm > limit:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, torch.tensor(norm))
        self.optimizer.step()
        return loss


class SkippingGuard(StepGuard):
    """On a GPU, where nobody waits to see: fused Adam and AdamW skip their own update when told."""

    @torch.no_grad()
    def step(self, loss: Tensor, limit: float) -> Tensor:
        """Take the step; the buffers are put back on the device."""
        norm = nn.utils.clip_grad_norm_(self.parameters, limit or math.inf)
        good = torch.isfinite(norm + loss)
        self.take(good)
        for tensor, old in self.before:
            tensor.copy_(torch.where(good, tensor, old))
        return torch.where(good, loss, torch.nan)

    def take(self, good: Tensor) -> None:
        """Let the optimizer move parameters and state, if `good` ()."""
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        self.optimizer.step()


class RestoringGuard(SkippingGuard):
    """On a GPU with an optimizer that cannot skip: parameters and the optimizer's state are copied and put back too."""

    def guarded(self) -> Iterable[Tensor]:
        """Buffers, parameters and the optimizer's state."""
        return [*self.model.buffers(), *self.parameters, *self._state()]

    def take(self, good: Tensor) -> None:
        """Take the step; state that it makes is zero unless it is good."""
        known = {id(tensor) for tensor, _ in self.before}
        self.optimizer.step()
        for born in (value for value in self._state() if id(value) not in known):
            born.copy_(torch.where(good, born, torch.zeros_like(born)))

    def _state(self) -> list[Tensor]:
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in states if isinstance(value, Tensor)]


def guard_of(model: nn.Module, optimizer: Optimizer) -> StepGuard:
    """The guard for an optimizer, and the device that its parameters are on."""
    if optimizer.param_groups[0]["params"][0].device.type == "cpu":
        return WaitingGuard(model, optimizer)
    return SkippingGuard(model, optimizer) if optimizer.defaults.get("fused") else RestoringGuard(model, optimizer)
