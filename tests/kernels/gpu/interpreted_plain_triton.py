"""The plain Triton draw that the fused one is timed against, in Triton's interpreter, against the float64 reference.

Collected by `test_interpreted.py` in a process of its own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import pytest
import torch

from benchmarks.profiling.plain_triton import PLAIN_TRITON
from benchmarks.profiling.problems import gaussian_problem
from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED
from kernels.reference.backend import REFERENCE


def test_it_takes_the_problems_that_are_timed():
    kind = torch.device("cpu")
    problem = gaussian_problem("learned prior", PLAIN, True, (2, 3, 4, 4), torch.float32, kind)
    z, kl = problem.forward(PLAIN_TRITON, problem.given, problem.constants)
    assert z.shape == (2, 3, 4, 4)
    assert kl.shape == (2,)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("form", [PLAIN, SOFT_CLAMPED, RESIDUAL], ids=["plain", "clamped", "residual"])
def test_values_and_gradients(form, learned):
    generator = torch.Generator().manual_seed(0)
    raw = [0.5 * torch.randn(3, 10, 5, 7, generator=generator) for _ in range(2 if learned else 1)]
    up = torch.randn(3, 5, 5, 7, generator=generator)

    def run(ops, dtype, **request):
        leaves = [one.to(dtype).requires_grad_() for one in raw]
        halves = [half for leaf in leaves for half in leaf.chunk(2, 1)]
        prior = halves[2:] or [None, None]
        draw = ops.gaussian_sample_kl(*halves[:2], *prior, seed=torch.tensor(3), group=0, form=form, **request)
        rows = torch.linspace(0.5, 1.5, 3, dtype=draw.kl.dtype)
        return draw, torch.autograd.grad((draw.z, draw.kl), leaves, (up.to(dtype), rows))

    ours, gradients = run(PLAIN_TRITON, torch.float32)
    none, one = (run(REFERENCE, torch.float64, noise=torch.full(up.shape, level).double())[0].z for level in (0.0, 1.0))
    noise = (ours.z.detach().double() - none) / (one - none)
    assert 0.8 < float(noise.detach().std()) < 1.2
    theirs, exact = run(REFERENCE, torch.float64, noise=noise.detach())
    torch.testing.assert_close(ours.kl.double(), theirs.kl, rtol=1e-5, atol=1e-5)
    for mine, other in zip(gradients, exact, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4)
