"""Images of one's own in arrays: an .npz or .npy file, its arrays found by their names and read without unpickling.

One rule for the values of all arrays of a file: zeros and ones only, of any type, are binary pixels; whole numbers of
0-255 are levels; floating point in 0-1 is scaled to levels. Anything else is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.base.files import mistaken_for
from benchmarks.base.limits import require_memory
from benchmarks.data.archives.headers import NPY, file_header, member_header
from benchmarks.data.dataset import Part, Request, Splits, user_path
from benchmarks.data.order import SPLIT_NAMES, cut

CONTENT = "images?|imgs?|samples?|data|x"
SPLIT_WORDS = {"train": "train(?:ing)?", "validation": "val(?:id(?:ation)?)?", "test": "test(?:ing)?"}
EXPECTED = "'images', 'train', 'validation' and 'test', or such as 'x_train', 'test_images'"
UNNAMED = "arr_"
"""How the names begin that `np.savez` gives to arrays without one."""
KINDS = "buif"
"""Kinds of numpy types that pixels can have: bool, whole and floating-point numbers."""
SUFFIX = ".npy"
"""How the members of an archive end that are arrays."""
THE_ARRAY = "the array"
FEWER = "keep fewer images"
SHOWN = 8
"""Names that a message gives."""
T = TypeVar("T")
CHUNK = 1024
"""Images converted at a time: other types are up to eight times as large as uint8."""
CHANNELS = (1, 3)


@dataclass(frozen=True)
class FileImages:
    """Images (N, C, H, W) of a file in its order, uint8, or float32 zeros and ones; and how they were read."""

    images: Tensor
    note: str


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a file that are images, by split ("" for one of no split): as they are, and their names."""

    path: Path
    by_split: dict[str, np.ndarray]
    names: dict[str, str]
    unread: list[str]

    def note(self, rule: str) -> str:
        """Which arrays were taken, how their values were read, and which were left."""
        taken = ", ".join(f"'{name}'" for name in self.names.values())
        left = f"; not read: {_listed(self.unread)}" if self.unread else ""
        return f"{taken} of {self.path.name}{f'; {rule}' if rule else ''}{left}"


def read_npz(request: Request) -> Splits:
    """The images of an .npz or .npy file: one array, or one for each split.

    What is missing of validation and test is cut from train, or from the one array, by the hash of the index
    (a tenth each). Arrays are (N, H, W) or (N, H, W, C).
    """
    found = _read(user_path(request.argument))
    pixels, rule = _pixels(found)
    train = pixels.get("", pixels.get("train"))
    if train is None:
        named = ", ".join(found.names.values())
        raise UserError(f"{found.path}: expected an array of training images beside {named}, such as 'x_train'")
    missing = [split for split in SPLIT_NAMES[1:] if split not in pixels]
    parts, note = {split: Part(images) for split, images in pixels.items()}, f"splits as given: {found.note(rule)}"
    if missing:
        index = cut([str(i) for i in range(len(train))], missing, str(found.path))
        parts |= {split: Part(train[torch.tensor(positions)]) for split, positions in index.items()}
        origin = "train" if "train" in pixels else "it"
        note = f"{found.note(rule)}; {' and '.join(missing)} cut from {origin} by hash of the index"
    return Splits(*(parts[split] for split in SPLIT_NAMES), note=note)


def npz_images(path: Path, *, binary: bool = False) -> FileImages:
    """The one array of images of a file, or that of the test split.

    With `binary`, binary pixels are taken as they are: float32.

    Raises:
        UserError: no such file, array or pixels.
    """
    found = _read(user_path(str(path)))
    split = next((split for split in ("", "test") if split in found.by_split), None)
    if split is None:
        named = ", ".join(found.names.values())
        raise UserError(f"{found.path}: expected an array 'images' or 'test', found {named}")
    chosen = _Arrays(found.path, {split: found.by_split[split]}, {split: found.names[split]}, found.unread)
    if binary and _is_binary(chosen.by_split[split]):
        return FileImages(_channels_first(chosen.by_split[split].astype(np.float32)), chosen.note("binary pixels"))
    pixels, rule = _pixels(chosen)
    return FileImages(pixels[split], chosen.note(rule))


def split_of(name: str) -> str | None:
    """The split that an array's name says ("x_train"), "" for images of no split ("imgs"), None for no images."""
    if re.fullmatch(CONTENT, name, re.IGNORECASE):
        return ""
    for split, word in SPLIT_WORDS.items():
        pattern = rf"(?:(?:{CONTENT})[-_. ]?)?{word}(?:[-_. ]?(?:{CONTENT}))?"
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return split
    return None


def _read(path: Path) -> _Arrays:
    """The arrays of a file that are images; the others are not read.

    Raises:
        UserError: missing, corrupt, ambiguous, no images, or in need of unpickling.
    """
    if _begins(path).startswith(NPY):
        array = _lone_array(path)
        _require_images(array, f"{path}: {THE_ARRAY}")
        return _Arrays(path, {"": array}, {"": THE_ARRAY}, [])
    with _archive(path) as archive:
        everything = [name.removesuffix(SUFFIX) for name in archive.namelist()]
        lone = [name for name in everything if name.startswith(UNNAMED) and _looks_like_images(archive, name)]
        names = _chosen(path, everything, lone)
        arrays = _members(archive, names, path)
        unread = [name for name in everything if name not in names.values()]
    for split, array in arrays.items():
        _require_images(array, f"{path}: '{names[split]}'")
    return _Arrays(path, arrays, names, unread)


def _begins(path: Path) -> bytes:
    """The first bytes of a regular file.

    Raises:
        UserError: another file, or none that can be read.
    """
    found = mistaken_for(path)
    if found is not None:
        raise _no_arrays(path, found)
    try:
        with path.open("rb") as file:
            return file.read(len(NPY))
    except (OSError, ValueError) as error:
        raise _no_arrays(path, getattr(error, "strerror", None) or str(error)) from error


def _no_arrays(path: Path, found: str) -> UserError:
    """The error for a file that is something else."""
    return UserError(f"{path}: expected an .npz file of plain arrays or an .npy file, got {found}")


def _lone_array(path: Path) -> np.ndarray:
    """The array of an .npy file; what it is to hold is known from its header first."""
    try:
        require_memory(file_header(path).nbytes, f"{path}: its values", FEWER)
        return np.load(path, allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise _no_arrays(path, _reason(error)) from error


def _archive(path: Path) -> zipfile.ZipFile:
    """The open archive."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged archive raises anything
        raise _no_arrays(path, _reason(error)) from error


def _members(archive: zipfile.ZipFile, names: dict[str, str], path: Path) -> dict[str, np.ndarray]:
    """The named arrays of an archive by split; all their headers are read before the first of them."""
    headers = [_checked(archive, name, path, member_header) for name in names.values()]
    require_memory(sum(header.nbytes for header in headers), f"{path}: its images", FEWER)
    return {split: _checked(archive, name, path, _values) for split, name in names.items()}


def _checked(archive: zipfile.ZipFile, name: str, path: Path, read: Callable[[zipfile.ZipFile, str], T]) -> T:
    """What `read` finds in the member of that name; one line where it finds no plain array."""
    if f"{name}{SUFFIX}" not in archive.namelist():
        raise UserError(f"{path}: expected a plain array '{name}', got a file that is none")
    try:
        return read(archive, f"{name}{SUFFIX}")
    except Exception as error:  # a damaged archive raises anything
        raise UserError(f"{path}: expected a plain array '{name}', got {_reason(error)}") from error


def _values(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """One array of an archive."""
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _reason(error: Exception) -> str:
    """What is wrong with a file, in numpy's words, but not what numpy advises."""
    if "allow_pickle" in str(error):
        return "a header of thousands of letters, which no array of numbers has"
    return str(error) or type(error).__name__


def _looks_like_images(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether the header of an array says numbers in three or four axes; the array is not read."""
    try:
        header = member_header(archive, f"{name}{SUFFIX}")
    except Exception:  # what cannot be read is not images
        return False
    return len(header.shape) in (3, 4) and header.dtype.kind in KINDS


def _chosen(path: Path, names: list[str], unnamed: list[str]) -> dict[str, str]:
    """The name of the array of images for each split; of the unnamed ones that look like images if no name is known."""
    known: dict[str, list[str]] = {}
    for name in names:
        split = split_of(name)
        if split is not None:
            known.setdefault(split, []).append(name)
    if not known and unnamed:
        known[""] = unnamed
    if not known:
        raise UserError(f"{path}: expected arrays {EXPECTED}, found {_listed(names)}; rename them")
    double = next((found for found in known.values() if len(found) > 1), None)
    if "" in known and len(known) > 1:
        double = [name for found in known.values() for name in found]
    if double is not None:
        raise UserError(f"{path}: expected one array of images a split, found {_listed(double)}; keep one of them")
    return {split: found[0] for split, found in known.items()}


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}" or "none"


def _require_images(array: np.ndarray, where: str) -> None:
    """Raise UserError unless the array has numbers in the shape of images, channels last."""
    shape = array.shape
    if array.dtype.kind not in KINDS:
        raise UserError(f"{where}: expected whole numbers of 0-255 or floating point of 0-1, got {array.dtype}")
    if array.ndim not in (3, 4) or array.size == 0:
        advice = _advice(shape)
        raise UserError(f"{where}: expected shape (N, H, W) or (N, H, W, C) and no empty axis, got {shape}{advice}")
    if array.ndim == 3 and shape[2] == 3:
        raise UserError(f"{where}: expected (N, H, W), but {shape} looks like one colour image; add an axis: x[None]")
    if array.ndim == 4 and shape[3] not in CHANNELS:
        advice = "; turn it: np.transpose(x, (0, 2, 3, 1))" if shape[1] in CHANNELS else ""
        advice = "; drop the alpha channel: x[..., :3]" if shape[3] == 4 and not advice else advice
        got = f"(N, C, H, W) = {shape}" if shape[1] in CHANNELS else str(shape)
        raise UserError(f"{where}: expected (N, H, W, C) with 1 or 3 channels last, got {got}{advice}")


def _advice(shape: tuple[int, ...]) -> str:
    """How rows of pixels become square images, where they can."""
    side = round(shape[1] ** 0.5) if len(shape) == 2 else 0
    return f"; make images of the rows: x.reshape(-1, {side}, {side})" if side and side**2 == shape[1] else ""


def _is_binary(array: np.ndarray) -> bool:
    """Whether there are zeros and ones only: binary pixels, whatever the type."""
    return not any(((part != 0) & (part != 1)).any() for part in _chunks(array))


def _pixels(found: _Arrays) -> tuple[dict[str, Tensor], str]:
    """(N, C, H, W) uint8 of every split by one rule for all of them, and the rule where it changes a value.

    Raises:
        UserError: values that are no levels.
    """
    kinds = {str(array.dtype) for array in found.by_split.values()}
    if len(kinds) > 1:
        raise UserError(f"{found.path}: expected splits of one type, got {', '.join(sorted(kinds))}; convert them")
    kind = kinds.pop()
    names = ", ".join(f"'{name}'" for name in found.names.values())
    scale, rule = _scale(list(found.by_split.values()), f"{found.path}: {names}", kind)
    return {split: _channels_first(_scaled(array, scale)) for split, array in found.by_split.items()}, rule


def _scale(arrays: list[np.ndarray], where: str, kind: str) -> tuple[int, str]:
    """The factor from values to levels, 1 or 255, and the rule in words where it is worth one."""
    low = min(_finite(array, where).min().item() for array in arrays)
    high = max(array.max().item() for array in arrays)
    if high == 1 and all(_is_binary(array) for array in arrays):
        return 255, f"zeros and ones ({kind}): binary pixels, 0 and 255"
    if kind == "uint8":
        return 1, ""
    whole = arrays[0].dtype.kind in "bui"
    if low >= 0 and high <= 255 and (whole or (high > 1 and all(_are_whole(array) for array in arrays))):
        return 1, f"whole numbers of 0-255 ({kind})"
    if not whole and low >= 0 and high <= 1:
        return 255, f"floating point of 0-1 ({kind}) scaled to 0-255 and rounded"
    expected = "whole numbers of 0-255" if whole else "floating point of 0-1, or whole numbers of 0-255"
    raise UserError(f"{where}: expected {expected}, got {kind} of {low} to {high}{_remedy(low, high, whole)}")


def _remedy(low: int | float, high: int | float, whole: bool) -> str:
    """What makes levels of values in such a range, where one can tell."""
    if not whole and -1 <= low < 0 and high <= 1:
        return "; if they are of -1 to 1: x = (x + 1) / 2"
    if whole and low >= 0 and 255 < high < 2**16:
        return "; if they are of 16 bits: x = (x // 257).astype(np.uint8)"
    return "; round them" if not whole and low >= 0 and high <= 255 else "; scale them"


def _finite(array: np.ndarray, where: str) -> np.ndarray:
    """`array`; raises UserError where it holds NaN or infinity."""
    bad = sum(int((~np.isfinite(part)).sum()) for part in _chunks(array)) if array.dtype.kind == "f" else 0
    if bad:
        raise UserError(f"{where}: expected finite values, found {bad:,} that are NaN or infinite; remove these images")
    return array


def _are_whole(array: np.ndarray) -> bool:
    return all(bool((part == np.rint(part)).all()) for part in _chunks(array))


def _chunks(array: np.ndarray) -> list[np.ndarray]:
    """Views of some images each."""
    return [array[start : start + CHUNK] for start in range(0, len(array), CHUNK)]


def _scaled(array: np.ndarray, scale: int) -> np.ndarray:
    """`array` times `scale`, rounded, as uint8."""
    if array.dtype == np.uint8 and scale == 1:
        return array
    levels = np.empty(array.shape, np.uint8)
    for source, target in zip(_chunks(array), _chunks(levels), strict=True):
        target[...] = np.rint(source.astype(np.float64) * scale)
    return levels


def _channels_first(array: np.ndarray) -> Tensor:
    """(N, C, H, W) from (N, H, W) or (N, H, W, C)."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
