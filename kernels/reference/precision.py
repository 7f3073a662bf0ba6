"""In which type the reference computes."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that values of `dtype` are computed in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
