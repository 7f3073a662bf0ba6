"""A device without a GPU: Triton's own launch path down to the compiled PTX, which the interpreter then runs.

Everything before the launch is Triton's: how arguments are bound, what is specialised on their values and divisibility,
which options reach the compiler. Only the assembler is left out. Tensors on the CPU are the device's memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from ptx.errors import PtxError, UnsupportedError
from ptx.functions import Rounding
from ptx.machine import Grid, execute
from ptx.memory import Allocation, GlobalMemory
from ptx.parser import parse
from torch import Tensor
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.driver import driver

from kernels.gpu import latent_plan, launches, mixture_plan, norm_plan

SHARED_MEMORY = 99 * 1024
"""Bytes that one block may have on any of the targets (CUDA C++ Programming Guide, "Compute Capabilities")."""
SCALARS = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I"}
SCALARS |= {"u64": "Q", "fp32": "f", "fp64": "d"}
NO_POINTER = struct.pack("Q", 0)
MAKERS = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))
"""What the launches allocate their results with."""


class PtxBackend(CUDABackend):
    """Triton's CUDA compiler without its last stage."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any) -> None:
        """The stages up to PTX."""
        super().add_stages(stages, options, language)
        del stages["cubin"]

    def hash(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A key of the compiler's cache apart from that of whole builds."""
        return f"{super().hash()}-ptx"


def flat(kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Type and value of every argument that the compiled kernel takes, tuples unpacked."""
    if isinstance(kind, tuple):
        for part, one in zip(kind, value, strict=True):
            yield from flat(part, one)
    elif kind != "constexpr":
        yield kind, value


def host_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor's whole storage."""
    storage = tensor.untyped_storage()
    return np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()))


class Device:
    """Runs launches; `launched` are the kernels so far, by function.

    Args:
        capability: architecture that is compiled for, 90 for sm_90.
        rounding: what approximate functions give.
        edit: changes a kernel's PTX before it runs (tests break kernels so).
    """

    def __init__(self, capability: int, rounding: Rounding, edit: Callable[[str], str]) -> None:
        self.capability, self.edit = capability, edit
        self.rounding: Rounding = rounding
        self.launched: list[str] = []
        self.tensors: list[Tensor] = []
        self.unwritten: dict[int, NDArray[np.bool_]] = {}
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (None, kernel, 0, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY},
        )

    def get_current_target(self) -> GPUTarget:
        """The architecture compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> Any:
        """Key under which Triton keeps what it compiled: no GPU's number."""
        return "ptx", self.capability

    def get_current_stream(self, device: object) -> int:
        """The only stream."""
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What Triton calls for each launch of a compiled kernel."""
        kinds = list(source.signature.values())
        function = f"{source.fn.fn.__module__}.{source.fn.fn.__name__}"

        def run(x: int, y: int, z: int, stream: int, kernel: Any, *rest: Any) -> None:
            arguments = [pair for kind, one in zip(kinds, rest[4:], strict=True) for pair in flat(kind, one)]
            grid = Grid((x, y, z), 32 * metadata.num_warps, metadata.shared)
            if getattr(metadata, "num_ctas", 1) != 1 or metadata.global_scratch_size or metadata.profile_scratch_size:
                raise UnsupportedError(f"{function}: clusters or scratch memory")
            text = kernel.decode() if isinstance(kernel, bytes) else kernel
            active = driver.active
            assert isinstance(active, Device)
            active.launch(function, text, grid, arguments)

        return run

    def fresh(self, tensor: Tensor) -> Tensor:
        """Note that a new tensor holds nothing yet; only kernels are seen to write to it."""
        self.tensors.append(tensor)  # kept, so that its address is not given out again
        storage = tensor.untyped_storage()
        self.unwritten[storage.data_ptr()] = np.zeros(storage.nbytes(), np.bool_)
        return tensor

    def allocation(self, tensor: Tensor, name: str, memory: GlobalMemory, known: dict[int, Allocation]) -> Allocation:
        """The allocation of a tensor's storage."""
        host = tensor.untyped_storage().data_ptr()
        if host not in known:
            known[host] = memory.add(name, host, host_bytes(tensor), True)
            known[host].written = self.unwritten.get(host)
        return known[host]

    def launch(self, function: str, text: str, grid: Grid, arguments: list[tuple[str, Any]]) -> None:
        """Run a kernel on the tensors among its arguments."""
        memory, known, packed = GlobalMemory(), {}, []
        for index, (kind, value) in enumerate(arguments):
            if isinstance(value, Tensor):
                allocation = self.allocation(value, f"tensor {index}", memory, known)
                packed.append(struct.pack("Q", allocation.base + value.data_ptr() - value.untyped_storage().data_ptr()))
            elif kind in SCALARS:
                packed.append(struct.pack(SCALARS[kind], value))
            else:
                raise UnsupportedError(f"argument of type {kind}")
        program = parse(self.edit(text))
        scratch = len(program.parameters) - len(packed)
        if not 0 <= scratch <= 2:
            raise PtxError(f"{function}: {len(program.parameters)} parameters for {len(packed)} arguments")
        self.launched.append(function)
        execute(program, grid, packed + [NO_POINTER] * scratch, memory, self.rounding)


@contextlib.contextmanager
def compiled_for(
    capability: int = 90, rounding: Rounding = "nearest", edit: Callable[[str], str] = lambda text: text
) -> Iterator[Device]:
    """Within, fused operations on CPU tensors run the kernels compiled for a GPU, with its approximate functions."""
    device, nvidia = Device(capability, rounding, edit), backends["nvidia"]

    def noting(maker: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: device.fresh(maker(*args, **kwargs))

    with contextlib.ExitStack() as stack:
        launches.forget()
        stack.callback(launches.forget)
        for module in (latent_plan, mixture_plan, norm_plan):
            stack.enter_context(mock.patch.object(module, "fast_math", return_value=1))
        for place, name in MAKERS:
            stack.enter_context(mock.patch.object(place, name, noting(getattr(place, name))))
        stack.enter_context(mock.patch.dict(backends, nvidia=dataclasses.replace(nvidia, compiler=PtxBackend)))
        stack.enter_context(mock.patch.object(driver, "_active", device))
        yield device
