"""From the stored arguments of the published NVAE code to a configuration of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.likelihoods import BernoulliSpec, ConfiguredLikelihood, LogisticMixtureSpec, SoftClampedNormalSpec
from models.nvae.config import NVAEConfig
from models.output import ImageShape
from models.presets import ModelSetup

BINARY_DATASETS = ("mnist", "omniglot")
DATASET_SIDES = {"cifar10": 32, "ffhq": 256}
DEFAULTS: dict[str, object] = {
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_mixture_dec": 10,
    "num_x_bits": 8,
    "weight_decay_norm": 0.0,
    "weight_decay_norm_anneal": False,
}
"""What early checkpoints do not store."""

_COUNTS = {
    "latent_channels": "num_latent_per_group",
    "channels_encoder": "num_channels_enc",
    "channels_decoder": "num_channels_dec",
    "preprocess_blocks": "num_preprocess_blocks",
    "preprocess_cells": "num_preprocess_cells",
    "postprocess_cells": "num_postprocess_cells",
    "cells_per_group_encoder": "num_cell_per_cond_enc",
    "cells_per_group_decoder": "num_cell_per_cond_dec",
    "flows": "num_nf",
}


def setup_from_arguments(arguments: Mapping[str, object]) -> ModelSetup:
    """The setup that the published code's command-line arguments stand for.

    Raises:
        ValueError: an argument is missing, or stands for something that cannot be built.
    """
    given = DEFAULTS | dict(arguments)
    if _count(given, "num_preprocess_blocks") != _count(given, "num_postprocess_blocks"):
        raise ValueError("num_postprocess_blocks: expected num_preprocess_blocks, so that the output is an image")
    dataset = _text(given, "dataset")
    counts: dict[str, Any] = {field: _count(given, name) for field, name in _COUNTS.items()}
    config = NVAEConfig(
        **counts,
        groups_fine_to_coarse=group_schedule(
            _count(given, "num_latent_scales"),
            _count(given, "num_groups_per_scale"),
            adaptive=bool(given["ada_groups"]),
            least=_count(given, "min_groups_per_scale"),
        ),
        channel_cap=None,
        arch=_text(given, "arch_instance"),
        squeeze_excitation=bool(_required(given, "use_se")),
        residual_posterior=bool(_required(given, "res_dist")),
        residual_gain=0.1,
        weight_norm=True,
        pad=2 if dataset in BINARY_DATASETS else 0,
        norm_penalty=_number(given, "weight_decay_norm"),
        norm_penalty_start=_number(given, "weight_decay_norm_init") if given["weight_decay_norm_anneal"] else None,
    )
    likelihood = _likelihood(dataset, _count(given, "num_mixture_dec"), _count(given, "num_x_bits"))
    return ModelSetup("nvae", config, image_shape(dataset), likelihood)


def group_schedule(resolutions: int, groups: int, *, adaptive: bool, least: int) -> tuple[int, ...]:
    """Groups per resolution, fine to coarse; adaptive: halved at each coarser one, never below `least`."""
    return tuple(max(groups >> level, least) if adaptive else groups for level in range(resolutions))


def image_shape(dataset: str) -> ImageShape:
    """Shape of the (unpadded) images of one of the published code's data sets.

    Raises:
        ValueError: unknown data set.
    """
    if dataset in BINARY_DATASETS:
        return ImageShape(1, 28, 28)
    suffix = dataset.rpartition("_")[2]
    side = DATASET_SIDES.get(dataset, int(suffix) if suffix.isdecimal() else 0)
    if not side:
        raise ValueError(f"dataset: expected one of the original NVAE's (such as cifar10, celeba_64), got {dataset!r}")
    return ImageShape(3, side, side)


def _likelihood(dataset: str, mixtures: int, bits: int) -> ConfiguredLikelihood:
    if dataset in BINARY_DATASETS:
        return BernoulliSpec()
    return SoftClampedNormalSpec(bits) if mixtures == 1 else LogisticMixtureSpec(mixtures, bits)


def _required(arguments: Mapping[str, object], name: str) -> object:
    if name not in arguments:
        raise ValueError(f"stored arguments: expected {name}, which is missing; is this an NVAE checkpoint?")
    return arguments[name]


def _count(arguments: Mapping[str, object], name: str) -> int:
    value = _required(arguments, name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"stored arguments: expected an integer {name}, got {value!r}")
    return value


def _number(arguments: Mapping[str, object], name: str) -> float:
    value = _required(arguments, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"stored arguments: expected a number {name}, got {value!r}")
    return float(value)


def _text(arguments: Mapping[str, object], name: str) -> str:
    value = _required(arguments, name)
    if not isinstance(value, str):
        raise ValueError(f"stored arguments: expected a text {name}, got {value!r}")
    return value
