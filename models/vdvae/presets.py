"""Named setups: the five published models, and small ones for tests and a CPU."""

from __future__ import annotations

from typing import NamedTuple

from models.likelihoods import BernoulliSpec, LogisticMixtureSpec
from models.output import ImageShape
from models.presets import Preset, Recipe
from models.vdvae.config import VDVAEConfig

RECIPE = Recipe(
    training={
        "optimizer": "adamw",
        "betas": (0.9, 0.9),
        "learning_rate": 1.5e-4,
        "weight_decay": 0.01,
        "warmup": 0.0,
        "warmup_steps": 100,
        "final_rate": 1.0,
        "ema_warmup": False,
    },
    objective={"kl_constant": 0.0, "kl_warmup": 0.0, "balancing": "none"},
)
"""What the trainings of all published models share."""


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of a data set's 8-bit pixels, one for all colours, and the bits that are scored."""

    mean: float
    std: float
    bits: int = 8


DATASETS = {
    "cifar10": PixelStatistics(120.63838, 64.16736),
    "imagenet32": PixelStatistics(116.2373, 69.37404),
    "imagenet64": PixelStatistics(115.92961967, 69.37404),
    "ffhq_256": PixelStatistics(112.8666757481, 69.84780273, bits=5),
    "ffhq_1024": PixelStatistics(0.4387 * 255, 0.2743 * 255),
}
"""By the names that the published code gives them."""

_LOSS_UNIT_EPSILON = 1e-8
"""Adam's epsilon where the loss is counted per dimension, as the published code does."""


def _published(
    blocks: tuple[str, str],
    dataset: str,
    side: int,
    parameters: int,
    *,
    width: int = 512,
    custom_widths: str = "",
    mixtures: int = 10,
    norms: tuple[float, float],
    updates: tuple[float, int],
    **training: float,
) -> Preset:
    """A published model with the batch of one of its GPUs.

    `norms` are where gradients are clipped and where steps are skipped, of a loss in nats/dim; in a recipe they are of
    ours, in nats/image, as is Adam's epsilon. `updates` are the millions of steps, and the batch of all GPUs.
    """
    image, pixels = ImageShape(3, side, side), DATASETS[dataset]
    encoder, decoder = blocks
    config = VDVAEConfig(
        encoder,
        decoder,
        width,
        custom_widths,
        latent_channels=16,
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
    )
    clip, skip = norms
    recipe = RECIPE.with_training(
        images=round(updates[0] * 1e6) * updates[1],
        clip_norm=clip * image.dims,
        skip_threshold=skip * image.dims,
        epsilon=_LOSS_UNIT_EPSILON * image.dims,
        **training,
    )
    return Preset("vdvae", config, image, LogisticMixtureSpec(mixtures, pixels.bits), recipe, parameters)


_TINY = VDVAEConfig("32x1,32d2,16d2,8d2,4x1", "4x1,8m4,16m8,32m16", 8, latent_channels=2)
_COLOR_SMALL = VDVAEConfig(
    "32x3,32d2,16x3,16d2,8x2,8d2,4x2,4d4,1x2", "1x1,4m1,4x2,8m4,8x2,16m8,16x4,32m16,32x5", 64, latent_channels=16
)

PRESETS: dict[str, Preset] = {
    "vdvae-cifar10": _published(
        ("32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3", "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"),
        "cifar10",
        32,
        39_145_700,
        width=384,
        norms=(200.0, 400.0),
        updates=(1.0, 32),
        batch_size=16,
        learning_rate=2e-4,
        ema=0.9999,
    ),
    "vdvae-imagenet32": _published(
        ("32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6", "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40"),
        "imagenet32",
        32,
        119_280_868,
        norms=(200.0, 300.0),
        updates=(1.7, 256),
        batch_size=8,
        ema=0.999,
    ),
    "vdvae-imagenet64": _published(
        (
            "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
            "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
        ),
        "imagenet64",
        64,
        125_005_860,
        norms=(220.0, 380.0),
        updates=(1.6, 128),
        batch_size=4,
        ema=0.999,
    ),
    "vdvae-ffhq256": _published(
        (
            "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
            "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
        ),
        "ffhq_256",
        256,
        114_874_852,
        norms=(130.0, 180.0),
        updates=(1.7, 32),
        batch_size=1,
        ema=0.999,
    ),
    "vdvae-ffhq1024": _published(
        (
            "1024x1,1024d2,512x3,512d2,256x5,256d2,128x7,128d2,64x10,64d2,32x14,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
            "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x20,64m32,64x14,128m64,128x7,256m128,256x2,512m256,1024m512",
        ),
        "ffhq_1024",
        1024,
        109_366_904,
        width=16,
        custom_widths="512:32,256:64,128:512,64:512,32:512,16:512,8:512,4:512,1:512",
        mixtures=2,
        norms=(360.0, 500.0),
        updates=(1.7, 32),
        batch_size=1,
        learning_rate=7e-5,
        ema=0.999,
    ),
    "vdvae-tiny": Preset("vdvae", _TINY, ImageShape(1, 28, 28), BernoulliSpec(), None, 13_151),
    "vdvae-small": Preset("vdvae", VDVAEConfig(), ImageShape(1, 28, 28), BernoulliSpec(), None, 110_025),
    "vdvae-color-small": Preset("vdvae", _COLOR_SMALL, ImageShape(3, 32, 32), LogisticMixtureSpec(10), None, 586_820),
}
