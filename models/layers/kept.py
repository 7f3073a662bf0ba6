"""What is worked out once from tensors and kept while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """A value worked out from tensors.

    It holds until one of them changes in place (load, average, step), moves (device, dtype), or gradients are switched
    on or off. The tensors are kept alive beside it, so that no other can come to lie at the same address. Copies start
    empty.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the value."""
        self._state: tuple[object, ...] | None = None
        self._value: T | None = None
        self._made_of: list[Tensor] = []

    def of(self, tensors: Iterable[Tensor], work_out: Callable[[], T]) -> T:
        """The value: the kept one while it holds, else a new one."""
        made_of = list(tensors)
        stamps = ((one.data_ptr(), 0 if one.is_inference() else one._version, one.dtype) for one in made_of)
        state = (torch.is_grad_enabled(), *stamps)
        if state != self._state or self._value is None:
            self._value, self._state, self._made_of = work_out(), state, made_of
        return self._value

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of the value, which may belong to a graph that cannot be copied."""
        return {"_state": None, "_value": None, "_made_of": []}
