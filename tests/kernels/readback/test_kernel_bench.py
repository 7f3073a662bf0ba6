"""Speed of operations and of training steps, forward and backward, under pytest-benchmark (`make microbench`).

Backends of one operation share a group, and so do its saved runs when they are compared.
"""

import pytest
import torch

from kernels.backends import best_for
from kernels.ops import PLAIN, RESIDUAL
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.likelihoods import LogisticMixtureSpec
from models.output import Draw, ImageShape
from models.registry import MODELS, build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPS = {"reference": REFERENCE, "best": best_for(DEVICE)}
CASES = {"standard-normal prior": (PLAIN, False), "learned prior": (PLAIN, True), "residual": (RESIDUAL, True)}

either_backend = pytest.mark.parametrize("ops", OPS.values(), ids=OPS.keys())


def finish():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@either_backend
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(128, 64, 1, 1), (128, 20, 8, 8), (128, 20, 16, 16)], ids=str)
def test_gaussian(benchmark, ops, case, shape):
    benchmark.group = f"gaussian, {case}, {shape}"
    form, learned = CASES[case]
    whole = (shape[0], 2 * shape[1], *shape[2:])
    leaves = [torch.randn(whole, device=DEVICE, requires_grad=True) for _ in range(2 if learned else 1)]
    seed = torch.zeros((), dtype=torch.int64, device=DEVICE)
    upstream = torch.randn(shape, device=DEVICE), torch.ones(shape[0], device=DEVICE)

    def step():
        prior = leaves[1].chunk(2, 1) if learned else (None, None)
        draw = ops.gaussian_sample_kl(*leaves[0].chunk(2, 1), *prior, seed=seed, group=0, form=form)
        gradients = torch.autograd.grad((draw.z, draw.kl), leaves, upstream)
        finish()
        return gradients

    gradients = benchmark(step)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@either_backend
def test_logistic_mixture(benchmark, ops):
    benchmark.group = "logistic mixture"
    parameters = torch.randn(64, 100, 32, 32, device=DEVICE, requires_grad=True)
    x = torch.randint(0, 256, (64, 3, 32, 32), device=DEVICE) / 255

    def step():
        log_prob = ops.logistic_mixture_log_prob(parameters, x, bits=8)
        gradients = torch.autograd.grad(log_prob.sum(), parameters)
        finish()
        return gradients

    assert torch.isfinite(benchmark(step)[0]).all()


@either_backend
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.model.has_prior])
def test_training_step(benchmark, ops, name):
    benchmark.group = f"training step, {name}"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, MODELS[name].config(), ImageShape(1, 28, 28), LogisticMixtureSpec(5), ops).to(DEVICE)
    x = torch.randint(0, 256, (32, 1, 28, 28), device=DEVICE) / 255
    seed = torch.zeros((), dtype=torch.int64, device=DEVICE)

    def step():
        loss = Objective().loss(terms(model(x, Draw(seed)), x), 1.0)
        model.zero_grad()
        loss.backward()
        finish()
        return loss

    assert torch.isfinite(benchmark(step))
