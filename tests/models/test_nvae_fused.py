"""NVAE through the backend's whole-network operations against the same model layer by layer."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.backend import CPU
from kernels.reference import network
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, importance_weighted, terms
from models.likelihoods import BernoulliSpec, LogisticMixtureSpec
from models.nvae.cells import ResidualCell
from models.nvae.config import ARCHITECTURES, NVAEConfig
from models.nvae.model import NVAE, ResidualVAE
from models.output import Draw, ImageShape
from models.registry import build

FLOAT32 = 2e-3
"""Float32 against float64 through a dozen batch norms of two images, relative to the largest value of a tensor."""
VALUES = 2e-4
CONFIG = NVAEConfig(
    groups_fine_to_coarse=(2, 1),
    latent_channels=3,
    channels_encoder=8,
    channels_decoder=8,
    preprocess_blocks=1,
    weight_norm=True,
    norm_penalty=0.1,
    residual_gain=0.5,
)
GREY = ImageShape(1, 12, 12)
LIKELIHOODS = {1: BernoulliSpec(), 3: LogisticMixtureSpec(2)}
LAYERS = dataclasses.replace(CPU, network=REFERENCE.network)
needs_compiler = pytest.mark.skipif(library.library() is None, reason="needs a C compiler")


def images(shape: ImageShape, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    levels = 1 if shape.channels == 1 else 255
    x = torch.randint(levels + 1, (4, shape.channels, shape.height, shape.width), generator=generator)
    return x.to(dtype) / levels


def model_of(config: NVAEConfig, ops, dtype: torch.dtype, channels: int = 1, name: str = "nvae") -> NVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, config, dataclasses.replace(GREY, channels=channels), LIKELIHOODS[channels], ops)
    assert isinstance(model, NVAE)
    return model.to(dtype).train()


def noise(group: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(group))


def step(model: NVAE) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step."""
    x = images(model.image, next(model.parameters()).dtype)
    loss = Objective(balancing="square").loss(terms(model(x, Draw(torch.tensor(1), noise=noise)), x), 0.1)
    penalty = model.penalty(0.5)
    loss = loss if penalty is None else loss + penalty
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def close(actual: Tensor, expected: Tensor, tolerance: float = FLOAT32) -> None:
    scale = max(1e-2, float(expected.abs().max()))
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_training_step_equals_the_reference(arch: str, channels: int) -> None:
    config = dataclasses.replace(CONFIG, arch=arch)
    fused = model_of(config, CPU, torch.float32, channels)
    exact = model_of(config, REFERENCE, torch.float64, channels)
    fused(images(fused.image, torch.float32), Draw(torch.tensor(0)))  # convolutions without norms start from data
    exact.load_state_dict(fused.state_dict())
    (loss, gradients), (expected, wanted) = step(fused), step(exact)
    close(loss, expected, VALUES)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        close(gradients[name], gradient)
    moved = dict(fused.named_buffers())
    for name, buffer in exact.named_buffers():
        close(moved[name], buffer, VALUES)


def plain_calls(monkeypatch: pytest.MonkeyPatch, model: NVAE) -> list[str]:
    """What a training step and sampling leave to single layers."""
    calls: list[str] = []
    for name in ("residual_cell", "run_packed", "convolution", "weight_norm", "spectral_norms"):
        plain = getattr(network, name)
        monkeypatch.setattr(network, name, lambda *a, _of=plain, _n=name, **k: calls.append(_n) or _of(*a, **k))
    step(model)
    with torch.no_grad():
        model.eval().sample(2, Draw(torch.tensor(0)))
    return calls


@pytest.mark.parametrize("ops", [CPU, REFERENCE], ids=["cpu", "reference"])
def test_the_step_that_sets_scales_from_data_has_gradients(ops) -> None:
    model = model_of(dataclasses.replace(CONFIG, arch="res_elu"), ops, torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("log_weight_norm")}
    loss, gradients = step(model)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert moved
    assert set(moved) <= gradients.keys()


@needs_compiler
def test_the_fused_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plain_calls(monkeypatch, model_of(CONFIG, CPU, torch.float32))
    grouped = model_of(dataclasses.replace(CONFIG, arch="mbconv_den"), CPU, torch.float32)
    assert {"residual_cell", "run_packed"} <= set(plain_calls(monkeypatch, grouped))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_cell_as_one_operation_equals_its_modules(arch: str, training: bool) -> None:
    config = dataclasses.replace(CONFIG, arch=arch)
    for resample, c_in, c_out in (("keep", 8, 8), ("down", 8, 16), ("up", 16, 8)):
        for ops in (ARCHITECTURES[arch].encoder, ARCHITECTURES[arch].postprocess):
            cell = ResidualCell(ops, c_in, c_out, resample, config, REFERENCE).double().train(training)
            x = torch.randn(3, c_in, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            cell(x)  # convolutions without norms start from data
            twin = copy.deepcopy(cell)
            assert torch.equal(cell(x), twin.module_by_module(x, twin.skip(x)))
            for one, other in zip(cell.buffers(), twin.buffers(), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("ops", [CPU, LAYERS], ids=["fused", "layers"])
@pytest.mark.parametrize("arch", ["res_mbconv", "mbconv_den"])
def test_recomputation_changes_neither_gradients_nor_statistics(arch: str, ops) -> None:
    config = dataclasses.replace(CONFIG, arch=arch)
    kept = model_of(config, ops, torch.float32)
    again = model_of(dataclasses.replace(config, recompute=True), ops, torch.float32)
    (loss, gradients), (other, wanted) = step(kept), step(again)
    assert torch.equal(loss, other)
    for name, gradient in wanted.items():
        assert torch.equal(gradients[name], gradient), name
    for one, two in zip(kept.buffers(), again.buffers(), strict=True):
        assert torch.equal(one, two)


def saved_bytes(model: NVAE) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass, parameters aside."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = images(model.image, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x, Draw(torch.tensor(1)))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for address, size in found.items() if address not in own)


@needs_compiler
def test_cells_keep_less_for_the_backward_pass() -> None:
    config = dataclasses.replace(CONFIG, arch="res_mbconv", weight_norm=False)
    kept = {
        name: saved_bytes(model_of(dataclasses.replace(config, recompute=name == "recomputed"), ops, torch.float32))
        for name, ops in (("layers", LAYERS), ("fused", CPU), ("recomputed", CPU))
    }
    assert kept["recomputed"] < kept["fused"] < 0.6 * kept["layers"]


@pytest.mark.parametrize("name", ["nvae", "residual-vae"])
def test_evaluation_equals_single_layers(name: str) -> None:
    fused, plain = (model_of(CONFIG, ops, torch.float32, name=name).eval() for ops in (CPU, LAYERS))
    assert isinstance(fused, ResidualVAE) == (name == "residual-vae")
    draw, x = Draw(torch.tensor(5)), images(GREY, torch.float32)
    with torch.no_grad():
        close(fused.sample(4, draw).mean(), plain.sample(4, draw).mean(), VALUES)
        close(importance_weighted(fused, x, draw, 3).iwae, importance_weighted(plain, x, draw, 3).iwae, VALUES)


@pytest.mark.parametrize("change", ["weights", "statistics", "training"])
def test_packed_cells_follow_the_model(change: str) -> None:
    model, draw = model_of(CONFIG, CPU, torch.float32).eval(), Draw(torch.tensor(5))
    with torch.no_grad():
        before = model.sample(2, draw).mean()
        if change == "weights":
            for parameter in model.parameters():
                parameter.mul_(1.1)
        elif change == "statistics":
            for name, buffer in model.named_buffers():
                if name.endswith("running_var"):
                    buffer.mul_(2)
    if change == "training":
        step(model.train())
        model.eval()
    with torch.no_grad():
        after = model.sample(2, draw).mean()
        twin = model_of(CONFIG, CPU, torch.float32).eval()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(after, twin.sample(2, draw).mean())
        assert not torch.equal(before, after)
        assert torch.equal(copy.deepcopy(model).sample(2, draw).mean(), after)


def test_packed_cells_notice_weights_that_a_pass_with_gradients_came_between() -> None:
    model, draw = model_of(CONFIG, CPU, torch.float32).eval(), Draw(torch.tensor(5))
    convs = [p for name, p in model.named_parameters() if name.endswith(".weight") and p.ndim == 4]
    for _ in range(3):
        with torch.no_grad():
            model.sample(2, draw)
        model(images(GREY, torch.float32), draw)
        with torch.no_grad():
            for weight in convs:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
            twin = model_of(CONFIG, CPU, torch.float32).eval()
            twin.load_state_dict(model.state_dict())
            assert torch.equal(model.sample(2, draw).mean(), twin.sample(2, draw).mean())


@needs_compiler
def test_one_value_a_channel_is_refused_in_training() -> None:
    config = dataclasses.replace(CONFIG, groups_fine_to_coarse=(1, 1), preprocess_blocks=1)
    model = build("nvae", config, ImageShape(1, 4, 4), BernoulliSpec(), CPU).train()
    with pytest.raises(ValueError, match=r"more than (1|one) value"):
        model(torch.zeros(1, 1, 4, 4), Draw(torch.tensor(0)))


@torch.no_grad()
def test_features_are_worked_out_once_for_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(CONFIG, CPU, torch.float32).eval(), []
    bottom_up = NVAE._bottom_up
    monkeypatch.setattr(NVAE, "_bottom_up", lambda self, x: calls.append(1) or bottom_up(self, x))
    importance_weighted(model, images(GREY, torch.float32), Draw(torch.tensor(0)), 5)
    assert len(calls) == 1
