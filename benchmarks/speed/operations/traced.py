"""Which operations a model asks its backend for, how often, and on what: recorded while a step really runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.target import Target
from benchmarks.speed.work import job_of
from kernels.backends import best_for
from kernels.cell_form import PackedCell
from kernels.ops import Ops
from kernels.reference.backend import REFERENCE
from models.elbo import terms
from models.registry import build

TRAINING, EVALUATION = "training", "evaluation"
"""A training step; a batch scored (ELBO) and one sampled, without gradients."""
ADAMAX = "adamax"
"""The optimizer's step, which is no operation of a backend."""
WHICH_NOISE = ("group", "first_sample")
NOT_RUN = ("name", "network", "pack_cell")
"""Fields of a backend that are no operations, or done once for many batches."""


@dataclass(frozen=True)
class Slot:
    """What stands for a tensor: its shape, how it lies in memory, its type, and whether it takes a gradient."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    differentiable: bool


@dataclass(frozen=True)
class Operation:
    """A call of an operation: its name in `Ops`, and its arguments by name, with slots for tensors."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def argument(self, name: str) -> Any:
        """The argument of that name; None where it was not given."""
        return dict(self.arguments).get(name)


Counts = dict[str, Counter[Operation]]
"""How often each operation runs, by phase."""


def mapped(tree: Any, leaf: Callable[[str, Any], Any], name: str = "") -> Any:
    """The tree of dataclasses and sequences with `leaf(name of the field or argument, value)` for each of its values.

    Sequences become tuples; of a packed cell only what it was packed from is kept.
    """
    if isinstance(tree, PackedCell):
        tree = PackedCell(tree.form, tree.tensors)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type | Slot):
        fields = {one.name: mapped(getattr(tree, one.name), leaf, one.name) for one in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    if isinstance(tree, list | tuple):
        return tuple(mapped(one, leaf, name) for one in tree)
    return leaf(name, tree)


def slot_of(name: str, value: Any) -> Any:
    """The slot of a tensor; anything else is itself, but for what only says which noise is drawn."""
    if not isinstance(value, Tensor):
        return 0 if name in WHICH_NOISE else value
    return Slot(tuple(value.shape), value.stride(), value.dtype, value.requires_grad)


def operation_of(ops: Ops, name: str) -> Callable[..., Any]:
    """The operation of that name."""
    return getattr(ops, name) if hasattr(ops, name) else getattr(ops.network, name)


def recording(ops: Ops, seen: Counter[Operation]) -> Ops:
    """The operations, each of which counts itself in `seen` before it runs."""
    own, network = (
        {one.name: _recorded(one.name, getattr(part, one.name), seen) for one in dataclasses.fields(part)}
        for part in (ops, ops.network)
    )
    replaced = {name: call for name, call in own.items() if name not in NOT_RUN}
    layers = {name: call for name, call in network.items() if name not in NOT_RUN}
    return dataclasses.replace(ops, **replaced, network=dataclasses.replace(ops.network, **layers))


def _recorded(name: str, call: Any, seen: Counter[Operation]) -> Any:
    if name in NOT_RUN:
        return call
    signature = inspect.signature(operation_of(REFERENCE, name))

    @functools.wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        seen[Operation(name, tuple((key, mapped(value, slot_of, key)) for key, value in given.items()))] += 1
        return call(*arguments, **named)

    return counted


def operations_of(target: Target) -> Counts:
    """What a training step and an evaluation of the target run on a CPU, at its batch.

    Each pass runs once before it is counted, so that weights are initialised and packed.
    """
    job, seen = job_of(target, torch.device("cpu")), Counter[Operation]()
    trial, x, draw = target.trial, job.x(), job.draw()
    ops = recording(best_for("cpu"), seen)
    model = build(trial.model, trial.model_config, target.image, trial.likelihood_spec, ops).train()

    def scored() -> None:
        terms(model(x, draw), x)

    def stepped() -> None:
        scored()
        model.penalty(1.0)

    def evaluated() -> None:
        scored()
        if model.has_prior:
            model.sample(job.batch, draw).mean()

    counts = {TRAINING: _counted(stepped, seen)}
    model.eval()
    counts[EVALUATION] = _counted(torch.inference_mode()(evaluated), seen)
    if trial.training.optimizer == ADAMAX:
        parameters = tuple(slot_of("", one) for one in model.parameters() if one.requires_grad)
        counts[TRAINING][Operation(ADAMAX, (("parameters", parameters),))] = 1
    return counts


def _counted(call: Callable[[], None], seen: Counter[Operation]) -> Counter[Operation]:
    """What the second of two calls runs."""
    call()
    seen.clear()
    call()
    found = Counter({operation: count for operation, count in seen.items() if slots_of(operation)})
    seen.clear()
    return found


def slots_of(operation: Operation) -> list[Slot]:
    """All slots of the operation, in the order of its arguments."""
    found: list[Slot] = []
    for name, value in operation.arguments:
        mapped(value, lambda _, one: found.append(one) if isinstance(one, Slot) else None, name)
    return found
