"""VDVAE against numbers of the published code (tests/data/vdvae): values, samples, optimizer steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from original_vdvae import CASE, DATA, RECORDED, build, draw, images, probed
from torch import Tensor

from benchmarks.suites.config import TrialConfig, build_suite
from benchmarks.training.guard import StepGuard
from benchmarks.training.state import TrainingState, build_optimizer
from benchmarks.training.step import train_step
from kernels.cpu.backend import CPU
from kernels.ops import Ops
from kernels.reference.backend import REFERENCE
from models.elbo import bits_per_dim, terms
from models.output import ModelOutput
from models.vdvae import VDVAE

BACKENDS = pytest.mark.parametrize("ops", [REFERENCE, CPU], ids=["reference", "cpu"])
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
EXACT = 1e-9  # relative, float64: both sides round
FEATURES, NATS, BITS = 1e-4, 1e-3, 2e-5  # absolute, float32: what the recorded float32 run shows, rounded up
STORED = 1e-6  # arrays kept as float32
DIMS = 3072


def close(found: Tensor, recorded: object, dtype: torch.dtype, float32: float) -> None:
    """Relative in float64, `float32` absolute there."""
    expected = torch.as_tensor(recorded, dtype=torch.float64)
    assert found.shape == expected.shape
    rtol, atol = (EXACT, EXACT) if dtype == torch.float64 else (0, float32)
    torch.testing.assert_close(found.detach().double(), expected, rtol=rtol, atol=atol)


def test_weights_follow_the_recipe_and_keys_those_of_the_checkpoints() -> None:
    state = build(torch.float32).state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == CASE["state_dict"]
    assert sum(value.numel() for value in state.values()) == CASE["n_params"]
    for key, first in CASE["fill_checks"].items():
        assert state[key].flatten()[:3].tolist() == first


@torch.no_grad()
@TYPES
@BACKENDS
@pytest.mark.parametrize("noise", ["zero", "rs1000"])
def test_images_have_the_recorded_features_rates_and_likelihood(noise: str, ops: Ops, dtype: torch.dtype) -> None:
    recorded, model, x = RECORDED[noise], build(dtype, ops), images(dtype)
    features = model.features(x)
    encoding = model.infer(features, draw(noise))
    parameters = model.decode_parameters(encoding.state)
    found = terms(ModelOutput(model.likelihood.build(parameters, ops), encoding.groups), x)
    for side, one in RECORDED["enc_acts"].items():
        close(probed(features[int(side)], one), one["val"], dtype, FEATURES)
    close(probed(encoding.state, recorded["px_z"]), recorded["px_z"]["val"], dtype, FEATURES)
    nhwc = parameters.permute(0, 2, 3, 1)
    close(probed(nhwc, recorded["dmol_params_nhwc"]), recorded["dmol_params_nhwc"]["val"], dtype, FEATURES)
    close(found.rates.T, recorded["kl_nats_layer_image"], dtype, NATS)
    close(found.distortion / DIMS, recorded["distortion_nats_per_dim"], dtype, BITS)
    close(found.rate / DIMS, recorded["rate_nats_per_dim"], dtype, BITS)
    close(bits_per_dim(found.elbo, DIMS), recorded["elbo_bits_per_dim_image"], dtype, BITS)
    close(bits_per_dim(found.elbo, DIMS).mean(), recorded["elbo_bits_per_dim_batch"], dtype, BITS)


@torch.no_grad()
def test_whole_maps_and_rows_are_the_recorded_ones() -> None:
    model, x = build(torch.float64), images(torch.float64)
    state = model.encode(x, draw("zero")).state
    parameters = model.decode_parameters(state).permute(0, 2, 3, 1)  # (B, H, W, P)
    with np.load(DATA / "case_a.npz") as arrays:
        for found, name in (
            (state[0], "A_px_img0"),
            (parameters[0, 0], "A_dmol_img0_row0"),
            (parameters[3, 31], "A_dmol_img3_row31"),
        ):
            np.testing.assert_allclose(found.numpy(), arrays[name], rtol=STORED, atol=STORED)


@torch.no_grad()
@TYPES
@BACKENDS
@pytest.mark.parametrize(
    ("name", "noise"),
    [("uncond_t1_eps0", "zero"), ("uncond_t07_rs1000", "rs1000"), ("uncond_perlayer_rs1000", "rs1000")],
)
def test_samples_have_the_recorded_features_at_every_temperature(
    name: str, noise: str, ops: Ops, dtype: torch.dtype
) -> None:
    recorded = RECORDED[name]
    state = build(dtype, ops).sample_state(recorded["n"], draw(noise), recorded["t"] or 1.0)
    close(probed(state, recorded["px_z"]), recorded["px_z"]["val"], dtype, FEATURES)


@torch.no_grad()
@TYPES
@BACKENDS
@pytest.mark.parametrize(("name", "kept"), [("partial_latents_3_then_prior_mean", 3), ("all_latents", 7)])
def test_given_latents_fix_the_first_groups(name: str, kept: int, ops: Ops, dtype: torch.dtype) -> None:
    model, recorded = build(dtype, ops), RECORDED[name]["px_z"]
    encoding = model.encode(images(dtype), draw("zero"))
    given = tuple(group.z for group in encoding.groups[:kept])
    state = model.sample_state(4, draw("zero", given))
    close(probed(state, recorded), recorded["val"], dtype, FEATURES)
    rounding = 1e-13 if dtype == torch.float64 else 2e-5  # absolute, of values up to 30: sums in another order
    same = torch.allclose(state, encoding.state, rtol=0, atol=rounding)
    assert same == (kept == 7)


def trial_of_four_steps() -> TrialConfig:
    """The recipe of the recorded steps; its loss is per dimension, ours per image."""
    training = {
        "optimizer": "adamw",
        "betas": [0.9, 0.9],
        "learning_rate": 2e-4,
        "weight_decay": 0.01,
        "epsilon": 1e-8 * DIMS,
        "clip_norm": 200.0 * DIMS,
        "skip_threshold": 400.0 * DIMS,
        "warmup_steps": 2,
        "final_rate": 1.0,
        "ema": 0.9,
        "ema_warmup": False,
    }
    row = {"likelihood": {"name": "logistic-mixture"}, "training": training, "objective": {"kl_warmup": 0.0}}
    return build_suite("parity", {"data": "", "models": {"vdvae": row}}).trials[0]


class Watched(StepGuard):
    """Keeps the norms of the gradients."""

    def __init__(self, model: VDVAE, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer)
        self.norms: list[float] = []

    def measure(self, loss: Tensor) -> Tensor:
        found = super().measure(loss)
        self.norms.append(float(found[0]))
        return found


@TYPES
@BACKENDS
def test_four_steps_and_their_average_are_the_recorded_ones(ops: Ops, dtype: torch.dtype) -> None:
    recorded, trial = RECORDED["train4"], trial_of_four_steps()
    model, x = build(dtype, ops), images(dtype)
    optimizer = build_optimizer(trial.training, model, torch.device("cpu"))
    state = TrainingState(model, optimizer, torch.zeros(4), 4)
    guard = Watched(model, optimizer)
    losses, rates = [], []
    for _ in range(4):
        losses.append(train_step(state, guard, trial, x, draw("zero")) / DIMS)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([one["lr"] for one in recorded["steps"]], rel=1e-12)
    close(torch.tensor(losses, dtype=torch.float64), [one["elbo_nats"] for one in recorded["steps"]], dtype, BITS)
    norms = torch.tensor(guard.norms, dtype=torch.float64) / DIMS
    close(norms, [one["grad_norm_preclip"] for one in recorded["steps"]], dtype, FEATURES)
    weights = dict(model.named_parameters())
    for kind, found in (("params_after", weights), ("ema09_after", state.average)):
        for key, sums in recorded[kind].items():
            one = found[key].detach().double()
            close(torch.stack((one.sum(), one.abs().sum())), [sums["sum"], sums["abs_sum"]], dtype, NATS)
