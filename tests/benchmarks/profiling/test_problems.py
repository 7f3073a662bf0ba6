"""Problems that are timed and checked: their layouts keep values, and the CPU path solves them."""

import pytest
import torch

from benchmarks.profiling.kernel_timing import VALUE, error_of, largest_error
from benchmarks.profiling.problems import (
    LAYOUTS,
    gaussian_problem,
    mixture_problem,
    norm_problem,
    random,
    sample_problem,
)
from kernels.cpu.backend import CPU
from kernels.ops import RESIDUAL

DEVICE, SHAPE = torch.device("cpu"), (3, 4, 6, 2)
MAKERS = {
    "gaussian": lambda layout: gaussian_problem("", RESIDUAL, True, SHAPE, torch.float32, DEVICE, layout),
    "given noise": lambda layout: gaussian_problem(
        "", RESIDUAL, True, SHAPE, torch.float32, DEVICE, layout, log_ratio=True, external=True
    ),
    "sample": lambda layout: sample_problem("", SHAPE, torch.float32, DEVICE, layout),
    "grey": lambda layout: mixture_problem((3, 1, 6, 2), torch.float32, DEVICE, layout),
    "colour": lambda layout: mixture_problem((3, 3, 6, 2), torch.float32, DEVICE, layout),
    "norm": lambda layout: norm_problem(SHAPE, torch.float32, DEVICE, layout),
    "evaluation": lambda layout: norm_problem(SHAPE, torch.float32, DEVICE, layout, training=False, backward=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_values(layout):
    x = random(3, 4, 6, 2, key=0)
    assert torch.equal(LAYOUTS[layout](x), x)


def test_layouts_differ():
    x = random(3, 4, 6, 2, key=0)
    assert len({layout(x).stride() for layout in LAYOUTS.values()}) == len(LAYOUTS)


@pytest.mark.parametrize("layout", ["channels-last", "every second pixel"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_cpu_path_solves_every_problem(make, layout):
    problem = make(LAYOUTS[layout])
    first, second = (problem.evaluate(CPU) for _ in range(2))
    found = [*first.values, *first.gradients]
    assert largest_error(found, problem.exact()) < VALUE[torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(found, [*second.values, *second.gradients], strict=True))
    assert len(problem.step(CPU)) == len(found)


def test_a_value_that_is_not_finite_is_an_error():
    assert error_of(torch.tensor([1.0, torch.nan]), torch.ones(2)) == torch.inf
    assert error_of(torch.empty(0), torch.empty(0)) == 0.0
