"""Headers of arrays, alone in an .npy file or as members of an .npz archive: read and checked before their values.

A header may claim any size, and some kilobytes may inflate to gigabytes; what is read here allocates neither.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

NPY = b"\x93NUMPY"
"""First bytes of an array."""
ENCRYPTED = 1
"""Bit of a member's flags."""
MOST_INFLATION, SMALL = 250, 1 << 28
"""Times that members of more than so many bytes may inflate: binary images in float64 do by 100, zip bombs by 1,000."""
PICKLED = "pickled Python objects, which are not read; save them with np.savez as arrays of numbers"


@dataclass(frozen=True)
class Header:
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes] | io.BufferedIOBase) -> Header:
    """The header at the start of an open array, which is then at its values.

    Raises:
        ValueError: no array, or one of Python objects.
    """
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError("an array with names of fields, not of plain numbers")
    shape, fortran, dtype = read[version](file)
    if dtype.hasobject:
        raise ValueError(PICKLED)
    return Header(shape, dtype, fortran)


def file_header(path: Path) -> Header:
    """The header of an .npy file that is as long as it says.

    Raises:
        ValueError: no array, or a file cut short.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = read_header(file)
        _require_bytes(header, os.fstat(file.fileno()).st_size - file.tell())
    return header


def member_header(archive: zipfile.ZipFile, name: str) -> Header:
    """The header of a member of an archive, which can hold what it says.

    Raises:
        ValueError: no array; an encrypted member; one that would inflate beyond reason, or is cut short.
        OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, KeyError: none, or a damaged one.
    """
    info = archive.getinfo(name)
    if info.flag_bits & ENCRYPTED:
        raise ValueError("an encrypted member; save it without a password")
    if info.file_size > max(SMALL, MOST_INFLATION * info.compress_size):
        raise ValueError(f"{info.compress_size:,} bytes that inflate to {info.file_size:,}; unpack it, or use np.savez")
    with archive.open(info) as file:
        header = read_header(file)
        _require_bytes(header, info.file_size - file.tell())
    return header


def _require_bytes(header: Header, found: int) -> None:
    """Raise ValueError where fewer bytes follow a header than its values take."""
    if header.nbytes > found:
        shape = "x".join(map(str, header.shape))
        raise ValueError(f"a header of {shape} values of {header.dtype} with {found:,} bytes behind it: cut short")
