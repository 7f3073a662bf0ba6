"""The two towers of NVAE as flat lists of cells, coarse and fine ends where the data flow needs them."""

from __future__ import annotations

from torch import nn

from kernels.ops import Ops
from models.layers.convolutions import conv2d
from models.nvae.cells import DecoderCombiner, EncoderCombiner, ResidualCell
from models.nvae.config import ARCHITECTURES, NVAEConfig


def preprocess_tower(config: NVAEConfig, backend: Ops) -> nn.ModuleList:
    """Cells from the stem to the first latent resolution; each block ends with a down-sampling cell."""
    ops = ARCHITECTURES[config.arch].preprocess
    cells: list[nn.Module] = []
    for block in range(config.preprocess_blocks):
        wide = config.channels_at(config.channels_encoder, block)
        wider = config.channels_at(config.channels_encoder, block + 1)
        cells += [ResidualCell(ops, wide, wide, "keep", config, backend) for _ in range(config.preprocess_cells - 1)]
        cells.append(ResidualCell(ops, wide, wider, "down", config, backend))
    return nn.ModuleList(cells)


def encoder_tower(config: NVAEConfig, combine: bool, backend: Ops) -> nn.ModuleList:
    """Bottom-up cells, fine to coarse; with `combine` each group but the coarsest ends with its combiner."""
    ops = ARCHITECTURES[config.arch].encoder
    layers: list[nn.Module] = []
    for level, groups in enumerate(config.groups_fine_to_coarse):
        halvings = config.preprocess_blocks + level
        wide = config.channels_at(config.channels_encoder, halvings)
        state = config.channels_at(config.channels_decoder, halvings)
        last_level = level == config.resolutions - 1
        for group in range(groups):
            layers += [
                ResidualCell(ops, wide, wide, "keep", config, backend) for _ in range(config.cells_per_group_encoder)
            ]
            if combine and not (last_level and group == groups - 1):
                layers.append(EncoderCombiner(wide, state, config, backend))
        if not last_level:
            wider = config.channels_at(config.channels_encoder, halvings + 1)
            layers.append(ResidualCell(ops, wide, wider, "down", config, backend))
    return nn.ModuleList(layers)


def decoder_tower(config: NVAEConfig, combine: bool, backend: Ops) -> nn.ModuleList:
    """Top-down cells, coarse to fine; with `combine` each group ends with its combiner, else only the first."""
    ops = ARCHITECTURES[config.arch].decoder
    layers: list[nn.Module] = []
    for level in reversed(range(config.resolutions)):
        halvings = config.preprocess_blocks + level
        wide = config.channels_at(config.channels_decoder, halvings)
        for group in range(config.groups_fine_to_coarse[level]):
            first = level == config.resolutions - 1 and group == 0
            if not first:
                layers += [
                    ResidualCell(ops, wide, wide, "keep", config, backend)
                    for _ in range(config.cells_per_group_decoder)
                ]
            if first or combine:
                layers.append(DecoderCombiner(wide, config.latent_channels, config, backend))
        if level:
            narrow = config.channels_at(config.channels_decoder, halvings - 1)
            layers.append(ResidualCell(ops, wide, narrow, "up", config, backend))
    return nn.ModuleList(layers)


def postprocess_tower(config: NVAEConfig, backend: Ops) -> nn.ModuleList:
    """Cells from the finest latent resolution to the image; each block starts with an up-sampling cell."""
    ops = ARCHITECTURES[config.arch].postprocess
    cells: list[nn.Module] = []
    for block in reversed(range(config.preprocess_blocks)):
        wide = config.channels_at(config.channels_decoder, block + 1)
        narrow = config.channels_at(config.channels_decoder, block)
        cells.append(ResidualCell(ops, wide, narrow, "up", config, backend))
        cells += [
            ResidualCell(ops, narrow, narrow, "keep", config, backend) for _ in range(config.postprocess_cells - 1)
        ]
    return nn.ModuleList(cells)


def posterior_samplers(config: NVAEConfig, groups: int, backend: Ops) -> nn.ModuleList:
    """3x3 convolutions to mean and log scale, for the first `groups` groups in generation order."""
    return nn.ModuleList(
        conv2d(
            config.channels_at(config.channels_encoder, halvings),
            2 * config.latent_channels,
            3,
            normalised=config.weight_norm,
            network=backend.network,
        )
        for halvings in halvings_per_group(config)[:groups]
    )


def prior_samplers(config: NVAEConfig, groups: int, backend: Ops) -> nn.ModuleList:
    """ELU and 1x1 convolution (index 1) to mean and log scale, for the groups after the first."""
    return nn.ModuleList(
        nn.Sequential(
            nn.Identity(),
            conv2d(
                config.channels_at(config.channels_decoder, halvings),
                2 * config.latent_channels,
                1,
                normalised=config.weight_norm,
                activation="elu",
                network=backend.network,
            ),
        )
        for halvings in halvings_per_group(config)[1:groups]
    )


def halvings_per_group(config: NVAEConfig) -> tuple[int, ...]:
    """Halvings between the image and each latent group, in generation order (coarse to fine)."""
    levels = reversed(list(enumerate(config.groups_fine_to_coarse)))
    return tuple(config.preprocess_blocks + level for level, groups in levels for _ in range(groups))
