"""Weight norm and spectral norms together, in C, against plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu import library
from kernels.cpu.backend import CPU
from kernels.ops import NetworkOps
from kernels.reference.backend import REFERENCE

ROUNDING = 1e-5
"""Float32 sums of up to some hundred terms, against the largest value of the tensor."""
SHAPES = ((7, 5, 3, 3), (16, 1, 5, 5), (1, 3, 1, 1), (40, 64, 3, 3), (9, 16, 1, 1))
ROUNDS, PENALTY, FLOOR = 4, 0.7, 1e-3

pytestmark = pytest.mark.skipif(library.library() is None, reason="needs a C compiler")


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, log norms and left vectors."""
    shapes = list(enumerate(SHAPES))
    weights = [random(*shape, seed=k, dtype=dtype).requires_grad_() for k, shape in shapes]
    log_norms = [random(shape[0], 1, 1, 1, seed=20 + k, dtype=dtype).requires_grad_() for k, shape in shapes]
    return weights, log_norms, [F.normalize(random(shape[0], seed=40 + k, dtype=dtype), dim=0) for k, shape in shapes]


def close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=ROUNDING * float(other.abs().max()))


@pytest.mark.parametrize("normed", [len(SHAPES), 2, 0])
def test_gradients_of_what_convolves_and_of_its_spectral_norms_add_up(normed: int) -> None:
    """Of `normed` weights of a norm, and of others that are parameters themselves."""

    def step(network: NetworkOps, dtype: torch.dtype) -> list[Tensor]:
        weights, log_norms, left = inputs(dtype)
        made = [*(network.weight_norm(weights[:normed], log_norms[:normed], 1e-5) if normed else ()), *weights[normed:]]
        penalty = network.spectral_norms(made, left, ROUNDS, FLOOR)
        (sum(one.sin().sum() for one in made) + PENALTY * penalty).backward()
        return [penalty.detach(), *left, *(one.grad for one in weights + log_norms[:normed] if one.grad is not None)]

    close(step(CPU.network, torch.float32), step(REFERENCE.network, torch.float64))


def test_spectral_norms_alone_reach_what_weights_were_made_of() -> None:
    """Of some of them; that of a single row depends on its log norm alone."""

    def step(network: NetworkOps, dtype: torch.dtype) -> tuple[Tensor, ...]:
        weights, log_norms, left = inputs(dtype)
        made = network.weight_norm(weights, log_norms, 1e-5)
        penalty = PENALTY * network.spectral_norms(made[3:], left[3:], ROUNDS, FLOOR)
        return torch.autograd.grad(penalty, weights[3:] + log_norms[3:])

    close(step(CPU.network, torch.float32), step(REFERENCE.network, torch.float64))


def test_a_second_backward_pass_gives_the_same() -> None:
    weights, log_norms, left = inputs(torch.float32)
    made = CPU.network.weight_norm(weights, log_norms, 1e-5)
    loss = sum(one.sin().sum() for one in made) + CPU.network.spectral_norms(made, left, ROUNDS, FLOOR)
    first, second = (torch.autograd.grad(loss, weights, retain_graph=True) for _ in range(2))  # pyright: ignore[reportArgumentType]
    assert all(map(torch.equal, first, second))


def test_spectral_norms_of_two_calls_add_up() -> None:
    """Each has its own vectors."""
    weights, log_norms, left = inputs(torch.float32)
    made = CPU.network.weight_norm(weights, log_norms, 1e-5)
    once = [CPU.network.spectral_norms(made, left, rounds, FLOOR) for rounds in (1, ROUNDS)]
    both = torch.autograd.grad(sum(once), weights, retain_graph=True)  # pyright: ignore[reportArgumentType]
    apart = [torch.autograd.grad(one, weights, retain_graph=True) for one in once]
    close(both, [one.double() + other.double() for one, other in zip(*apart, strict=True)])
