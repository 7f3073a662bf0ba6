"""Configuration of VDVAE: blocks by resolution, widths, latents; and the checks they must pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from models.fields import MOST_HALVINGS, POSITIVE, WIDTH, Bounds, bounded, require_bounds
from models.vdvae.layers import DecoderBlock, EncoderBlock, decoder_layers, encoder_layers, widths

LatentScale = Literal["log", "softplus", "smooth log"]


@dataclass(frozen=True)
class VDVAEConfig:
    """Sizes of VDVAE (Child 2021); the defaults suit small grey images on a CPU.

    Args:
        encoder_blocks: blocks from the image to the coarsest resolution, in order: `RxN` N blocks at resolution R,
            `RdK` one block at R, then average pooling by K. The first resolution is the image's; smaller images are
            padded.
        decoder_blocks: blocks from coarse to fine, a latent group each: `RxN` N blocks at R, `RmS` one block at R that
            first adds the state of the coarser resolution S, its pixels repeated.
        width: feature channels.
        custom_widths: other feature channels at some resolutions, as `16:64,8:128`; they grow towards coarse ones.
        latent_channels: channels Z of every latent group.
        bottleneck: channels inside a block, as a share of those around it.
        bias_up_to: largest resolution whose state starts from a learned bias; finer ones start at zero.
        pixel_mean, pixel_std: of 8-bit pixels; the encoder sees (pixel - mean) / std.
        latent_scale: what the networks give in place of a Gaussian's scale s: log s, or of Efficient-VDVAE (Hazami et
            al. 2022) `softplus`, s = ln(1 + exp(smoothing r)) / smoothing, or `smooth log`, s = exp(smoothing r).
        smoothing: of the gradients of these two; ln 2 makes s(0) = 1 under `softplus`.
        recompute: keep only the input of each residual block for the backward pass and compute the rest again.
    """

    encoder_blocks: str = "32x1,32d2,16x2,16d2,8x2,8d2,4x2"
    decoder_blocks: str = "4x2,8m4,8x2,16m8,16x2,32m16"
    width: int = bounded(32, WIDTH)
    custom_widths: str = ""
    latent_channels: int = bounded(4, WIDTH)
    bottleneck: float = bounded(0.25, Bounds(above=0, most=16))
    bias_up_to: int = bounded(64, Bounds(0, 2**MOST_HALVINGS))
    pixel_mean: float = bounded(127.5, Bounds(0, 255))
    pixel_std: float = bounded(127.5, POSITIVE)
    latent_scale: LatentScale = "log"
    smoothing: float = bounded(0.6931471805599453, POSITIVE)
    recompute: bool = False

    def __post_init__(self) -> None:
        require_bounds(self)
        self._check_resolutions()
        self._check_widths()

    @cached_property
    def encoder(self) -> tuple[EncoderBlock, ...]:
        """Blocks of the encoder in order."""
        return encoder_layers(self.encoder_blocks)

    @cached_property
    def decoder(self) -> tuple[DecoderBlock, ...]:
        """Blocks of the decoder in order; block g draws latent group g."""
        return decoder_layers(self.decoder_blocks)

    @cached_property
    def _custom(self) -> dict[int, int]:
        return widths(self.custom_widths)

    @property
    def side(self) -> int:
        """Resolution of the (padded) image."""
        return self.encoder[0].resolution

    @property
    def seen(self) -> frozenset[int]:
        """Resolutions of which the decoder finds a map of the encoder."""
        return frozenset({self.side, *(block.out for block in self.encoder)})

    @property
    def biased(self) -> tuple[int, ...]:
        """Resolutions whose state starts from a learned bias, ascending."""
        return tuple(sorted({one.resolution for one in self.decoder if one.resolution <= self.bias_up_to}))

    def width_at(self, resolution: int) -> int:
        """Feature channels at a resolution."""
        return self._custom.get(resolution, self.width)

    def hidden(self, width: int) -> int:
        """Channels inside a block with `width` channels around it."""
        return int(width * self.bottleneck)

    def _check_resolutions(self) -> None:
        """Raise ValueError unless the decoder ends at the image and finds a map of the encoder for every block."""
        for block in self.decoder:
            if block.resolution not in self.seen:
                known = ", ".join(map(str, sorted(self.seen)))
                raise ValueError(
                    f"decoder_blocks: expected resolutions of the encoder ({known}), got {block.resolution}"
                )
        if self.decoder[-1].resolution != self.side:
            raise ValueError(
                f"decoder_blocks: expected to end at {self.side}, where encoder_blocks begins, got "
                f"{self.decoder[-1].resolution}"
            )

    def _check_widths(self) -> None:
        """Raise ValueError unless channels can be appended towards coarse resolutions and dropped towards fine ones."""
        if self.width_at(self.side) != self.width:
            raise ValueError(
                f"custom_widths: expected width ({self.width}) at the image, got {self.side}:{self.width_at(self.side)}"
            )
        coarser = [(block.resolution, block.out) for block in self.encoder]
        coarser += [(block.resolution, block.source) for block in self.decoder if block.source is not None]
        for fine, coarse in coarser:
            if self.width_at(fine) > self.width_at(coarse):
                raise ValueError(
                    f"custom_widths: expected at least the {self.width_at(fine)} channels of resolution {fine} at the "
                    f"coarser {coarse}, got {self.width_at(coarse)}"
                )
        for resolution in self.seen:
            if self.hidden(self.width_at(resolution)) < 1:
                raise ValueError(
                    f"bottleneck: expected at least one channel inside a block of width {self.width_at(resolution)}, "
                    f"got {self.bottleneck}"
                )
