"""Whether Triton interprets its kernels; imports no Triton."""

from __future__ import annotations

import os


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels on the CPU (tests only)."""
    return os.environ.get("TRITON_INTERPRET") == "1"
