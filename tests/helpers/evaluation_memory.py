"""What it takes to score samples against many real images: seconds and memory, part by part.

    PYTHONPATH=.:tests/helpers python -m evaluation_memory [--n N ...] [--scored B] [--samples S] [--held H]

Makes N colour images of 32x32 in a file that is mapped, as decoded data sets are, and S others as samples. Prints, for
each N, the seconds of the processor and how much more memory the process held at most than before the part: the
importance-weighted bound (K = 1) of the first B of them under a small VAE that was not trained, features and moments of
all, and all distances of the samples to them. Features are 32 random projections of the pixels: the cheapest extractor
there is. At most H images are compared in pairs; as many as in an evaluation, unless it is said.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.base.batches import in_batches
from benchmarks.data import keyed_generator
from benchmarks.data.cache.mapped import mapped
from benchmarks.evaluation.evaluate import test_bounds
from benchmarks.evaluation.inputs import Inputs
from benchmarks.machine.environment import cpu_name
from benchmarks.machine.peak import held, highest
from benchmarks.metrics import features, sample_quality
from benchmarks.metrics.features import Extractor, Network, cached_features
from benchmarks.speed.target import resolve

DIMS, SIDE, CPU = 32, 32, torch.device("cpu")
CHUNK = 10_000


class Projection(Network):
    """Random projections of the pixels."""

    def __init__(self, values: int) -> None:
        super().__init__("projection", ["features"])
        weight = torch.randn(values, DIMS, generator=keyed_generator(0, "projection"), dtype=torch.float64)
        self.weight = torch.nn.Parameter(weight / values**0.5)

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Features (B, D)."""
        return ((input.flatten(1).double() / 255) @ self.weight,)


def images(path: Path, n: int) -> Tensor:
    """So many images of noise, mapped."""
    shape = (n, 3, SIDE, SIDE)
    with path.open("wb") as file:
        for first in range(0, n, CHUNK):
            part = (min(CHUNK, n - first), *shape[1:])
            file.write(np.random.default_rng(first).integers(0, 256, part, dtype=np.uint8).data)
    return mapped(path, shape)


@contextmanager
def measured(n: int, what: str) -> Iterator[None]:
    """Print what the block took."""
    before, start = held(CPU), time.process_time()
    yield
    print(f"{n:10,} {what:24} {time.process_time() - start:12.1f} {(highest(CPU) - before) / 2**20:14.0f}", flush=True)


def measure(n: int, scored: int, samples: Tensor, folder: Path) -> None:
    """The parts of an evaluation against so many images."""
    real, quiet = images(folder / f"{n}", n), lambda *said: None
    (target,) = resolve("patches", ["vae"])
    trial = target.overridden(["evaluation.iwae_samples=1"]).trial
    model = target.build(CPU).eval()
    with measured(n, f"bound of {scored:,}"):
        x = Inputs.of(real[:scored], trial.likelihood_spec, keyed_generator(0, "bits"), CPU)
        test_bounds(model, trial, x, quiet, "", in_batches)
    extractor = Extractor("projection", "1", "", "", DIMS, (3,), SIDE, Projection(samples[0].numel()))
    with measured(n, "features and moments"):
        cached_features(real, extractor, folder)
    with measured(n, "distances"):
        rows = sample_quality.sample_metrics(samples, real, extractor, folder)
    print(" " * 11 + ", ".join(f"{row.metric} {row.value:.4g}" for row in rows if row.value is not None))
    (folder / f"{n}").unlink()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure evaluations against many images.")
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--scored", type=int, default=2_000)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--held", type=int, default=features.MOST_COMPARED)
    chosen = parser.parse_args()
    features.MOST_COMPARED = sample_quality.MOST_COMPARED = chosen.held
    torch.set_num_threads(1)
    print(
        f"{chosen.samples:,} samples, {chosen.held:,} images compared in pairs; {DIMS} features, {SIDE}x{SIDE} colour"
    )
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}")
    print(f"{'images':>10} {'':24} {'processor s':>12} {'peak more MiB':>14}")
    with tempfile.TemporaryDirectory() as made:
        samples = images(Path(made) / "samples", chosen.samples).clone()
        for n in chosen.n:
            measure(n, min(n, chosen.scored), samples, Path(made))


if __name__ == "__main__":
    main()
