"""Where experiments are tracked: event files of TensorBoard, packages with wandb's calls `init`, `log`, `finish`."""

from __future__ import annotations

import contextvars
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from benchmarks.base.extras import needed

PROJECT = "vaebench"
PACKAGES = ("wandb", "trackio")
"""What --track may name."""
Pictures = Mapping[str, np.ndarray]
"""Images (h, w, 1 or 3) uint8 by name."""


class Tracked(Protocol):
    """A trial that is tracked."""

    def log(self, values: Mapping[str, float], pictures: Pictures, step: int) -> None:
        """Add values and pictures of a training step."""
        ...

    def finish(self) -> None:
        """Write out what is still to be written; nothing is added after it."""
        ...


class Tracker(Protocol):
    """Opens trials; `key` tells it from other trackers."""

    key: str

    def open(self, name: str, suite: str, config: Mapping[str, Any], *, new: bool) -> Tracked:
        """The trial of that name, which goes on where it stopped if it is not new."""
        ...


class TensorBoard:
    """Event files in DIR/SUITE/NAME.

    Raises:
        UserError: the package is missing, or the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.writer = needed("torch.utils.tensorboard", "--tensorboard", "tensorboard").SummaryWriter
        self.folder = folder.resolve()
        self.key = f"tensorboard {self.folder}"

    def open(self, name: str, suite: str, config: Mapping[str, Any], *, new: bool) -> Tracked:
        """See `Tracker`; a new file beside those there are."""
        found = TensorBoardRun(self.writer(str(self.folder / suite / name)))
        if new:
            found.writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```", 0)
        return found


class TensorBoardRun:
    """A trial's event file."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, values: Mapping[str, float], pictures: Pictures, step: int) -> None:
        """See `Tracked`; on disk when it returns."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        self.writer.flush()

    def finish(self) -> None:
        """See `Tracked`."""
        self.writer.close()


class Package:
    """Runs of wandb, or of trackio, which has the same calls; both are configured by their environment variables.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self, name: str) -> None:
        self.module, self.key = needed(name, f"--track {name}", name), name
        self.project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)

    def open(self, name: str, suite: str, config: Mapping[str, Any], *, new: bool) -> Tracked:
        """See `Tracker`; trials side by side are runs of their own."""
        how: dict[str, Any] = {"project": self.project, "name": name, "group": suite, "config": dict(config)}
        if self.key == "wandb":  # trackio finds a run by its name
            how |= {"id": name, "reinit": "create_new", "settings": {"console": "off"}}
        own = contextvars.Context()  # in which trackio knows of no other run
        return PackageRun(self.module, own.run(self.module.init, **how, resume="allow"))


class PackageRun:
    """A trial's run."""

    def __init__(self, module: ModuleType, run: Any) -> None:
        self.module, self.run = module, run

    def log(self, values: Mapping[str, float], pictures: Pictures, step: int) -> None:
        """See `Tracked`."""
        images = {name: self.module.Image(_in_colour(picture)) for name, picture in pictures.items()}
        self.run.log({**values, **images}, step=step)

    def finish(self) -> None:
        """See `Tracked`."""
        self.run.finish()


def _in_colour(picture: np.ndarray) -> np.ndarray:
    """A picture (h, w, 1 or 3) with three channels."""
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture


def trackers(tensorboard: str | None, track: str | None) -> list[Tracker]:
    """The trackers that `run`'s options ask for.

    Raises:
        UserError: a package is missing.
    """
    found: list[Tracker] = []
    if tensorboard is not None:
        found.append(TensorBoard(Path(tensorboard)))
    if track is not None:
        found.append(Package(track))
    return found
