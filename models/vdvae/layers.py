"""The layer strings of VDVAE: blocks of encoder and decoder in the order of execution, and widths by resolution."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLOCKS = re.compile(r"(?P<resolution>[1-9]\d*)(?:(?P<kind>[xdm])(?P<number>[1-9]\d*))?")
_WIDTH = re.compile(r"([1-9]\d*):([1-9]\d*)")
MOST = 10_000
"""Largest number in a token: strings come from files of others as well, and stand for lists of blocks."""
_TOKENS = {
    "encoder_blocks": "R, RxN (N blocks at resolution R) or RdK (a block at R, then average pooling by K)",
    "decoder_blocks": "R, RxN (N blocks at resolution R) or RmS (a block at R that first adds the state of S)",
}


@dataclass(frozen=True)
class EncoderBlock:
    """A block at `resolution`, behind which maps are pooled by `pool` (1: not)."""

    resolution: int
    pool: int = 1

    @property
    def out(self) -> int:
        """Resolution of what it gives."""
        return self.resolution // self.pool


@dataclass(frozen=True)
class DecoderBlock:
    """A block at `resolution`, which first adds the state of resolution `source` (None: no other's)."""

    resolution: int
    source: int | None = None


def encoder_layers(text: str) -> tuple[EncoderBlock, ...]:
    """The blocks that `32x11,32d2,16` stands for.

    Raises:
        ValueError: a wrong token, a resolution that does not divide, or one that does not follow from those before.
    """
    blocks: list[EncoderBlock] = []
    for token, resolution, kind, number in _tokens("encoder_blocks", text, "xd"):
        if blocks and resolution != blocks[-1].out:
            raise ValueError(f"encoder_blocks: expected resolution {blocks[-1].out} at '{token}', as the blocks before")
        if kind == "d" and (number == 1 or resolution % number):
            raise ValueError(f"encoder_blocks: expected a divisor of {resolution} larger than 1, got '{token}'")
        blocks += [EncoderBlock(resolution, number)] if kind == "d" else [EncoderBlock(resolution)] * number
    return tuple(blocks)


def decoder_layers(text: str) -> tuple[DecoderBlock, ...]:
    """The blocks that `1x1,4m1,4x2` stands for.

    Raises:
        ValueError: a wrong token, a source that does not divide the resolution or has no state yet, or resolutions that
            fall.
    """
    blocks: list[DecoderBlock] = []
    for token, resolution, kind, number in _tokens("decoder_blocks", text, "xm"):
        if blocks and resolution < blocks[-1].resolution:
            raise ValueError(f"decoder_blocks: expected resolutions that rise, got '{token}' behind larger ones")
        if kind == "m":
            if resolution % number or number >= resolution or all(block.resolution != number for block in blocks):
                raise ValueError(f"decoder_blocks: expected a smaller resolution before it that divides, got '{token}'")
            blocks.append(DecoderBlock(resolution, number))
        else:
            blocks += [DecoderBlock(resolution)] * number
    return tuple(blocks)


def widths(text: str) -> dict[int, int]:
    """Channels by resolution, of `512:32,256:64`.

    Raises:
        ValueError: a wrong token, or a resolution named twice.
    """
    found: dict[int, int] = {}
    for token in filter(None, text.split(",")):
        match = _WIDTH.fullmatch(token.strip())
        if match is None or int(match[1]) in found:
            raise ValueError(f"custom_widths: expected R:W (W channels at resolution R), each R once, got '{token}'")
        found[int(match[1])] = int(match[2])
    return found


def _tokens(field: str, text: str, kinds: str) -> list[tuple[str, int, str, int]]:
    """Token, resolution, kind of block (x, d, m) and its number, of each token of a layer string."""
    found: list[tuple[str, int, str, int]] = []
    for token in text.split(","):
        match = _BLOCKS.fullmatch(token.strip())
        if match is None or (match["kind"] or "x") not in kinds:
            raise ValueError(f"{field}: expected {_TOKENS[field]} between commas, got '{token.strip()}' in '{text}'")
        if max(int(match["resolution"]), int(match["number"] or 1)) > MOST:
            raise ValueError(f"{field}: expected numbers of at most {MOST:,}, got '{token.strip():.40}'")
        found.append((token.strip(), int(match["resolution"]), match["kind"] or "x", int(match["number"] or 1)))
    return found
