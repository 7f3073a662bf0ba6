"""The one list of models: name -> config, class, presets, and a line that says what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.ops import Ops
from models.likelihoods import ConfiguredLikelihood, nvae_rules, vdvae_rules
from models.nvae import NVAE, NVAEConfig, ResidualVAE, ResidualVAEConfig
from models.nvae.presets import PRESETS as NVAE_PRESETS
from models.nvae.presets import RECIPE as NVAE_RECIPE
from models.output import ImageShape, LikelihoodSpec, Model
from models.presets import Preset, Recipe
from models.vanilla.autoencoder import AE, AEConfig
from models.vanilla.vae import VAE, VAEConfig
from models.vdvae import VDVAE, VDVAEConfig
from models.vdvae.presets import PRESETS as VDVAE_PRESETS
from models.vdvae.presets import RECIPE as VDVAE_RECIPE


@dataclass(frozen=True)
class ModelEntry:
    """A model: `config` is a frozen dataclass with defaults, `model(config, image, likelihood, ops)` builds it.

    `presets` are its setups by name, `recipe` is what the trainings of the published ones share. `published_rules` is a
    likelihood as the code that published the model computes it; NVAE's, which first came with a checkpoint to compare
    with, where no other code did.
    """

    config: type[Any]
    model: Callable[[Any, ImageShape, LikelihoodSpec, Ops], Model]
    description: str
    presets: Mapping[str, Preset] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    published_rules: Callable[[ConfiguredLikelihood], ConfiguredLikelihood] = nvae_rules


MODELS: dict[str, ModelEntry] = {
    "ae": ModelEntry(AEConfig, AE, "plain convolutional autoencoder, squared error, no prior"),
    "vae": ModelEntry(VAEConfig, VAE, "vanilla VAE (Kingma & Welling 2014), one vector of latents"),
    "residual-vae": ModelEntry(
        ResidualVAEConfig, ResidualVAE, "NVAE's cells and towers with latents in the first group only"
    ),
    "nvae": ModelEntry(
        NVAEConfig, NVAE, "hierarchical NVAE (Vahdat & Kautz 2021)", NVAE_PRESETS, NVAE_RECIPE, nvae_rules
    ),
    "vdvae": ModelEntry(VDVAEConfig, VDVAE, "very deep VDVAE (Child 2021)", VDVAE_PRESETS, VDVAE_RECIPE, vdvae_rules),
}


def presets() -> dict[str, Preset]:
    """The presets of all models by name, in the order of `MODELS`."""
    return {name: preset for entry in MODELS.values() for name, preset in entry.presets.items()}


def build(name: str, config: Any, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> Model:
    """The model `name` with `config`, initialised from torch's current random state.

    Raises:
        ValueError: unknown name, or a config that does not fit the image or the likelihood.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; one of {', '.join(MODELS)}")
    return MODELS[name].model(config, image, likelihood, ops)
