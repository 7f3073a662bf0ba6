"""Launches that are worked out once: what a call needs beyond its tensors is kept under what it depends on.

Planning a launch, and Triton's way to the compiled kernel (binding the arguments, specialising on them, the key of its
own cache), take many times as long on the host as the launch itself. All of it follows from shapes, strides, types,
the alignment of addresses, the device and the form of the request; `layout_key` is what one tensor has a part in.
Under Triton's interpreter nothing is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from kernels.interpreter import interpreting

KEEPING = not interpreting()
ALIGNED = 16
"""Bytes: Triton specialises on whether they divide an address."""
BUFFER_BYTES = 2**31 - 1
"""Of the largest allocation that AMD's buffer instructions reach; Triton specialises on that there."""
MOST = 4096
"""Plans that one operation keeps; more belong to shapes that will hardly come again."""
HERE = contextlib.nullcontext()

PlanT = TypeVar("PlanT")
KEPT: list[dict[Hashable, Any]] = []


class Plans(dict[Hashable, PlanT], Generic[PlanT]):
    """The plans of one operation by what they depend on."""

    def __init__(self) -> None:
        super().__init__()
        KEPT.append(self)

    def keep(self, key: Hashable, plan: PlanT) -> PlanT:
        """Keep the plan for later calls, and return it."""
        if KEEPING:
            if len(self) >= MOST:
                self.clear()
            self[key] = plan
        return plan


def forget() -> None:
    """Plan and specialise everything anew (what is compiled stays in Triton's own cache)."""
    for plans in KEPT:
        plans.clear()


def layout_key(tensor: Tensor) -> Hashable:
    """Shape, strides, type and alignment of a tensor: what its part of a launch depends on, besides the device."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % ALIGNED


def vectors_key(*tensors: Tensor) -> Hashable:
    """What tensors (C,) have a part in, where the key holds C already."""
    return tuple([(one.dtype, one.stride(), one.data_ptr() % ALIGNED) for one in tensors])


if torch.version.hip is not None:
    cuda_key = layout_key

    def layout_key(tensor: Tensor) -> Hashable:
        """As on CUDA, and whether buffer instructions reach the whole allocation."""
        return cuda_key(tensor), tensor.untyped_storage().nbytes() <= BUFFER_BYTES

    def vectors_key(*tensors: Tensor) -> Hashable:
        """As of any tensors."""
        return tuple([layout_key(one) for one in tensors])


def aligned(*tensors: Tensor) -> bool:
    """Whether addresses are as aligned as torch's own allocators make them, so that plans for them may be kept."""
    for tensor in tensors:  # noqa: SIM110 - a generator costs as much as the addresses
        if tensor.data_ptr() % ALIGNED:
            return False
    return True


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, so that a kernel is launched where its data are."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return HERE
    return torch.cuda.device(tensor.device)


class Launch:
    """A kernel on a grid with its compile-time arguments; what the first call compiles, later ones launch directly.

    Args:
        kernel: Triton's function, whose last parameters are `constants`.
        grid: programs along up to three axes.
        constants: compile-time arguments.
        options: of the compiler, such as `num_warps`.
    """

    __slots__ = ("constants", "grid", "kernel", "options", "runner")

    def __init__(self, kernel: Any, grid: tuple[int, ...], *constants: object, **options: object) -> None:
        self.kernel, self.grid, self.constants, self.options = kernel, grid, constants, options
        self.runner: Callable[..., object] | None = None

    def __call__(self, fresh: tuple[Tensor, ...], *arguments: object) -> None:
        """Launch with arguments of one and the same specialisation, among them `fresh` memory from torch's allocator.

        Where that is not aligned, which no allocator of torch's own does, Triton looks at the arguments anew.
        """
        if not aligned(*fresh):
            self.bind(*arguments)
            return
        if self.runner is not None:
            self.runner(*arguments, *self.constants)
            return
        compiled = self.bind(*arguments)
        if KEEPING and hasattr(compiled, "packed_metadata"):
            self.runner = compiled[(*self.grid, 1, 1)[:3]]

    def bind(self, *arguments: object) -> Any:
        """Launch with arguments of any specialisation, through Triton's binder; what was launched."""
        return self.kernel[self.grid](*arguments, *self.constants, **self.options, enable_fp_fusion=True)
