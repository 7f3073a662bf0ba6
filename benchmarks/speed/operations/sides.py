# pyright: reportPrivateImportUsage=false
"""An operation as calls to time: in C, of stock PyTorch layer by layer, and the latter through torch.compile."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.speed.clock import Call
from benchmarks.speed.operations.filled import filled, tensors_of
from benchmarks.speed.operations.traced import ADAMAX, Operation, operation_of
from kernels.cell_form import PackedCell
from kernels.cpu.adamax import Adamax
from kernels.cpu.backend import CPU
from kernels.ops import Ops
from kernels.reference.backend import REFERENCE

OURS, STOCK, COMPILED = "C", "stock", "compiled"
FORWARD, KEPT, BACKWARD, STEP = "forward", "forward, kept", "backward", "step"
"""Directions: without gradients; keeping what gradients need; the gradients; an optimizer's step."""
CONSTANT = ("weight", "bias", "tensors", "cell", "rows")
"""Arguments that stay the same from batch to batch in evaluation."""
GRADIENT = 1e-3
Outputs = list[Tensor]


def _own_noise(draw: Callable[..., Any]) -> Any:
    """A draw of the reference with noise from `torch.randn_like`, whatever noise it is given."""
    return lambda mean, **request: draw(mean, **{**request, "noise": torch.randn_like(mean)})


STOCK_OPS = dataclasses.replace(
    REFERENCE,
    gaussian_sample_kl=_own_noise(REFERENCE.gaussian_sample_kl),
    gaussian_sample=_own_noise(REFERENCE.gaussian_sample),
)
"""Plain PyTorch with its own generator: keyed noise is slow without C, and nobody else would draw it."""


@dataclass(frozen=True)
class Prepared:
    """One side of an operation on tensors of its own: calls by direction, and what they read and give in bytes.

    `outputs` are those of the first call.
    """

    calls: dict[str, Call]
    outputs: Outputs
    inputs: list[Tensor]
    gradients: list[Tensor]

    def bytes_of(self, direction: str) -> int:
        """Bytes that cannot but be moved: all inputs and outputs of a direction, once each."""
        read, given = size_of(self.inputs), size_of(self.outputs)
        return read + given + (size_of(self.gradients) if direction == BACKWARD else 0)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values, an expanded tensor counting once."""
    return sum(one.untyped_storage().nbytes() for one in {one.data_ptr(): one for one in tensors}.values())


def prepared(operation: Operation, side: str, gradients: bool) -> Prepared:
    """The operation as that side runs it: in training with gradients, else in evaluation. Compiles on the way.

    Raises:
        Exception: torch.compile cannot take it, which it says in many ways.
    """
    if side == COMPILED:
        torch.compiler.reset()  # or all operations count as one, which is compiled for eight shapes, then left eager
    if operation.name == ADAMAX:
        return _optimizer_step(operation, side)
    arguments = filled(operation)
    if gradients and any(one.requires_grad for one in tensors_of(arguments)):
        return _trained(operation, side, arguments)
    with torch.no_grad(), inductor_config.patch(freezing=True):
        call = _evaluated(operation, side, arguments)
        outputs = call()
    return Prepared({FORWARD: torch.no_grad()(call)}, outputs, tensors_of(arguments), [])


def _trained(operation: Operation, side: str, arguments: dict[str, Any]) -> Prepared:
    """Forward and backward pass, the latter again and again over what one forward pass kept."""
    run = _run(operation_of(_ops(side), operation.name), arguments)
    forward = torch.compile(run, dynamic=False) if side == COMPILED else run
    inputs = tensors_of(arguments)
    leaves = [one for one in inputs if one.requires_grad]
    with functorch_config.patch(donated_buffer=False):  # or a graph could be gone back through only once
        outputs = forward()
        ends = [one for one in outputs if one.requires_grad]
        upstream = [torch.full_like(one, GRADIENT) for one in ends]

        def backward() -> object:
            return torch.autograd.grad(ends, leaves, upstream, retain_graph=True, allow_unused=True)

        found = torch.autograd.grad(ends, leaves, upstream, retain_graph=True, allow_unused=True)
    gradients = [one for one in found if one is not None]
    return Prepared({KEPT: forward, BACKWARD: backward}, outputs, inputs, gradients)


def _evaluated(operation: Operation, side: str, arguments: dict[str, Any]) -> Callable[[], Outputs]:
    """The pass without gradients: cells packed once, and where it is compiled all that is constant frozen."""
    ops = _ops(side)
    cell = arguments.get("cell")
    if isinstance(cell, PackedCell):
        arguments = {**arguments, "cell": ops.network.pack_cell(cell.form, cell.tensors)}
    call = operation_of(ops, operation.name)
    if side != COMPILED:
        return _run(call, arguments)
    if not any(name in CONSTANT for name in arguments):
        return torch.compile(_run(call, arguments), dynamic=False)
    names = [name for name, value in arguments.items() if name not in CONSTANT and isinstance(value, Tensor)]
    batch = [arguments[name] for name in names]

    def of_batch(*given: Tensor) -> Outputs:
        return _outputs(call(**{**arguments, **dict(zip(names, given, strict=True))}))

    compiled = torch.compile(make_fx(of_batch)(*batch), dynamic=False)
    return lambda: compiled(*batch)


def _ops(side: str) -> Ops:
    return CPU if side == OURS else STOCK_OPS


def _run(call: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Outputs]:
    return lambda: _outputs(call(**arguments))


def _outputs(found: Any) -> Outputs:
    return [found] if isinstance(found, Tensor) else [one for one in found if one is not None]


def _optimizer_step(operation: Operation, side: str) -> Prepared:
    """An Adamax step of parameters with gradients; it reads and writes them and their two averages."""
    parameters = tensors_of(filled(operation))
    gradients = [torch.full_like(one, GRADIENT) for one in parameters]
    for one, gradient in zip(parameters, gradients, strict=True):
        one.grad = gradient
    optimizer = Adamax(parameters) if side == OURS else torch.optim.Adamax(parameters, foreach=True)
    step = torch.compile(optimizer.step, dynamic=False) if side == COMPILED else optimizer.step
    step()
    held = [one for state in optimizer.state.values() for one in state.values()]
    read = [*itertools.chain(parameters, gradients, held)]
    return Prepared({STEP: step}, [*parameters, *held], read, [])
