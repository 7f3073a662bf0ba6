"""Files of bytes as images in memory: pages come when they are used, and are given back before they pile up.

The kernel counts the pages of a mapped file as a process's own (`RssFile`) until somebody else needs the memory, and
schedulers of clusters count with it. Who reads through `picked` holds few of them at any time, however large the file.
"""

from __future__ import annotations

import math
import mmap
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

MOST_RESIDENT = 256 << 20
"""Bytes of a file that a process keeps; smaller files stay whole."""
AROUND = 2 << 20
"""Bytes that a kernel may map around an address that is asked for: a huge page."""


class _MappedFile(mmap.mmap):
    """A file in memory, and how much of it may be there."""

    touched = 0

    def touch(self, size: int) -> None:
        """Note that so many bytes were read; gives back all pages where that may be too many."""
        self.touched += size
        if min(self.touched, len(self)) > MOST_RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            self.madvise(mmap.MADV_DONTNEED)
            self.touched = 0


_files = weakref.WeakValueDictionary[int, _MappedFile]()
"""By the address of the tensor's memory, which its splits share."""


def mapped(path: Path, shape: tuple[int, ...]) -> UInt8[Tensor, "N C H W"]:
    """The bytes of a file as images, which cannot be written: writing to one ends the process."""
    with path.open("rb") as file:
        memory = _MappedFile(file.fileno(), math.prod(shape), access=mmap.ACCESS_READ)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it cannot be written
        images = torch.frombuffer(memory, dtype=torch.uint8).view(shape)
    _files[images.untyped_storage().data_ptr()] = memory
    return images


def picked(images: UInt8[Tensor, "_ ..."], index: Tensor | slice) -> UInt8[Tensor, "_ ..."]:
    """`images[index]` for an index (B,) or a slice, copied where they are mapped, so that their pages need not stay."""
    memory = _files.get(images.untyped_storage().data_ptr())
    if isinstance(index, slice):
        chosen = images[index] if memory is None else images[index].clone()
        around = 0
    else:
        chosen, around = images.index_select(0, index.to(images.device)), AROUND
    if memory is not None and len(chosen):
        memory.touch(len(chosen) * (chosen[0].numel() + around))
    return chosen


@dataclass(frozen=True)
class Copies:
    """Images (N, C, H, W) whose slices are `picked`."""

    images: UInt8[Tensor, "N C H W"]

    def __getitem__(self, index: slice) -> UInt8[Tensor, "B C H W"]:
        """A copy of some of them where they are mapped."""
        return picked(self.images, index)
