"""The fused Adamax against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.cpu import library
from kernels.cpu.adamax import Adamax

ROUNDING = 1e-6  # a handful of float32 operations a step
OPTIONS = {"lr": 1e-2, "weight_decay": 3e-4, "eps": 1e-3}


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 3, 3), (1,), (257,))
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def steps(optimizer: torch.optim.Optimizer, of: list[Tensor], count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step + 1)
        for index, p in enumerate(of):
            late = index == 1 and step == 0  # a parameter that joins one step later
            p.grad = None if late else torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_equal_torch(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    steps(Adamax(ours, **OPTIONS), ours, 5)
    steps(torch.optim.Adamax(theirs, **OPTIONS), theirs, 5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


def test_state_goes_to_torch_and_back() -> None:
    ours, theirs = parameters(), parameters()
    first, second = Adamax(ours, **OPTIONS), torch.optim.Adamax(theirs, **OPTIONS)
    steps(first, ours, 3)
    for one, other in zip(theirs, ours, strict=True):
        one.data.copy_(other.data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(first, ours, 2, first=3)
    steps(second, theirs, 2, first=3)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


def test_steps_are_counted() -> None:
    of = parameters()
    optimizer = Adamax(of, **OPTIONS)
    steps(optimizer, of, 3)
    counts = [optimizer.state[p]["step"] for p in of]
    assert [float(one) for one in counts] == [3, 2, 3]
    assert all(one.dtype == torch.float32 for one in counts)


def test_counts_of_another_type_are_left_to_torch() -> None:
    ours, theirs = parameters(), parameters()
    for kind, of in ((Adamax, ours), (torch.optim.Adamax, theirs)):
        optimizer = kind(of, **OPTIONS)
        steps(optimizer, of, 2)
        for state in optimizer.state.values():
            state["step"] = state["step"].double()
        steps(optimizer, of, 2, first=2)
        assert [float(optimizer.state[p]["step"]) for p in of] == [4, 3, 4]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


def test_without_a_compiler_torch_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: library.Found(None, "no compiler"))
    ours, theirs = parameters(), parameters()
    steps(Adamax(ours, **OPTIONS), ours, 2)
    steps(torch.optim.Adamax(theirs, **OPTIONS), theirs, 2)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_step_counts_as_a_change_in_place() -> None:
    of = parameters()
    before = of[0]._version
    steps(Adamax(of, **OPTIONS), of, 1)
    assert of[0]._version > before


def test_together_equals_torch_parameter_by_parameter() -> None:
    """The form of a GPU, tried on the CPU: parameters of one age share their correction, others have their own."""
    ours, theirs = parameters(), parameters()
    optimizer = Adamax(ours, **OPTIONS, capturable=True)
    steps(optimizer, ours, 3)
    continued = Adamax(ours, **OPTIONS, capturable=True)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(continued, ours, 2, first=3)
    steps(torch.optim.Adamax(theirs, **OPTIONS), theirs, 5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)
    assert [float(continued.state[p]["step"]) for p in ours] == [5, 4, 5]


class Calls(TorchDispatchMode):
    """The operations that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        self.found.append(str(operation))
        return operation(*given, **(named or {}))


def test_parameters_of_one_age_share_one_correction() -> None:
    """A list of corrections in place of a number is what a GPU launches one by one."""
    many = [torch.ones(3, requires_grad=True) for _ in range(50)]
    for one in many:
        one.grad = torch.ones(3)
    optimizer = Adamax(many, **OPTIONS, capturable=True)
    optimizer.step()
    with Calls() as calls:
        optimizer.step()
    assert "aten._foreach_mul.Tensor" in calls.found
    assert "aten._foreach_mul.List" not in calls.found
    assert len(calls.found) < 20
