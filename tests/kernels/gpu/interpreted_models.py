"""Whole training steps on the fused operations in Triton's interpreter equal those on the reference.

Collected by `test_interpreted.py` in a process of its own, where TRITON_INTERPRET=1 is set before Triton is imported.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import triton
from packaging.version import Version

from kernels.backends import fused
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.likelihoods import LogisticMixtureSpec
from models.nvae import NVAEConfig
from models.output import Draw, ImageShape
from models.registry import MODELS, build

IMAGE = ImageShape(3, 16, 16)
CONFIGS = {
    "vae": MODELS["vae"].config(channels=4, latent_size=5),
    "nvae": NVAEConfig(
        groups_fine_to_coarse=(2, 1), channels_encoder=4, channels_decoder=4, latent_channels=3, preprocess_blocks=1
    ),
}
has_loops = pytest.mark.skipif(  # of batch norm
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason="before 3.7, Triton's interpreter takes no tensor as a loop's bound with NumPy 2.4 or newer",
)
every_model = pytest.mark.parametrize("name", ["vae", pytest.param("nvae", marks=has_loops)])
RELATIVE = 1e-3  # float32 through tens of layers; the noise of the backends differs by 1e-6


def with_ops(name, ops):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(name, CONFIGS[name], IMAGE, LogisticMixtureSpec(2), ops)


def step(model, x):
    """Loss of one training step and the gradient of every parameter."""
    result = terms(model(x, Draw(torch.tensor(3))), x)
    loss = Objective().loss(result, 1.0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@every_model
def test_training_step(name):
    x = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)) / 255
    ours, theirs = (step(with_ops(name, ops), x) for ops in (fused("cpu"), REFERENCE))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
    assert ours[1].keys() == theirs[1].keys()
    for parameter, gradient in ours[1].items():
        distance = float((gradient - theirs[1][parameter]).norm())
        assert distance < RELATIVE * float(theirs[1][parameter].norm()) + 1e-4, parameter


@every_model
def test_sampling(name):
    images = []
    for ops in (fused("cpu"), REFERENCE):
        model = with_ops(name, ops).eval()
        images.append(model.sample(2, Draw(torch.tensor(3)), temperature=0.7).mean())
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)


def test_a_wrong_operation_changes_the_loss():
    def doubled(*parameters, **request):
        draw = REFERENCE.gaussian_sample_kl(*parameters, **request)
        return draw._replace(kl=2 * draw.kl)

    x = torch.rand(2, 3, 16, 16)
    wrong = dataclasses.replace(REFERENCE, gaussian_sample_kl=doubled)
    right_loss, wrong_loss = (step(with_ops("vae", ops), copy.copy(x))[0] for ops in (REFERENCE, wrong))
    assert float(wrong_loss) > float(right_loss)
