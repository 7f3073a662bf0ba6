"""Numbers that a command or a suite may ask for: the ends of what a machine and a lifetime hold, far from any use."""

from __future__ import annotations

from models.fields import Bounds

THREADS = Bounds(1, 1024)
JOBS = Bounds(1, 1024)
RANKS = Bounds(1, 1024)
SHARDS = Bounds(1, 100_000)
PORT = Bounds(1, 65535)
SEED = Bounds(0, 2**63 - 1)
SEEDS = Bounds(1, 1000)
BATCH = Bounds(1, 1_000_000)
DRAWS = Bounds(1, 1_000_000)
"""K of an importance-weighted bound."""
SAMPLES = Bounds(1, 1_000_000)
"""Images from the prior."""
BATCHES = Bounds(1, 1_000_000)
TEMPERATURE = Bounds(above=0, most=1000)
LATENT_SIZE = Bounds(1, 1_000_000)
GROUPS = Bounds(0, 100_000)
"""Latent groups that are kept."""
IMAGES = Bounds(1, 10**11)
"""Shown in a training, repeats counted."""
EPOCHS = Bounds(above=0, most=1_000_000)
SECONDS = Bounds(above=0, most=10**9)
HOURS = Bounds(above=0, most=10_000)
"""Of a cluster's job."""


def or_zero(bounds: Bounds) -> Bounds:
    """The same from 0 on, which stands for none, or for all."""
    return Bounds(0, bounds.most)
