"""NVAE against numbers of the original implementation (tests/data/nvae): values, gradients, first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from original_nvae import (
    CASES,
    DATA,
    KL_WEIGHT,
    TOLERANCE,
    build,
    close,
    draw,
    forward,
    images,
    load,
    set_recipe_directions,
    spectral,
    stream,
)
from torch.nn import functional as F

from kernels.cpu.backend import CPU
from kernels.ops import Ops
from kernels.reference.backend import REFERENCE
from models.elbo import Objective, terms
from models.nvae import NVAE, NVAEConfig
from models.nvae.flows import autoregressive_mask
from models.nvae.published import group_schedule
from models.output import ModelOutput

ZERO_GRADIENT = 1e-9  # gradients that vanish in exact arithmetic are rounding noise of 1e-15 to 1e-13


RUNS = [(name, index) for name in CASES for index in range(8)]


@torch.no_grad()
@pytest.mark.parametrize("ops", [REFERENCE, CPU], ids=["reference", "cpu"])
@pytest.mark.parametrize(("name", "index"), RUNS)
def test_run_agrees_with_the_original(name: str, index: int, ops: Ops) -> None:
    case = load(name)
    run = case["runs"][index]
    dtype, tolerance = getattr(torch, run["dtype"]), TOLERANCE[run["dtype"]]
    model = build(case, dtype, ops).train(run["bn"] == "train")
    x = images(name, case).to(dtype)
    logits, output = forward(model, x, run["eps"])
    check_logits(logits, run, tolerance)
    check_terms(output, x, run, tolerance)
    if not model.config.flows:
        check_rates_per_channel(output, run, tolerance)
    check_norms(model, run, tolerance)
    if run["bn"] == "train":
        check_running_statistics(model, run, tolerance)


def check_logits(logits: torch.Tensor, run: dict, tolerance: float) -> None:
    assert list(logits.shape) == run["logits_shape"]
    flat = logits.flatten()
    close(flat.mean(), run["logits_mean"], tolerance)
    close(flat.std(correction=0), run["logits_std"], tolerance)
    close(flat.abs().max(), run["logits_abs_max"], tolerance)
    close(flat[[(7919 * k + 13) % flat.numel() for k in range(32)]], run["probe_values"], tolerance)


def check_terms(output: ModelOutput, x: torch.Tensor, run: dict, tolerance: float) -> None:
    one = terms(output, x)
    close(-one.distortion, run["recon_log_prob_per_image"], tolerance)
    close(one.rates.T, run["kl_per_group_per_image"], tolerance)
    close(one.elbo, run["elbo_per_image"], tolerance)
    ratios = torch.stack([group.log_ratio for group in output.groups])
    close(-one.distortion - ratios.sum(0), run["log_iw_per_image"], tolerance)
    log_p = sum(group.prior.log_prob(group.z).flatten(1).sum(1) for group in output.groups)
    close(log_p, run["log_p_per_image"], tolerance)


def check_rates_per_channel(output: ModelOutput, run: dict, tolerance: float) -> None:
    for group, expected in zip(output.groups, run["kl_diag_per_group_channel"], strict=True):
        close(group.posterior.kl(group.prior).sum((2, 3)).mean(0), expected, tolerance)


def check_norms(model: NVAE, run: dict, tolerance: float) -> None:
    assert model.norms is not None
    close(model.norms.batch_norm(), run["bn_loss"], tolerance)
    set_recipe_directions(model)
    close(spectral(model), run["spectral_first_call"], tolerance)
    close(spectral(model), run["spectral_second_call"], tolerance)


def check_running_statistics(model: NVAE, run: dict, tolerance: float) -> None:
    state = model.state_dict()
    for key, expected in run["running_stats_after_one_forward"].items():
        stem = key.removesuffix("running_mean")
        close(state[stem + "running_mean"].mean(), expected["mean_of_running_mean"], tolerance)
        close(state[stem + "running_var"].mean(), expected["mean_of_running_var"], tolerance)
        assert state[stem + "num_batches_tracked"] == expected["num_batches_tracked"]


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_first_step_agree_with_the_original(name: str) -> None:
    case, expected = load(name), load(f"{name}_grads")
    model = build(case, torch.float64).train()
    x = images(name, case).double()
    _, output = forward(model, x, "recipe")
    set_recipe_directions(model)
    spectral(model)
    penalty = model.penalty(KL_WEIGHT)
    assert penalty is not None
    loss = Objective(kl_warmup=1.0, balancing="square").loss(terms(output, x), KL_WEIGHT) + penalty
    loss.backward()
    close(loss.detach(), expected["loss"], TOLERANCE["float64"])
    named = dict(model.named_parameters())
    assert set(named) == set(expected["grad_l2_and_sum"])
    for key, (norm, total) in expected["grad_l2_and_sum"].items():
        gradient = named[key].grad
        assert gradient is not None
        scale = max(norm, ZERO_GRADIENT / TOLERANCE["float64"])
        assert abs(gradient.norm() - norm) <= TOLERANCE["float64"] * scale, key
        assert abs(gradient.sum() - total) <= TOLERANCE["float64"] * scale, key
    check_first_step(model, expected)


def check_first_step(model: NVAE, expected: dict) -> None:
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    settings = {key: expected["adamax"][key] for key in ("lr", "weight_decay", "eps", "betas")}
    torch.optim.Adamax(model.parameters(), **settings).step()
    for key, parameter in model.named_parameters():
        close((parameter.detach() - before[key]).norm(), expected["adamax_step1_update_l2"][key], TOLERANCE["float64"])


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_ancestral_sample_agrees_with_the_original(name: str) -> None:
    case = load(name)
    expected = case["sample_t0.7_eps_recipe_eval_float32"]
    model = build(case, torch.float32).eval()
    logits = model.decode_parameters(model.sample_state(3, draw("recipe"), temperature=0.7)).flatten()
    close(logits.mean(), expected["logits_mean"], TOLERANCE["float32"])
    close(logits.std(correction=0), expected["logits_std"], TOLERANCE["float32"])
    close(logits[case["probe_indices"]], expected["probe_values"], TOLERANCE["float32"])


@pytest.mark.parametrize("name", CASES)
def test_input_recipe_gives_the_recorded_images(name: str) -> None:
    case, recorded = load(name), np.load(DATA / f"{name}.npz")["x_uint8_first2"]
    if case["config"]["dataset"] == "mnist":
        np.testing.assert_array_equal(F.pad(images(name, case), (2,) * 4)[:2].numpy(), recorded)
    else:
        np.testing.assert_array_equal(stream(f"x:{name}").randint(0, 256, size=(3, 3, 32, 32))[:2], recorded)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("key", "dtype", "train", "eps"),
    [
        ("logits_eval_eps0_image0_stride4_f32", "float32", False, "zero"),
        ("logits_train_epsrecipe_image0_stride4_f64", "float64", True, "recipe"),
    ],
)
def test_decoder_output_agrees_pixel_by_pixel(name: str, key: str, dtype: str, train: bool, eps: str) -> None:
    case = load(name)
    model = build(case, getattr(torch, dtype)).train(train)
    logits, _ = forward(model, images(name, case).to(getattr(torch, dtype)), eps)
    close(logits[0, :, ::4, ::4], np.load(DATA / f"{name}.npz")[key], TOLERANCE[dtype])


def test_group_schedules_agree_with_the_original() -> None:
    for case in load("units")["group_schedule_fine_to_coarse"]:
        schedule = group_schedule(case["num_scales"], case["num_groups"], adaptive=case["ada"], least=case["minimum"])
        assert list(schedule) == case["result"]


def test_masks_agree_with_the_original() -> None:
    for case in load("units")["ar_masks"]:
        mask = autoregressive_mask(
            case["kernel"],
            case["c_in"],
            case["c_out"],
            strict=case["zero_diag"],
            depthwise=case["groups"] > 1,
            mirror=case["mirror"],
        )
        assert mask.sum() == case["sum"]
        if "mask" in case:
            np.testing.assert_array_equal(mask.numpy(), case["mask"])


def test_penalty_weight_is_annealed_as_in_the_original() -> None:
    units = load("units")["wdn_anneal"]
    config = NVAEConfig(norm_penalty=units["final"], norm_penalty_start=units["init"])
    for kl_weight, expected in units["points"]:
        assert config.norm_penalty_at(kl_weight) == pytest.approx(expected, rel=1e-12)


def test_adamax_is_the_original_optimiser() -> None:
    units = load("units")["adamax"]
    parameter = torch.nn.Parameter(torch.from_numpy(stream("unit:adamax_p").randn(5)))
    optimiser = torch.optim.Adamax([parameter], **{k: units[k] for k in ("lr", "weight_decay", "eps", "betas")})
    for step, expected in enumerate(units["params_after_each_step"]):
        parameter.grad = torch.from_numpy(stream(f"unit:adamax_g{step}").randn(5))
        optimiser.step()
        close(parameter.detach(), expected, 1e-6)
