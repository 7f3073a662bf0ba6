"""CPU: tables that describe many tensors to a C kernel, a structure each, filled column by column."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@functools.cache
def _layout(structure: type[ctypes.Structure]) -> np.dtype[Any]:
    return np.dtype(structure)


def table(structure: type[ctypes.Structure], **columns: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    """Rows of a structure, from a column for each field that is used; the others are null."""
    rows = np.zeros(len(next(iter(columns.values()))), _layout(structure))
    for name, values in columns.items():
        rows[name] = values
    return rows


def addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Address of the first value of each."""
    return list(map(Tensor.data_ptr, tensors))


def addresses_in(flat: Tensor, sizes: Sequence[int]) -> NDArray[np.int64]:
    """Addresses of pieces of so many values that lie in `flat` one after the other."""
    counts = np.array(sizes, np.int64)
    return flat.data_ptr() + flat.element_size() * (counts.cumsum() - counts)
