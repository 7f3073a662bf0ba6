"""Memory estimate and diagnostics, on the smallest hierarchical model."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.training.cost import macs_per_image
from benchmarks.training.diagnostics import first_non_finite, non_finite_gradients
from benchmarks.training.memory import estimate_memory, saved_bytes
from kernels.reference.backend import REFERENCE
from models.elbo import terms
from models.likelihoods import BernoulliSpec
from models.nvae import NVAE
from models.nvae.presets import PRESETS
from models.output import Draw, ImageShape
from models.registry import MODELS, build


def tiny(device: str = "cpu") -> NVAE:
    setup = PRESETS["nvae-tiny"]
    with torch.device(device):
        return NVAE(setup.config, setup.image, setup.likelihood, REFERENCE)


def test_estimate_on_the_meta_device_is_what_a_real_pass_saves() -> None:
    estimate = estimate_memory(tiny("meta"))
    real = saved_bytes(tiny().train(), batch=5)
    assert estimate.per_step + 5 * estimate.per_image == pytest.approx(real, rel=0.02)  # workspace of CPU operators
    count = sum(p.numel() for p in tiny().parameters())
    assert (estimate.parameters, estimate.gradients, estimate.optimizer) == (4 * count, 4 * count, 8 * count)
    assert estimate.training(7) - estimate.training(6) == estimate.per_image


def test_estimate_leaves_the_model_as_it_was() -> None:
    model = tiny().eval()
    before = copy.deepcopy(model.state_dict())
    estimate_memory(model)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["nvae", "residual-vae"])
@pytest.mark.parametrize(("side", "groups"), [(16, (2, 1, 1)), (8, (1, 1)), (4, (2,)), (32, (1, 1, 1, 1))])
def test_operations_are_counted_where_the_coarsest_group_is_one_pixel(name: str, side: int, groups: tuple[int, ...]):
    image = ImageShape(1, side, side)
    sizes = {"channels_encoder": 4, "channels_decoder": 4, "latent_channels": 2}
    model = build(name, MODELS[name].config(groups_fine_to_coarse=groups, **sizes), image, BernoulliSpec(), REFERENCE)
    assert (model.latent_shapes[0].height, model.latent_shapes[0].width) == (1, 1)
    assert macs_per_image(model, image) > 0
    x = torch.zeros(3, 1, side, side)
    found = terms(model.train()(x, Draw(torch.tensor(0))), x)
    (found.distortion.mean() + found.rates.sum(1).mean()).backward()


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    model, x = tiny().train(), torch.zeros(2, 1, 28, 28)

    def step() -> object:
        return model(x, Draw(torch.tensor(0)))

    assert first_non_finite(model, step) is None
    bad = model.enc_tower[0].get_submodule("_ops.1.conv_0")
    handle = bad.register_forward_hook(lambda module, inputs, output: output / 0)
    before = copy.deepcopy(model.state_dict())
    assert first_non_finite(model, step) == "output of enc_tower.0._ops.1.conv_0"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    handle.remove()
    with torch.no_grad():
        model.stem.bias.fill_(float("nan"))  # type: ignore[union-attr]
    assert first_non_finite(model, step) == "parameter stem.bias"


def test_gradients_that_are_not_finite_are_named() -> None:
    model = tiny()
    model.prior_ftr0.grad = torch.zeros_like(model.prior_ftr0)
    assert non_finite_gradients(model) == []
    model.prior_ftr0.grad[0] = float("inf")
    assert non_finite_gradients(model) == ["prior_ftr0"]
