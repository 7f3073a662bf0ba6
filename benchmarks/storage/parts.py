"""Finished parts of an evaluation on disk, so that one that dies late does not start again."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from pathlib import Path

from benchmarks.base.batches import Batches, Compute, Layers, in_batches, joined
from benchmarks.base.errors import UserError
from benchmarks.base.files import sweep
from benchmarks.storage import tensors

KEPT_SECONDS = 20.0
"""Work that may be lost; an evaluation that takes less writes nothing."""


class Parts(Batches):
    """Keeps what is done in `folder`, under names that say all that it depends on; `within` computes it.

    What is read back is what was computed, bit for bit; a file that is damaged is computed again.
    """

    def __init__(self, folder: Path, within: Batches = in_batches) -> None:
        self.folder, self.each = folder, within.each
        sweep(folder)

    def __call__(self, key: str, n: int, size: int, compute: Compute) -> Layers:
        """The joined results of a loop, of which only what is missing is computed."""
        name = hashlib.sha256(f"{key}/{n}/{size}".encode()).hexdigest()[:32]
        parts, done = self._read(name)
        fresh, since = list[Layers](), time.monotonic()
        try:
            for batch in self.each(n, size, compute, done):
                fresh.append(batch)
                if time.monotonic() - since > KEPT_SECONDS:
                    parts.append(joined(fresh))
                    fresh, done, since = [], self._keep(name, parts[-1], done), time.monotonic()
        except KeyboardInterrupt:  # asked to leave
            if fresh:
                self._keep(name, joined(fresh), done)
            raise
        return joined([*parts, *fresh])

    def clear(self) -> None:
        """Remove everything: the record holds what it was for."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str, start: int) -> Path:
        return self.folder / f"{name}-{start}.safetensors"

    def _read(self, name: str) -> tuple[list[Layers], int]:
        """The parts from the first image on, and the number of images in them."""
        parts, done = list[Layers](), 0
        while (path := self._path(name, done)).exists():
            try:
                parts.append(tensors.load(path).tensors)
            except UserError as error:
                print(f"{error}; that part is computed again", file=sys.stderr, flush=True)
                break
            done += len(next(iter(parts[-1].values())))
        return parts, done

    def _keep(self, name: str, part: Layers, start: int) -> int:
        """Write a part; returns the index of the first image after it. Where it cannot be written, it is not kept."""
        try:
            tensors.save(self._path(name, start), part, {})
        except OSError as error:
            print(f"finished parts of the evaluation are not kept: {error}", file=sys.stderr, flush=True)
        return start + len(next(iter(part.values())))
