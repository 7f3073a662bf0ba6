"""Loops over batches of images whose results are joined: all here and at once, unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor, cat, nn

Layers = dict[str, Tensor]
"""Results by name, images along the first dimension where they are to be joined."""
Compute = Callable[[int, int], Layers]
"""What a loop does with images `start` to `end`."""


class Images(Protocol):
    """Images of which a slice can be had: a tensor (N, C, H, W), or what makes one where it is asked for."""

    def __getitem__(self, index: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Piece:
    """What a process can compute without knowing more: a batch of a `Task`, sent to who has the same network."""

    network: Literal["model", "extractor"]
    function: Callable[..., Layers]
    images: Tensor | None
    start: int
    end: int
    settings: Mapping[str, Any]

    def of(self, network: nn.Module) -> Layers:
        """The results, computed where the network is."""
        device = next(network.parameters()).device
        images = None if self.images is None else self.images.to(device)
        return self.function(network, images, self.start, self.end, **self.settings)


@dataclass(frozen=True)
class Task:
    """A `Compute` that any process can take a batch of: `function(network, images[start:end], start, end, **settings)`.

    The function is one of a module, by whose name another process finds it. `name` says which of an evaluation's
    networks it is of. Where no images are given, None stands for them. `before` is called with `start` before a batch
    that this process computes.
    """

    name: Literal["model", "extractor"]
    network: nn.Module
    function: Callable[..., Layers]
    images: Images | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: Callable[[int], None] = lambda start: None

    def __call__(self, start: int, end: int) -> Layers:
        """The results of images `start` to `end`."""
        self.before(start)
        return self._piece(start, end).of(self.network)

    def sent(self, start: int, end: int) -> Piece:
        """What another process needs to compute the same, on the host: its networks may be on another device."""
        piece = self._piece(start, end)
        return piece if piece.images is None else replace(piece, images=piece.images.cpu())

    def _piece(self, start: int, end: int) -> Piece:
        images = None if self.images is None else self.images[start:end]
        return Piece(self.name, self.function, images, start, end, self.settings)


class Batches:
    """Runs loops over n images in batches of `size`, one batch after another; nothing is kept."""

    def each(self, n: int, size: int, compute: Compute, start: int = 0) -> Iterator[Layers]:
        """The results of every batch from image `start` on, in order."""
        for first in range(start, n, size):
            yield compute(first, min(first + size, n))

    def __call__(self, key: str, n: int, size: int, compute: Compute) -> Layers:
        """The joined results; the key stands for everything that they depend on."""
        return joined(list(self.each(n, size, compute)))


in_batches = Batches()
"""Everything computed here and now."""


def joined(parts: Sequence[Layers]) -> Layers:
    """The parts as one."""
    return {name: cat([part[name] for part in parts]) for name in parts[0]}
