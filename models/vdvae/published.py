"""From the settings of the published VDVAE code, and the shapes of its weights, to a configuration of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from torch import Tensor

from models.likelihoods import LogisticMixtureSpec
from models.output import ImageShape
from models.presets import ModelSetup
from models.vdvae.config import VDVAEConfig
from models.vdvae.presets import DATASETS, PRESETS

T = TypeVar("T", int, float, str)

DEFAULTS: dict[str, object] = {
    "zdim": 16,
    "bottleneck_multiple": 0.25,
    "custom_width_str": "",
    "no_bias_above": 64,
    "num_mixtures": 10,
    "image_channels": 3,
}
"""What the published code takes where a setting is not given."""


def setup_from_settings(settings: Mapping[str, object]) -> ModelSetup:
    """The setup that the published code's settings stand for, by its names; those of its training play no part.

    Raises:
        ValueError: a setting is missing, or stands for something that cannot be built.
    """
    given = DEFAULTS | dict(settings)
    dataset = _setting(given, "dataset", str)
    if dataset not in DATASETS:
        raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}, got {dataset!r}")
    pixels = DATASETS[dataset]
    config = VDVAEConfig(
        encoder_blocks=_setting(given, "enc_blocks", str),
        decoder_blocks=_setting(given, "dec_blocks", str),
        width=_setting(given, "width", int),
        custom_widths=_setting(given, "custom_width_str", str),
        latent_channels=_setting(given, "zdim", int),
        bottleneck=_setting(given, "bottleneck_multiple", float),
        bias_up_to=_setting(given, "no_bias_above", int),
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
    )
    side = _setting({"image_size": config.side} | given, "image_size", int)
    image = ImageShape(_setting(given, "image_channels", int), side, side)
    return ModelSetup("vdvae", config, image, LogisticMixtureSpec(_setting(given, "num_mixtures", int), pixels.bits))


def setup_from_shapes(state: Mapping[str, Tensor]) -> ModelSetup:
    """The published model whose blocks, widths, latents and likelihood the weights have.

    Raises:
        ValueError: there is none.
    """
    found = _outline(state)
    for preset in PRESETS.values():
        if preset.recipe is not None and _outline_of(preset) == found:
            return preset
    names = ", ".join(name for name, preset in PRESETS.items() if preset.recipe is not None)
    raise ValueError(
        f"weights of a VDVAE with {found[0]} blocks in its encoder, {found[1]} in its decoder and width {found[2]}, "
        f"which is none of {names}; say what it is with --hparams FILE.json (enc_blocks, dec_blocks, width, dataset, "
        "...)"
    )


def _outline(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of the encoder and of the decoder, width, channels of latents and of likelihood parameters."""
    blocks = [len({key.split(".")[2] for key in state if key.startswith(part)}) for part in BLOCKS]
    return (*blocks, *(state[key].shape[axis] if key in state else 0 for key, axis in SIZES))


def _outline_of(setup: ModelSetup) -> tuple[int, ...]:
    config = cast(VDVAEConfig, setup.config)
    parameters = setup.likelihood.parameter_channels(setup.image.channels)
    return len(config.encoder), len(config.decoder), config.width, config.latent_channels, parameters


BLOCKS = ("encoder.enc_blocks.", "decoder.dec_blocks.")
SIZES = (
    ("encoder.in_conv.weight", 0),
    ("decoder.dec_blocks.0.z_proj.weight", 1),
    ("decoder.out_net.out_conv.weight", 0),
)


def _setting(given: Mapping[str, object], name: str, kind: type[T]) -> T:
    if name not in given:
        raise ValueError(f"settings of a VDVAE: expected {name}, which is missing")
    value = given[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"settings of a VDVAE: expected {name} of type {kind.__name__}, got {value!r}")
    return value
