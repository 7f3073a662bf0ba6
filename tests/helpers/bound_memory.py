"""Prints, as JSON, what the importance-weighted bound of a small NVAE needs: run by a test in a process of its own.

Arguments: the number of images, then numbers of draws K. For each K in turn: the process's peak memory so far in MiB,
whether every image has elbo_sampled <= iwae, and the mean bound in nats.
"""

import dataclasses
import json
import sys

import torch

from benchmarks.data import keyed_generator
from benchmarks.machine.peak import highest
from benchmarks.training.cost import macs_per_image
from kernels.backends import best_for
from models.elbo import importance_weighted
from models.nvae import NVAE
from models.nvae.presets import PRESETS
from models.output import Draw, ImageShape


def small_nvae(image: ImageShape) -> NVAE:
    """The tiny preset's two groups on smaller images, untrained."""
    setup = PRESETS["nvae-tiny"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NVAE(dataclasses.replace(setup.config, pad=0), image, setup.likelihood, best_for("cpu")).eval()


def main() -> None:
    """Bounds of all images at once for every K, in the order given."""
    images, *draws = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    image = ImageShape(1, 16, 16)
    model = small_nvae(image)
    x = torch.rand(images, 1, 16, 16, generator=keyed_generator(0, "images")).round()
    found = []
    for k in draws:
        bounds = importance_weighted(model, x, Draw(torch.tensor(0)), k)
        peak = highest(torch.device("cpu")) / 2**20  # `ru_maxrss` would begin with the parent's, kept over exec
        jensen = bool((bounds.elbo_sampled <= bounds.iwae).all())
        found.append({"k": k, "peak": peak, "jensen": jensen, "iwae": bounds.iwae.mean().item()})
    print(json.dumps({"macs": macs_per_image(model, image), "draws": found}))


if __name__ == "__main__":
    main()
