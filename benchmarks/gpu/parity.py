"""Step `parity`: NVAE on the device against recorded numbers of the published code (tests/data/nvae), without TF32."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from benchmarks.base.children import ROOT
from benchmarks.gpu.findings import Fields, Findings
from benchmarks.machine.process import tensor_float32
from kernels.backends import best_for
from models.elbo import Objective, terms

HELPERS = ROOT / "tests" / "helpers"
HELPER = "original_nvae"
"""Where the tests keep the recipe that fills the weights, and how the recorded numbers are read."""
GRADIENT = {"float64": 1e-10, "float32": 1e-2}
"""Of a gradient's norm: sums of thousands of terms in either type, through 50 layers."""
VANISHING = 1e-5
"""Of the largest norm: smaller ones are rounding of zero."""
QUICK = (0, 1)
"""Recorded passes of a dry run."""


def run(findings: Findings) -> None:
    """Forward passes in all recorded modes, gradients, and samples."""
    findings.show((("dtype", "type"), ("error", "largest error"), ("where", "of"), ("tolerance", "allowed")))
    if not (HELPERS / f"{HELPER}.py").exists():
        findings.note("the recorded numbers lie in tests/, which is not here")
        return
    sys.path.insert(0, str(HELPERS))
    helper = importlib.import_module(HELPER)
    findings.facts["operations"] = best_for(findings.device).name
    with tensor_float32(False):
        for name in helper.CASES:
            for index in QUICK if findings.dry else range(8):
                findings.case(f"{name}, pass {index}", functools.partial(_pass, helper, findings.device, name, index))
        for name in helper.CASES:
            findings.case(f"{name}, sample", functools.partial(_sample, helper, findings.device, name))
            for dtype in ("float32",) if findings.dry else ("float32", "float64"):
                call = functools.partial(_gradients, helper, findings.device, name, dtype)
                findings.case(f"{name}, gradients, {dtype}", call, needs=3)


def excess(actual: Any, expected: Any) -> float:
    """Largest |actual - expected| / max(1, |expected|)."""
    mine = torch.as_tensor(actual).detach().cpu().double()
    other = torch.as_tensor(expected, dtype=torch.float64)
    if mine.shape != other.shape:
        raise ValueError(f"expected the shape {tuple(other.shape)}, got {tuple(mine.shape)}")
    return float(((mine - other).abs() / other.abs().clamp_min(1)).nan_to_num(nan=torch.inf).max())


def _judged(errors: dict[str, float], dtype: str, tolerance: float) -> Fields:
    """The worst of the errors beside what is allowed."""
    where = max(errors, key=lambda key: errors[key])
    return {
        "passed": errors[where] <= tolerance,
        "dtype": dtype,
        "error": errors[where],
        "where": where,
        "tolerance": tolerance,
        "errors": errors,
    }


@torch.no_grad()
def _pass(helper: ModuleType, device: str, name: str, index: int) -> Fields:
    """Likelihood's parameters, bounds, rates, norms and running statistics of one recorded pass."""
    case = helper.load(name)
    record = case["runs"][index]
    dtype = getattr(torch, record["dtype"])
    model = helper.build(case, dtype, best_for(device)).to(device).train(record["bn"] == "train")
    x = helper.images(name, case).to(device, dtype)
    logits, output = helper.forward(model, x, record["eps"])
    found, flat = terms(output, x), logits.flatten()
    ratios = torch.stack([group.log_ratio for group in output.groups])
    probes = flat[[(7919 * k + 13) % flat.numel() for k in range(32)]]
    errors = {
        "mean of the parameters": excess(flat.mean(), record["logits_mean"]),
        "spread of the parameters": excess(flat.std(correction=0), record["logits_std"]),
        "parameters": excess(probes, record["probe_values"]),
        "log-likelihood": excess(-found.distortion, record["recon_log_prob_per_image"]),
        "rates": excess(found.rates.T, record["kl_per_group_per_image"]),
        "ELBO": excess(found.elbo, record["elbo_per_image"]),
        "log weight": excess(-found.distortion - ratios.sum(0), record["log_iw_per_image"]),
        "largest scales of the norms": excess(model.norms.batch_norm(), record["bn_loss"]),
    }
    helper.set_recipe_directions(model)
    errors["spectral norms, first call"] = excess(helper.spectral(model), record["spectral_first_call"])
    errors["spectral norms, second call"] = excess(helper.spectral(model), record["spectral_second_call"])
    if record["bn"] == "train":
        errors |= _statistics_errors(model.state_dict(), record["running_stats_after_one_forward"])
    return _judged(errors, record["dtype"], helper.TOLERANCE[record["dtype"]])


def _statistics_errors(state: dict[str, torch.Tensor], expected: dict[str, Any]) -> dict[str, float]:
    """Largest errors of the running statistics' means."""
    stems = [(key.removesuffix("running_mean"), numbers) for key, numbers in expected.items()]
    return {
        f"running {kind}": max(
            excess(state[f"{stem}running_{kind}"].mean(), numbers[f"mean_of_running_{kind}"]) for stem, numbers in stems
        )
        for kind in ("mean", "var")
    }


@torch.no_grad()
def _sample(helper: ModuleType, device: str, name: str) -> Fields:
    """Parameters of images at temperature 0.7 with given noise."""
    case = helper.load(name)
    expected = case["sample_t0.7_eps_recipe_eval_float32"]
    model = helper.build(case, torch.float32, best_for(device)).to(device).eval()
    state = model.sample_state(3, helper.draw("recipe", device), temperature=0.7)
    flat = model.decode_parameters(state).flatten()
    errors = {
        "mean of the parameters": excess(flat.mean(), expected["logits_mean"]),
        "spread of the parameters": excess(flat.std(correction=0), expected["logits_std"]),
        "parameters": excess(flat[case["probe_indices"]], expected["probe_values"]),
    }
    return _judged(errors, "float32", helper.TOLERANCE["float32"])


def _gradients(helper: ModuleType, device: str, name: str, dtype: str) -> Fields:
    """Loss of the published recipe, and the norm of every gradient."""
    case, expected = helper.load(name), helper.load(f"{name}_grads")
    model = helper.build(case, getattr(torch, dtype), best_for(device)).to(device).train()
    x = helper.images(name, case).to(device, getattr(torch, dtype))
    _, output = helper.forward(model, x, "recipe")
    helper.set_recipe_directions(model)
    with torch.no_grad():
        helper.spectral(model)
    penalty = model.penalty(helper.KL_WEIGHT)
    loss = Objective(kl_warmup=1.0, balancing="square").loss(terms(output, x), helper.KL_WEIGHT) + penalty
    loss.backward()
    norms = {key: numbers[0] for key, numbers in expected["grad_l2_and_sum"].items()}
    least, named = VANISHING * max(norms.values()), dict(model.named_parameters())
    errors = {"loss": excess(loss, expected["loss"])}
    for key, norm in norms.items():
        gradient = named[key].grad
        if gradient is None:
            raise ValueError(f"{key} has no gradient")
        if norm > least:
            errors[key] = abs(float(gradient.double().norm()) - norm) / norm
    found = _judged(errors, dtype, GRADIENT[dtype])
    return {key: value for key, value in found.items() if key != "errors"}
