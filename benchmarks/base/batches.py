"""Loops over batches whose results are joined: all at once here, part by part where they are to survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, cat

Layers = dict[str, Tensor]
"""Results by name, images along the first dimension."""


Batches = Callable[[str, int, int, Callable[[int, int], Layers]], Layers]
"""Joined results of (key, n, size, compute): `compute(start, end)` run over n images in batches of `size`.

The key stands for everything that the results depend on.
"""


def joined(parts: Sequence[Layers]) -> Layers:
    """The parts as one."""
    return {name: cat([part[name] for part in parts]) for name in parts[0]}


def in_batches(key: str, n: int, size: int, compute: Callable[[int, int], Layers]) -> Layers:
    """Everything computed now, nothing kept."""
    return joined([compute(start, min(start + size, n)) for start in range(0, n, size)])
