"""Images of one's own: a folder of image files, or arrays in an .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.base.errors import UserError, unknown
from benchmarks.data.dataset import Part, Request, Splits
from benchmarks.data.order import hash_order

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
GREY_MODES = {"1", "L"}
SPLIT_NAMES = ("train", "validation", "test")
HELD_OUT = 0.1  # share of validation, and of test, in data that comes without splits
RESIZE_RULE = "shorter side to {size} (antialiased bicubic), centre crop to {size}x{size}"


def read_folder(request: Request) -> Splits:
    """Image files below a folder, split by the hash of their relative path (80 / 10 / 10 %).

    Grey if every file is grey, else colour (alpha is dropped). Without `?size=N` all must have one size; with it
    the shorter side becomes N (antialiased bicubic) and the centre N x N is kept.
    """
    path, _, query = request.argument.partition("?")
    folder, size = Path(path).expanduser(), _size_option(query)
    if not folder.is_dir():
        raise UserError(f"expected a folder of images, found none at {folder}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: expected image files ({', '.join(sorted(SUFFIXES))}), found none")
    images = _stack_files(files, size)
    note = f"{len(files)} files, split by hash of file name" + (f"; {RESIZE_RULE.format(size=size)}" if size else "")
    return _split_by_hash(Part(images), [file.relative_to(folder).as_posix() for file in files], str(folder), note)


def read_npz(request: Request) -> Splits:
    """Arrays of an .npz file: `images`, split by the hash of the index (80 / 10 / 10 %), or the three splits.

    Arrays are (N, H, W) or (N, H, W, C), uint8 in 0-255 or floating point in [0, 1]. Nothing is unpickled.
    """
    path = Path(request.argument).expanduser()
    arrays = _npz_arrays(path)
    if all(name in arrays for name in SPLIT_NAMES):
        parts = {name: Part(_pixels(arrays[name], f"{path}: '{name}'")) for name in SPLIT_NAMES}
        return Splits(parts["train"], parts["validation"], parts["test"], f"splits as given in {path.name}")
    if "images" not in arrays:
        expected = "'images', or 'train', 'validation' and 'test'"
        raise UserError(f"{path}: expected arrays {expected}, found {', '.join(arrays) or 'none'}")
    images = _pixels(arrays["images"], f"{path}: 'images'")
    keys = [str(i) for i in range(len(images))]
    return _split_by_hash(Part(images), keys, str(path), f"{path.name}, split by hash of the index")


def npz_images(path: Path, *, binary: bool = False) -> Tensor:
    """The array `images` of an .npz file, or `test` where it holds splits: (N, C, H, W) uint8, in the file's order.

    With `binary`, an array of zeros and ones only, of any type, is taken as it is: float32.

    Raises:
        UserError: no such file, array or pixels.
    """
    arrays = _npz_arrays(path.expanduser())
    name = next((name for name in ("images", "test") if name in arrays), None)
    if name is None:
        raise UserError(f"{path}: expected an array 'images', found {', '.join(arrays) or 'none'}")
    array, where = arrays[name], f"{path}: '{name}'"
    if binary and not ((array != 0) & (array != 1)).any():
        _require_images(array, where)
        return _channels_first(array.astype(np.float32))
    return _pixels(array, where)


def _size_option(query: str) -> int | None:
    """N of `size=N`, the only option; None if there is none."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name != "size":
            raise unknown("option of folder:", name, ["size"])
    if not options:
        return None
    if not options["size"].isdecimal() or int(options["size"]) < 1:
        raise UserError(f"expected folder:PATH?size=N with N of at least 1, got size={options['size']}")
    return int(options["size"])


def _stack_files(files: list[Path], size: int | None) -> Tensor:
    """All files as (N, C, H, W) uint8."""
    opened = [_open(file, size) for file in files]
    mode = "L" if all(image.mode in GREY_MODES for image in opened) else "RGB"
    first = opened[0]
    for file, image in zip(files, opened, strict=True):
        if image.size != first.size:
            sizes = f"{files[0].name} is {first.width}x{first.height}, {file.name} {image.width}x{image.height}"
            raise UserError(f"expected images of one size, but {sizes}; resize them with folder:PATH?size=N")
    arrays = np.stack([np.asarray(image.convert(mode)) for image in opened])
    return _channels_first(arrays)


def _open(path: Path, size: int | None) -> Image.Image:
    """The decoded image, resized by `RESIZE_RULE` if a size is asked for.

    Raises:
        UserError: not an image, or truncated.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in GREY_MODES:
                image = image.convert("RGB")
            return image.copy() if size is None else _resized(image, size)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: expected an image file, got {error}; remove or replace it") from error


def _resized(image: Image.Image, size: int) -> Image.Image:
    """The centre square of `image`, resized to size x size in one step."""
    side = min(image.size)
    left, upper = (image.width - side) / 2, (image.height - side) / 2
    grey = image.convert("L") if image.mode in GREY_MODES else image
    return grey.resize((size, size), Image.Resampling.BICUBIC, box=(left, upper, left + side, upper + side))


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file.

    Raises:
        UserError: missing, corrupt, or in need of unpickling.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: expected an .npz file of plain arrays, got {error}") from error


def _pixels(array: np.ndarray, where: str) -> Tensor:
    """(N, C, H, W) uint8 from (N, H, W) or (N, H, W, C), uint8 or floating point in [0, 1]."""
    _require_images(array, where)
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{where}: expected uint8 (0-255) or floating point (0-1), got {array.dtype}")
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails as well
            raise UserError(f"{where}: expected floating-point values in [0, 1], got {array.min()} to {array.max()}")
        array = np.rint(array * 255).astype(np.uint8)
    return _channels_first(array)


def _require_images(array: np.ndarray, where: str) -> None:
    """Raise UserError unless the array has the shape of images."""
    if array.ndim not in (3, 4) or array.size == 0:
        raise UserError(f"{where}: expected shape (N, H, W) or (N, H, W, C) and no empty axis, got {array.shape}")


def _channels_first(array: np.ndarray) -> Tensor:
    """(N, C, H, W) from (N, H, W) or (N, H, W, C)."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def _split_by_hash(part: Part, keys: list[str], where: str, note: str) -> Splits:
    """Test and validation take a tenth each, rounded down but at least one, of the hash order of `keys`."""
    if len(keys) < len(SPLIT_NAMES):
        raise UserError(f"{where}: expected at least one image for each of train, validation and test, got {len(keys)}")
    held_out = max(1, int(HELD_OUT * len(keys)))
    order = torch.tensor(hash_order(keys))
    return Splits(part[order[2 * held_out :]], part[order[held_out : 2 * held_out]], part[order[:held_out]], note)
