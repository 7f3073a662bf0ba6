"""What it takes to load a folder of images: seconds and memory.

    PYTHONPATH=.:tests/helpers python -m image_loading [--n N] [--side PIXELS]

Makes so many colour PNGs in a temporary folder and loads them in fresh processes: without the cache, into an empty
cache, and from it. Prints the seconds of `load` by the clock and of the processors, and the most memory that the
process held before it and until its end; those that decode for it are counted in the seconds only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LOADED = """
import os, resource, sys, time
from benchmarks.data import load
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start, busy = most(), time.perf_counter(), sum(os.times()[:4])
data = load(sys.argv[1])
seconds, busy = time.perf_counter() - start, sum(os.times()[:4]) - busy
print(f"{seconds:8.2f} {busy:12.2f} {before:12.0f} {most():12.0f}  {data.content_hash[:16]}")
"""


def images(folder: Path, n: int, side: int) -> None:
    """Smooth noise, so that a PNG has about the size of a photograph's."""
    for index in range(n):
        coarse = max(1, side // 4)
        noise = np.random.default_rng(index).integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:06}.png")


def load(folder: Path, **variables: str) -> str:
    """What a fresh process says of loading the folder."""
    command = [sys.executable, "-c", LOADED, f"folder:{folder}"]
    return subprocess.run(command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the loading of a folder of images.")
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder, cache = Path(made) / "images", str(Path(made) / "cache")
        folder.mkdir()
        images(folder, chosen.n, chosen.side)
        print(f"{chosen.n} PNGs of {chosen.side}x{chosen.side}")
        print(f"{'':16} {'load s':>8} {'processor s':>12} {'before MiB':>12} {'peak MiB':>12}  hash")
        for what, variables in {"without a cache": {"VAEBENCH_CACHE": "off"}, "first": {}, "second": {}}.items():
            print(f"{what:16}", load(folder, XDG_CACHE_HOME=cache, **variables), end="", flush=True)


if __name__ == "__main__":
    main()
