"""Named setups: the seven published models, small ones for tests, a CPU and an 8 to 12 GB GPU, two to time."""

from __future__ import annotations

import dataclasses

from models.likelihoods import BernoulliSpec, LogisticMixtureSpec
from models.nvae.config import ModelSetup, NVAEConfig
from models.output import ImageShape

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

PRESETS: dict[str, ModelSetup] = {
    "nvae-mnist": ModelSetup(_MNIST, ImageShape(1, 28, 28), BernoulliSpec()),
    "nvae-cifar10": ModelSetup(_CIFAR10, ImageShape(3, 32, 32), LogisticMixtureSpec(10)),
    "nvae-celeba64": ModelSetup(_CELEBA64, ImageShape(3, 64, 64), LogisticMixtureSpec(10)),
    "nvae-imagenet32": ModelSetup(_IMAGENET32, ImageShape(3, 32, 32), LogisticMixtureSpec(10)),
    "nvae-celebahq256": ModelSetup(_CELEBAHQ256, ImageShape(3, 256, 256), LogisticMixtureSpec(10, bits=5), bits=5),
    "nvae-celebahq256-24ch": ModelSetup(
        _CELEBAHQ256_24CH, ImageShape(3, 256, 256), LogisticMixtureSpec(10, bits=5), bits=5
    ),
    "nvae-ffhq256": ModelSetup(_FFHQ256, ImageShape(3, 256, 256), LogisticMixtureSpec(10, bits=5), bits=5),
    "nvae-tiny": ModelSetup(_TINY, ImageShape(1, 28, 28), BernoulliSpec()),
    "nvae-small": ModelSetup(_SMALL, ImageShape(1, 28, 28), BernoulliSpec()),
    "nvae-medium": ModelSetup(_MEDIUM, ImageShape(3, 32, 32), LogisticMixtureSpec(10)),
    "nvae-mnist-small": ModelSetup(_MNIST_SMALL, ImageShape(1, 28, 28), BernoulliSpec()),
    "nvae-color-small": ModelSetup(_COLOR_SMALL, ImageShape(3, 32, 32), LogisticMixtureSpec(10)),
}
