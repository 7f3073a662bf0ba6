"""Safetensors files written tensor by tensor.

safetensors itself copies all of them first, and ends the process where the copy does not fit into memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base.files import written_atomically

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Types of tensors, as safetensors names them."""
NAMES = {kind: name for name, kind in TYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to `path`, which is there whole or not at all.

    One at a time is copied, and only if it is not on the CPU or not contiguous; shared storage is written twice.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # each begins where it may be read
    start, _ = beginning({name: (tensors[name].dtype, tensors[name].shape) for name in names}, metadata)
    with written_atomically(path) as file:
        file.write(start)
        for name in names:
            file.write(raw(tensors[name]))


def raw(tensor: Tensor) -> memoryview:
    """A tensor's bytes in the order of its indices."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def beginning(
    kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The head of a file with tensors of these types and shapes, in this order, and the place of each in the file."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset, places = 0, {}
    for name, (kind, shape) in kinds.items():
        places[name], end = offset, offset + kind.itemsize * math.prod(shape)
        entries[name] = {"dtype": NAMES[kind], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    return start, {name: len(start) + place for name, place in places.items()}
