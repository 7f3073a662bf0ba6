"""One image file of any common kind as 8-bit pixels, with a word on all that was changed on the way.

Grey of 12 or 16 bits is scaled by the range of its format, floating point by 0-1; transparent pixels are laid on a
background; photographs are turned as their EXIF orientation says; of several frames the first is taken. Colour
profiles are not applied. What has no such rule is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from benchmarks.base.errors import UserError
from benchmarks.base.files import begins_as, mistaken_for, special

PLUGINS = (TiffImagePlugin, WebPImagePlugin)
"""Pillow knows these formats once their modules are imported; the others it imports by itself."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is read, whatever a file is called: pixels, never programs or scenes as EPS and WMF are."""
SUFFIXES = set(
    ".apng .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pfm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""How names of files end that are read as images."""
ARCHIVE_JUNK = "__MACOSX"
HIDDEN = "hidden"
BACKGROUNDS = {"white": 255, "black": 0}
RESIZE_RULE = "shorter side to {size} (antialiased bicubic), centre crop to {size}x{size}"
PLAIN_MODES = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "P": "RGB",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBX": "RGB",
    "RGBA": "RGBA",
    "RGBa": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
"""Pillow's modes of up to 8 bits a channel that have one meaning, and what they become."""
WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}
DEEP_GREY = {"I;16", "I;16B", "I;16L", "I;16N"}
FORMATS_OF_16_BITS = {"PNG", "PPM"}
"""Formats whose grey in Pillow's 32-bit mode has the range 0-65535."""
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED = 0, 1

ADVICE = "remove or replace it"
TURNED = "turned by EXIF orientation"
FIRST_FRAME = "of several frames, the first taken"
DEEP_SCALED = "of 12 or 16 bits of grey scaled to 8 by the range of the format"
DEEP_CUT = "of 16 bits a channel cut to 8"
FLOAT_SCALED = "of floating point scaled from 0-1"
ON_BACKGROUND = "with transparent pixels laid on {background}"
FROM_CMYK = "converted from CMYK without a colour profile"


@dataclass(frozen=True)
class Rule:
    """What is asked for beside the files: square images of this size, by `RESIZE_RULE`, and what lies behind them."""

    size: int | None = None
    background: str = "white"


@dataclass(frozen=True)
class Decoded:
    """The pixels of a file, C being 1 (grey) or 3; what was changed; the largest value of what was scaled, over all."""

    pixels: UInt8[np.ndarray, "H W C"]
    changes: tuple[str, ...] = ()
    brightest: float = 0.0


def decode(path: Path, background: str = "white") -> Decoded:
    """The image of a file; `background` is a key of `BACKGROUNDS`.

    Raises:
        UserError: not an image, truncated, or of a kind whose pixels have no single meaning in 8 bits.
    """
    with opened(path) as image:
        return _decoded(image, background)


def decode_bytes(raw: bytes, name: str, background: str = "white") -> Decoded:
    """As `decode`, for the content of a file that `name` stands for in messages."""
    with _explained(name, lambda: begins_as(raw)), _unloaded(io.BytesIO(raw)) as image:
        return _decoded(image, background)


@contextmanager
def opened(path: Path, advice: str = ADVICE) -> Iterator[Image.Image]:
    """The image of a regular file in one of `FORMATS`, of no more pixels than Pillow's limit; not decoded yet.

    Raises:
        UserError: another file; or one that the body of the `with` finds to be damaged. It ends with `advice`.
    """
    with _explained(str(path), lambda: mistaken_for(path), advice):
        _require_regular(path)
        with path.open("rb") as file, _unloaded(file) as image:
            yield image


@contextmanager
def _unloaded(file: io.BufferedIOBase) -> Iterator[Image.Image]:
    """The image of an open file: Pillow maps files of known path into memory, and then scrambles turned TIFFs."""
    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(cast(IO[bytes], file), formats=FORMATS) as image:
            yield image


@contextmanager
def _explained(name: str, mistaken: Callable[[], str | None], advice: str = ADVICE) -> Iterator[None]:
    """Turn what a decoder raises into one line; `mistaken` knows what lies in the place of an image."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # a decoder raises anything on a damaged file
        reason = mistaken() or _reason(error)
        raise UserError(f"{name}: expected an image file, got {reason}; {advice}") from error


def _require_regular(path: Path) -> None:
    """Raise ValueError for a pipe, a socket or a device, which are not opened."""
    found = special(path)
    if found is not None:
        raise ValueError(found)


def _reason(error: Exception) -> str:
    """Why an image cannot be read, where Pillow says it to programmers only."""
    if isinstance(error, UnidentifiedImageError):
        return f"content of no known format ({', '.join(FORMATS)})"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if "MAX_TEXT" in str(error):
        return f"more than {PngImagePlugin.MAX_TEXT_CHUNK:,} bytes of text beside the pixels"
    return str(error) or repr(error)


def resized(pixels: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "S S C"]:
    """The centre square resized to size x size in one step, by `RESIZE_RULE`."""
    height, width, channels = pixels.shape
    side = min(height, width)
    left, upper = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    small = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, upper, left + side, upper + side))
    return np.asarray(small).reshape(size, size, channels)


def _decoded(image: Image.Image, background: str) -> Decoded:
    """`image`, which is not loaded yet: its facts are asked first."""
    facts = _facts(image)
    image.load()
    if facts.orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    changes = [
        *([FIRST_FRAME] if facts.animated else []),
        *([TURNED] if facts.orientation != 1 else []),
        *([FROM_CMYK] if image.mode == "CMYK" else []),
        *([DEEP_CUT] if facts.bits > 8 and image.mode in PLAIN_MODES else []),
    ]
    pixels, scaled, brightest = _levels(image, facts)
    pixels, laid = _without_alpha(pixels, background)
    return Decoded(np.ascontiguousarray(pixels), (*changes, *scaled, *laid), brightest)


@dataclass(frozen=True)
class _Facts:
    """What a file says of its pixels: Pillow's raw mode ("LA;16B"), bits a channel, and so on."""

    origin: str
    kind: str
    bits: int
    white_is_zero: bool
    animated: bool
    orientation: int


def _facts(image: Image.Image) -> _Facts:
    """The facts of an image that is not loaded: Pillow forgets some of them then.

    Raises:
        UserError: Pillow would read the file as if it meant something else.
    """
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    if image.mode in PLAIN_MODES and set(tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))) != {UNSIGNED}:
        raise UserError("expected unsigned levels, got signed ones; save them as 0-255")
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        raise UserError("a CMYK JPEG without Adobe's marker does not say whether it is inverted; save it as RGB")
    if image.mode == "F" and white_is_zero:
        raise UserError("expected floating point whose zero is black, got zero as white; save it as 8-bit grey")
    kind, bits = _raw_kind(image, tags)  # before the EXIF, for which Pillow may load a PNG
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(2, 9) else 1
    animated = getattr(image, "is_animated", False)  # `n_frames` visits each of them
    return _Facts(image.format or "", kind, bits, white_is_zero, animated, orientation)


def _raw_kind(image: Image.Image, tags: Mapping[int, Any]) -> tuple[str, int]:
    """How the file names its pixels ("LA;16B"), and bits a channel."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ()
    words = (arguments,) if isinstance(arguments, str) else tuple(arguments or ())
    kind = next((word for word in words if isinstance(word, str)), "")
    maximum = words[1] if image.format == "PPM" and len(words) == 2 else 0
    return kind, 16 if ";16" in kind or maximum > 255 else tags.get(TIFF_BITS, (8,))[0]


def _levels(image: Image.Image, facts: _Facts) -> tuple[np.ndarray, tuple[str, ...], float]:
    """Pixels (H, W, C) uint8 with C from 1 to 4, even with an alpha channel; a note; the largest of scaled values."""
    if image.mode in PLAIN_MODES:
        return _plain(image, facts), (), 0.0
    if image.mode in DEEP_GREY or (image.mode == "I" and facts.origin in FORMATS_OF_16_BITS):
        return _deep_grey(image, facts)
    if image.mode == "F":
        return _floating(np.asarray(image)), (FLOAT_SCALED,), 0.0
    found = {"I": "32-bit or signed integers", "LAB": "CIELAB"}.get(image.mode, f"Pillow's mode {image.mode}")
    raise UserError(f"expected grey or colour of up to 16 bits, got {found}; save it as 8-bit grey or RGB")


def _plain(image: Image.Image, facts: _Facts) -> np.ndarray:
    """The pixels of an image of up to 8 bits a channel."""
    mode = PLAIN_MODES[image.mode]
    if "transparency" in image.info and mode in WITH_ALPHA:
        if facts.bits > 8:
            raise UserError("expected an alpha channel, got one transparent colour of 16 bits; save it as RGBA")
        mode = WITH_ALPHA[mode]
    pixels = np.asarray(image.convert(mode))
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., 2:] if facts.kind.startswith("LA;") else _grey_if_palette_is(image, pixels)


def _grey_if_palette_is(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """A palette of greys makes a grey image: (H, W, 3 or 4) becomes (H, W, 1 or 2)."""
    if image.mode not in ("P", "PA"):
        return pixels
    palette = np.array(image.getpalette("RGB") or [0, 1, 2]).reshape(-1, 3)
    return pixels[..., 2:] if (palette == palette[:, :1]).all() else pixels


def _deep_grey(image: Image.Image, facts: _Facts) -> tuple[np.ndarray, tuple[str, ...], float]:
    """Grey of 12 or 16 bits: level v of 0 to 2^bits - 1 becomes 255 v / (2^bits - 1), rounded."""
    values, highest = np.asarray(image).astype(np.int32), 2 ** (12 if facts.bits == 12 else 16) - 1
    levels = highest - values if facts.white_is_zero else values
    pixels = [(levels * 255 + highest // 2) // highest]
    if "transparency" in image.info:
        pixels.append(np.where(values == image.info["transparency"], 0, 255))
    return np.stack(pixels, axis=-1).astype(np.uint8), (DEEP_SCALED,), float(levels.max() / highest)


def _floating(values: np.ndarray) -> np.ndarray:
    """Grey (H, W) of floating point in 0-1, times 255 and rounded: (H, W, 1)."""
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails as well
        found = f"{values.min():g} to {values.max():g}"
        raise UserError(f"expected floating-point pixels in 0-1, got {found}; save it as 8-bit grey")
    return np.rint(values * 255).astype(np.uint8)[..., None]


def _without_alpha(pixels: np.ndarray, background: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(H, W, 1 or 3) on the background, from (H, W, C) whose last channel is alpha where C is even.

    Raises:
        UserError: the picture vanishes on this background.
    """
    if pixels.shape[-1] % 2:
        return pixels, ()
    colour, alpha = pixels[..., :-1], pixels[..., -1:].astype(np.uint16)
    if alpha.min() == 255:
        return colour, ()
    laid = (colour * alpha + BACKGROUNDS[background] * (255 - alpha) + 127) // 255
    if alpha.max() > alpha.min() and (laid == BACKGROUNDS[background]).all():
        other = next(name for name in BACKGROUNDS if name != background)
        raise UserError(f"it vanishes on a {background} background; use ?background={other} behind the path")
    return laid.astype(np.uint8), (ON_BACKGROUND.format(background=background),)
