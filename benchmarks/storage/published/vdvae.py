"""Checkpoints of the published VDVAE code: bare weights, which do not say how the model was built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.storage.published.checkpoint import PublishedModel
from models.vdvae.published import setup_from_settings, setup_from_shapes

WRAPPER = "module."
"""Before every key of weights that were saved from the wrapper of several GPUs."""
PARTS = ("encoder.enc_blocks.", "decoder.dec_blocks.")


def is_vdvae_checkpoint(contents: object) -> bool:
    """Whether loaded contents have the layout of the published code's weights."""
    if not isinstance(contents, Mapping) or not all(isinstance(key, str) for key in contents):
        return False
    keys = [key.removeprefix(WRAPPER) for key in contents]
    return all(any(key.startswith(part) for key in keys) for part in PARTS) and all(
        isinstance(value, Tensor) for value in contents.values()
    )


def read_vdvae(contents: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> PublishedModel:
    """Weights, and the setup that `settings` of the published code stand for, or else the published model they fit.

    Raises:
        ValueError: no settings and no published model of these shapes, or settings that cannot be built.
    """
    state = {key.removeprefix(WRAPPER): value for key, value in contents.items()}
    setup = setup_from_shapes(state) if settings is None else setup_from_settings(settings)
    return PublishedModel(setup, state)
