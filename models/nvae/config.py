"""Configuration of NVAE: sizes, cells, regularisers; and the checks they must pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.cell_form import CellActivation
from models.fields import MOST_HALVINGS, PAD, POSITIVE, SHARE, WEIGHT, WIDTH, Bounds, bounded, require_bounds


@dataclass(frozen=True)
class ConvOp:
    """[batch norm,] activation, 3x3 weight-normalised convolution: one operation of a residual cell."""

    activation: CellActivation = "swish"
    batch_norm: bool = True
    dilation: int = 1


@dataclass(frozen=True)
class InvertedResidualOp:
    """1x1 expansion, KxK grouped convolution, 1x1 projection (MobileNetV2), each with batch norm.

    `groups` None is a depthwise convolution.
    """

    expansion: int
    kernel: int
    groups: int | None = None


CellOps = tuple[ConvOp | InvertedResidualOp, ...]


@dataclass(frozen=True)
class Architecture:
    """Operations of the four kinds of residual cells; down- and up-sampling cells use the same lists."""

    encoder: CellOps
    decoder: CellOps
    preprocess: CellOps
    postprocess: CellOps


ELU = ConvOp("elu", batch_norm=False)
BN_ELU = ConvOp("elu")
BN_SWISH = ConvOp()
BN_SWISH_5 = ConvOp(dilation=2)
E6K5 = InvertedResidualOp(6, 5)
E6K11 = InvertedResidualOp(6, 11)
E3K5 = InvertedResidualOp(3, 5)
E3K5G8 = InvertedResidualOp(3, 5, groups=8)

CELLS = Bounds(1, 1000)
"""Cells, or groups, in a row."""

ARCHITECTURES: dict[str, Architecture] = {
    # operations of cells in the encoder, decoder, preprocessing and postprocessing
    "res_elu": Architecture((ELU, ELU), (ELU, ELU), (ELU, ELU), (ELU, ELU)),
    "res_bnelu": Architecture((BN_ELU, BN_ELU), (BN_ELU, BN_ELU), (BN_ELU, BN_ELU), (BN_ELU, BN_ELU)),
    "res_bnswish": Architecture((BN_SWISH, BN_SWISH), (BN_SWISH, BN_SWISH), (BN_SWISH, BN_SWISH), (BN_SWISH, BN_SWISH)),
    "res_mbconv": Architecture((BN_SWISH, BN_SWISH), (E6K5,), (BN_SWISH, BN_SWISH), (E3K5,)),
    "res53_mbconv": Architecture((BN_SWISH_5, BN_SWISH), (E6K5,), (BN_SWISH_5, BN_SWISH), (E3K5,)),
    "res35_mbconv": Architecture((BN_SWISH, BN_SWISH_5), (E6K5,), (BN_SWISH, BN_SWISH_5), (E3K5,)),
    "res55_mbconv": Architecture((BN_SWISH_5, BN_SWISH_5), (E6K5,), (BN_SWISH_5, BN_SWISH_5), (E3K5,)),
    "mbconv_sep": Architecture((E6K5,), (E6K5,), (E3K5,), (E3K5,)),
    "mbconv_sep11": Architecture((E6K11,), (E6K11,), (E3K5,), (E3K5,)),
    "mbconv_res": Architecture((E6K5,), (BN_SWISH, BN_SWISH), (E3K5,), (BN_SWISH, BN_SWISH)),
    "mbconv_den": Architecture((E6K5,), (E6K5,), (E3K5G8,), (E3K5G8,)),
}


@dataclass(frozen=True)
class NVAEConfig:
    """Sizes and cells of NVAE (Vahdat & Kautz 2021); the defaults suit small grey images on a CPU.

    Args:
        groups_fine_to_coarse: latent groups at each resolution, from the one nearest the image to the coarsest.
        latent_channels: channels Z of every latent group.
        channels_encoder, channels_decoder: feature channels at image resolution; doubled at every halving of it.
        channel_cap: largest number of feature channels; None doubles without end, as the paper does.
        preprocess_blocks: halvings before the first latent resolution (and doublings after the last).
        preprocess_cells, postprocess_cells: residual cells per such block.
        cells_per_group_encoder, cells_per_group_decoder: residual cells before each group's combiner.
        arch: a row of `ARCHITECTURES`.
        squeeze_excitation: gate the channels of every residual branch.
        residual_posterior: posterior parameters are offsets from the prior's (section 3.2 of the paper).
        flows: pairs of inverse autoregressive flow cells per group.
        residual_gain: factor on every residual branch; the paper's 0.1 learns slowly in short runs.
        weight_norm: weight-normalised convolutions, as the paper; False gives plain ones, cheaper in short runs.
        pad: zero pixels added on each side of the image; None adds the fewest with which its sides divide.
        batch_norm_momentum: share of a new batch in the running statistics.
        recompute: keep only the input of each residual cell for the backward pass and compute the rest again (gradient
            checkpointing, Chen et al. 2016): less memory, one more forward pass of the cells.
        norm_penalty: weight of the sum of spectral norms and of largest batch-norm scales in the loss.
        norm_penalty_start: its value at KL weight 0, annealed geometrically to `norm_penalty`; None is constant.
    """

    groups_fine_to_coarse: tuple[int, ...] = bounded((2, 1, 1), CELLS)
    latent_channels: int = bounded(8, WIDTH)
    channels_encoder: int = bounded(8, WIDTH)
    channels_decoder: int = bounded(8, WIDTH)
    channel_cap: int | None = bounded(32, WIDTH)
    preprocess_blocks: int = bounded(2, Bounds(0, MOST_HALVINGS))
    preprocess_cells: int = bounded(1, CELLS)
    postprocess_cells: int = bounded(1, CELLS)
    cells_per_group_encoder: int = bounded(1, CELLS)
    cells_per_group_decoder: int = bounded(1, CELLS)
    arch: str = "res_bnswish"
    squeeze_excitation: bool = True
    residual_posterior: bool = True
    flows: int = bounded(0, Bounds(0, CELLS.most))
    residual_gain: float = bounded(1.0, WEIGHT)
    weight_norm: bool = False
    pad: int | None = bounded(None, PAD)
    batch_norm_momentum: float = bounded(0.05, SHARE)
    recompute: bool = False
    norm_penalty: float = bounded(0.0, WEIGHT)
    norm_penalty_start: float | None = bounded(None, POSITIVE)

    def __post_init__(self) -> None:
        require_bounds(self)
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch: expected one of {', '.join(ARCHITECTURES)}, got {self.arch!r}")
        if not 1 <= len(self.groups_fine_to_coarse) <= MOST_HALVINGS:
            found = len(self.groups_fine_to_coarse)
            raise ValueError(f"groups_fine_to_coarse: expected 1 to {MOST_HALVINGS} counts, got {found}")
        if self.channel_cap is not None and self.channel_cap < max(self.channels_encoder, self.channels_decoder):
            raise ValueError(f"channel_cap: expected at least the channels at the image, got {self.channel_cap}")
        if self.single_group and self.channels_encoder != self.channels_decoder:
            raise ValueError("a single latent group needs channels_encoder = channels_decoder")

    @property
    def resolutions(self) -> int:
        """Number of latent resolutions."""
        return len(self.groups_fine_to_coarse)

    @property
    def total_groups(self) -> int:
        """Number of latent groups."""
        return sum(self.groups_fine_to_coarse)

    @property
    def single_group(self) -> bool:
        """One resolution with one group: the model has no towers."""
        return self.groups_fine_to_coarse == (1,)

    @property
    def halvings(self) -> int:
        """Halvings between the image and the coarsest latents."""
        return self.preprocess_blocks + self.resolutions - 1

    def channels_at(self, base: int, halvings: int) -> int:
        """Feature channels after `halvings` halvings, from `base` at the image."""
        channels = base * 2**halvings
        return channels if self.channel_cap is None else min(channels, self.channel_cap)

    def norm_penalty_at(self, kl_weight: float | Tensor) -> float | Tensor:
        """Weight of the norm penalty at a KL warm-up weight in [0, 1]: start^(1 - k) end^k."""
        if self.norm_penalty_start is None or not self.norm_penalty:
            return self.norm_penalty
        return self.norm_penalty_start ** (1 - kl_weight) * self.norm_penalty**kl_weight


@dataclass(frozen=True)
class ResidualVAEConfig(NVAEConfig):
    """NVAE's cells and towers with latents in the first (coarsest) group only: layers without hierarchy."""

    latent_channels: int = bounded(32, WIDTH)
