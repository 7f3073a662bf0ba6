"""Recorded numbers of the published VDVAE (tests/data/vdvae), the recipe that fills its weights, its checkpoints."""

from __future__ import annotations

import csv
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from kernels.ops import Ops
from kernels.reference.backend import REFERENCE
from models.likelihoods import vdvae_rules
from models.output import Draw
from models.vdvae import VDVAE
from models.vdvae.published import setup_from_settings

DATA = Path(__file__).parents[1] / "data" / "vdvae"
CASE = json.loads((DATA / "case_a.json").read_text())["A"]
RECORDED = CASE["expected_float64"]


def published() -> list[dict[str, str]]:
    """The published models, a row each."""
    with (DATA / "presets.csv").open() as file:
        return list(csv.DictReader(file))


def filled(key: str, shape: torch.Size) -> torch.Tensor:
    """The value of a state-dict entry by the recipe of the parity data."""
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith(".weight"):
        last = key.endswith((".c4.weight", ".z_proj.weight"))
        gain = 0.4 if last else 0.5 if "out_net" in key else 1.2
        value = gain * noise / math.sqrt(math.prod(shape[1:]))
    elif key == "decoder.gain":
        value = 1 + 0.1 * noise
    else:
        value = (0.5 if key.startswith("decoder.bias_xs.") else 0.1) * noise
    return torch.from_numpy(value).float()


def build(dtype: torch.dtype, ops: Ops = REFERENCE, **settings: object) -> VDVAE:
    """The model of case A, or of other settings, with the recipe's weights and the published rules."""
    setup = setup_from_settings(CASE["config"] | settings)
    model = VDVAE(setup.config, setup.image, vdvae_rules(setup.likelihood), ops)
    model.load_state_dict({key: filled(key, value.shape) for key, value in model.state_dict().items()})
    return model.to(dtype)


def pixels() -> np.ndarray:
    """The batch (4, 32, 32, 3) uint8."""
    b, y, x, c = np.meshgrid(np.arange(2), np.arange(32), np.arange(32), np.arange(3), indexing="ij")
    ramps = (37 * b + 5 * x * (c + 1) + 3 * y * (b + 1) + x * y) % 256
    edges = np.broadcast_to(np.where(np.arange(32) < 16, 0, 255)[None, :, None], (32, 32, 3))
    noise = np.random.RandomState(7).randint(0, 256, size=(32, 32, 3))
    return np.concatenate((ramps, edges[None], noise[None])).astype(np.uint8)


def images(dtype: torch.dtype) -> torch.Tensor:
    """The batch (4, 3, 32, 32) in [0, 1]."""
    return torch.from_numpy(pixels()).permute(0, 3, 1, 2).to(dtype) / 255


def recipe_noise(group: int, shape: torch.Size) -> torch.Tensor:
    """Noise of a latent group."""
    return torch.from_numpy(np.random.RandomState(1000 + group).standard_normal(tuple(shape)).astype(np.float32))


def draw(noise: str, given: tuple[torch.Tensor, ...] = ()) -> Draw:
    """Draws with the recipe's noise, or at the means."""
    keyed = recipe_noise if noise == "rs1000" else None
    return Draw(torch.tensor(0), noise=keyed, at_mean=noise == "zero", latents=given)


def probed(found: torch.Tensor, recorded: dict) -> torch.Tensor:
    """The entries of a tensor that were recorded of it."""
    assert list(found.shape) == recorded["shape"]
    return found.detach().flatten()[recorded["idx"]].double()
