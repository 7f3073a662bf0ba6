"""The one list of models: name -> config, class and a line that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels.ops import Ops
from models.nvae import NVAE, NVAEConfig, ResidualVAE, ResidualVAEConfig
from models.output import ImageShape, LikelihoodSpec, Model
from models.vanilla.autoencoder import AE, AEConfig
from models.vanilla.vae import VAE, VAEConfig


@dataclass(frozen=True)
class ModelEntry:
    """A model: `config` is a frozen dataclass with defaults, `model(config, image, likelihood, ops)` builds it."""

    config: type[Any]
    model: Callable[[Any, ImageShape, LikelihoodSpec, Ops], Model]
    description: str


MODELS: dict[str, ModelEntry] = {
    "ae": ModelEntry(AEConfig, AE, "plain convolutional autoencoder, squared error, no prior"),
    "vae": ModelEntry(VAEConfig, VAE, "vanilla VAE (Kingma & Welling 2014), one vector of latents"),
    "residual-vae": ModelEntry(
        ResidualVAEConfig, ResidualVAE, "NVAE's cells and towers with latents in the first group only"
    ),
    "nvae": ModelEntry(NVAEConfig, NVAE, "hierarchical NVAE (Vahdat & Kautz 2021)"),
}


def build(name: str, config: Any, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> Model:
    """The model `name` with `config`, initialised from torch's current random state.

    Raises:
        ValueError: unknown name, or a config that does not fit the image or the likelihood.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; one of {', '.join(MODELS)}")
    return MODELS[name].model(config, image, likelihood, ops)
