"""Named setups: the seven published models, small ones for tests, a CPU and an 8 to 12 GB GPU, two to time."""

from __future__ import annotations

import dataclasses

from models.likelihoods import BernoulliSpec, ConfiguredLikelihood, LogisticMixtureSpec
from models.nvae.config import NVAEConfig
from models.output import ImageShape
from models.presets import Preset, Recipe

RECIPE = Recipe(
    training={
        "optimizer": "adamax",
        "learning_rate": 1e-2,
        "final_rate": 1e-2,
        "weight_decay": 3e-4,
        "epsilon": 1e-3,
    },
    objective={"kl_constant": 1e-4, "kl_warmup": 0.3, "kl_floor": 1e-4, "balancing": "square"},
)
"""What the trainings of all published models share."""

_PUBLISHED = NVAEConfig(
    latent_channels=20,
    channel_cap=None,
    preprocess_blocks=1,
    preprocess_cells=2,
    postprocess_cells=2,
    cells_per_group_encoder=2,
    cells_per_group_decoder=2,
    arch="res_mbconv",
    residual_gain=0.1,
    weight_norm=True,
    flows=1,
    norm_penalty=0.01,
    pad=0,
)
"""What the published models share, but for what each of them replaces."""

_MNIST = dataclasses.replace(
    _PUBLISHED,
    groups_fine_to_coarse=(10, 5),
    channels_encoder=32,
    channels_decoder=32,
    preprocess_blocks=2,
    preprocess_cells=3,
    postprocess_cells=3,
    flows=0,
    pad=2,
)
_CIFAR10 = dataclasses.replace(_PUBLISHED, groups_fine_to_coarse=(30,), channels_encoder=128, channels_decoder=128)
_CELEBA64 = dataclasses.replace(
    _PUBLISHED, groups_fine_to_coarse=(20, 10, 5), channels_encoder=64, channels_decoder=64, norm_penalty=0.1
)
_IMAGENET32 = dataclasses.replace(
    _PUBLISHED, groups_fine_to_coarse=(28,), channels_encoder=192, channels_decoder=192, norm_penalty_start=1.0
)
_CELEBAHQ256 = dataclasses.replace(
    _PUBLISHED,
    groups_fine_to_coarse=(16, 8, 4, 4, 4),
    channels_encoder=30,
    channels_decoder=30,
    flows=2,
    norm_penalty_start=1.0,
)
_CELEBAHQ256_24CH = dataclasses.replace(_CELEBAHQ256, channels_encoder=24, channels_decoder=24)
_FFHQ256 = dataclasses.replace(_CELEBAHQ256, norm_penalty=0.1)
_TINY = NVAEConfig(
    groups_fine_to_coarse=(1, 1), latent_channels=2, channels_encoder=4, channels_decoder=4, channel_cap=8, pad=2
)
_SMALL = NVAEConfig(pad=2)
_MEDIUM = dataclasses.replace(
    _PUBLISHED, groups_fine_to_coarse=(8, 4), channels_encoder=64, channels_decoder=64, flows=0
)
_MNIST_SMALL = dataclasses.replace(
    _MNIST, channels_encoder=16, channels_decoder=16, cells_per_group_encoder=1, cells_per_group_decoder=1
)
_COLOR_SMALL = dataclasses.replace(
    _MNIST_SMALL,
    groups_fine_to_coarse=(4, 2),
    latent_channels=8,
    preprocess_blocks=1,
    preprocess_cells=2,
    postprocess_cells=2,
    pad=0,
)

_GREY = ImageShape(1, 28, 28)
_COLOR32, _COLOR64, _COLOR256 = (ImageShape(3, side, side) for side in (32, 64, 256))
_BINARY, _LEVELS, _LEVELS_OF_5_BITS = BernoulliSpec(), LogisticMixtureSpec(10), LogisticMixtureSpec(10, bits=5)


def _published(
    config: NVAEConfig,
    image: ImageShape,
    likelihood: ConfiguredLikelihood,
    parameters: int,
    *,
    epochs: float,
    warmup_epochs: int,
    batch_size: int,
    **training: float,
) -> Preset:
    """A published model, trained for so long, with the batch of one of its GPUs."""
    length = {"epochs": epochs, "batch_size": batch_size, "warmup": warmup_epochs / epochs}
    return Preset("nvae", config, image, likelihood, RECIPE.with_training(**length, **training), parameters)


def _small(config: NVAEConfig, image: ImageShape, likelihood: ConfiguredLikelihood, parameters: int) -> Preset:
    """A model whose training is left to the suite."""
    return Preset("nvae", config, image, likelihood, None, parameters)


PRESETS: dict[str, Preset] = {
    "nvae-mnist": _published(_MNIST, _GREY, _BINARY, 33_363_134, epochs=400.0, warmup_epochs=5, batch_size=200),
    "nvae-cifar10": _published(_CIFAR10, _COLOR32, _LEVELS, 130_852_480, epochs=400.0, warmup_epochs=5, batch_size=32),
    "nvae-celeba64": _published(_CELEBA64, _COLOR64, _LEVELS, 153_281_364, epochs=90.0, warmup_epochs=5, batch_size=16),
    "nvae-imagenet32": _published(
        _IMAGENET32, _COLOR32, _LEVELS, 268_509_444, epochs=45.0, warmup_epochs=1, batch_size=24
    ),
    "nvae-celebahq256": _published(
        _CELEBAHQ256, _COLOR256, _LEVELS_OF_5_BITS, 330_798_664, epochs=300.0, warmup_epochs=5, batch_size=4
    ),
    "nvae-celebahq256-24ch": _published(
        _CELEBAHQ256_24CH, _COLOR256, _LEVELS_OF_5_BITS, 214_250_352, epochs=300.0, warmup_epochs=5, batch_size=6
    ),
    "nvae-ffhq256": _published(
        _FFHQ256,
        _COLOR256,
        _LEVELS_OF_5_BITS,
        330_798_664,
        epochs=200.0,
        warmup_epochs=5,
        batch_size=4,
        learning_rate=8e-3,
        final_rate=1 / 80,
    ),
    "nvae-tiny": _small(_TINY, _GREY, _BINARY, 11_905),
    "nvae-small": _small(_SMALL, _GREY, _BINARY, 270_413),
    "nvae-medium": _small(_MEDIUM, _COLOR32, _LEVELS, 26_632_708),
    "nvae-mnist-small": _small(_MNIST_SMALL, _GREY, _BINARY, 5_116_902),
    "nvae-color-small": _small(_COLOR_SMALL, _COLOR32, _LEVELS, 587_052),
}
