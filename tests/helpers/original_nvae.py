"""Recorded numbers of the original NVAE (tests/data/nvae), the recipe that fills its weights, its checkpoints."""

from __future__ import annotations

import argparse
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from kernels.ops import Ops
from kernels.reference.backend import REFERENCE
from models.layers.convolutions import ActivatedConv2d
from models.likelihoods import nvae_rules
from models.nvae import NVAE
from models.nvae.model import ALIAS
from models.nvae.published import setup_from_arguments
from models.output import Draw, ModelOutput

DATA = Path(__file__).parents[1] / "data" / "nvae"
TOLERANCE = {"float64": 1e-10, "float32": 2e-4}  # rounding: sums of thousands of terms in either type
CASES = ("mnist_bernoulli", "color_iaf")
PENALTY = 1e-2
KL_WEIGHT = 0.5
OWN_PREFIX = "norms."


def load(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


def stream(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)


def filled(key: str, shape: torch.Size) -> np.ndarray:
    """The value of a state-dict entry by the recipe of the parity data."""
    last = key.rpartition(".")[2]
    random = stream(key)
    if last == "num_batches_tracked":
        return np.asarray(7)
    if last == "prior_ftr0":
        return random.rand(*shape)
    if last == "running_var":
        return 0.5 + random.rand(*shape)
    if last == "log_weight_norm":
        centre = -0.8 if key.startswith(("enc_sampler", "dec_sampler")) else -0.5 if key.startswith("nf_cells") else 0.0
        return centre + 0.25 * random.randn(*shape)
    if last in ("running_mean", "bias"):
        return 0.1 * random.randn(*shape)
    if len(shape) == 1:
        return 0.4 + 0.6 * random.randn(*shape)
    return random.randn(*shape) / math.sqrt(math.prod(shape[1:]))


def build(case: dict, dtype: torch.dtype, ops: Ops = REFERENCE) -> NVAE:
    arguments = case["config"] | {"weight_decay_norm": PENALTY}
    setup = setup_from_arguments(arguments)
    model = NVAE(setup.config, setup.image, nvae_rules(setup.likelihood), ops)
    state = {k: torch.as_tensor(filled(k, v.shape)).to(v.dtype) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model.to(dtype)


def images(name: str, case: dict) -> torch.Tensor:
    random = stream(f"x:{name}")
    if case["config"]["dataset"] == "mnist":
        return torch.from_numpy((random.rand(3, 1, 28, 28) < 0.35).astype(np.float32))
    x = torch.from_numpy((random.randint(0, 256, size=(3, 3, 32, 32)) / 255).astype(np.float32))
    return torch.floor(x * 255 / 8) / 31 if case["config"]["num_x_bits"] == 5 else x


def close(actual: object, expected: object, tolerance: float) -> None:
    """|actual - expected| <= tolerance * max(1, |expected|), everywhere."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    excess = np.abs(actual - expected) / np.maximum(1, np.abs(expected))
    assert excess.max() <= tolerance


def recipe_noise(group: int, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(stream(f"eps:{group}").randn(*shape).astype(np.float32))


def draw(eps: str, device: str = "cpu") -> Draw:
    return Draw(
        torch.tensor(0, device=device),
        log_ratio=True,
        noise=recipe_noise if eps == "recipe" else None,
        at_mean=eps == "zero",
    )


def set_recipe_directions(model: NVAE) -> None:
    """Start the power iteration where the parity data started it."""
    assert model.norms is not None
    for (rows, columns), convs in model.norms.convs_by_shape.items():
        start = torch.from_numpy(stream(f"sr_u:{rows}x{columns}").randn(len(convs), rows).astype(np.float32))
        setattr(model.norms, f"u_{rows}x{columns}", F.normalize(start.to(model.prior_ftr0), dim=1, eps=1e-3))


def spectral(model: NVAE) -> torch.Tensor:
    """Spectral term of the next call: 40 rounds of power iteration in the first, then 4."""
    assert model.norms is not None
    total = model.penalty(KL_WEIGHT)
    assert total is not None
    return total / PENALTY - model.norms.batch_norm()


def forward(model: NVAE, x: torch.Tensor, eps: str) -> tuple[torch.Tensor, ModelOutput]:
    """Parameters of the padded image, and the output that the model's forward pass builds from them."""
    encoding = model.encode(model.padded(x), draw(eps, str(x.device)))
    parameters = model.decode_parameters(encoding.state)
    cropped = F.pad(parameters, (-model.pad,) * 4)
    return parameters, ModelOutput(model.likelihood.build(cropped, model.ops), encoding.groups)


def original_state_dict(model: NVAE) -> dict[str, torch.Tensor]:
    """The model's state with the original's keys in its order, second names of plain weights included."""
    plain = {f"{name}.weight" for name, module in model.named_modules() if type(module) is ActivatedConv2d}
    state: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        if key.startswith(OWN_PREFIX):
            continue
        state[key] = value
        if key in plain:
            state[key.removesuffix(".weight") + ALIAS] = value
    return state


def write_original(path: Path, model: NVAE, arguments: dict[str, object], **state: torch.Tensor) -> Path:
    contents = {
        "epoch": 3,
        "global_step": 17,
        "state_dict": original_state_dict(model) | state,
        "args": argparse.Namespace(**arguments),
        "arch_instance": {"ar_nn": [""]},
        "scheduler": {"_last_lr": [0.01]},
        "grad_scalar": {},
    }
    torch.save(contents, path)
    return path
