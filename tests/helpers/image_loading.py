"""What it takes to load images, and how fast a training gets them: seconds, memory, images a second.

    PYTHONPATH=.:tests/helpers python -m image_loading [--source folder|tar|npy] [--n N ...] [--side PIXELS]
        [--workers W ...]

Makes N colour images in a temporary folder: PNGs in files or in tar files of 10,000, or one array. For each number of
workers, processes of their own load them: into an empty cache, on as many cores as there are workers; from the cache;
and then as many at once take an epoch of batches of 128, as a training does, each in an order of its own. For a folder
there is a line without the cache as well. Prints the seconds of `load` by the clock and of the processors, how much
more memory the process held at most than before it, and images a second of all workers with the memory that one of
them held more than before at the end of it. Of a tar file 1,000 pictures differ, each stands there many times.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from benchmarks.data.cache.mapped import MOST_RESIDENT
from benchmarks.machine.environment import cpu_name

DIFFERENT, A_SHARD = 1000, 10_000
MOST_SECONDS = 20.0
"""Of an epoch, after which it is not read to its end."""
HEAD = (
    f"{'images':>10} {'workers':>8} {'':16} {'load s':>8} {'processor s':>12} {'peak more MiB':>14} "
    f"{'images/s':>10} {'held more MiB':>14}"
)

WORKER = """
import json, os, re, sys, time
import torch
from benchmarks.data import batches, load, model_input, picked
from models.likelihoods import LogisticMixtureSpec

def held(*kinds):
    said = open("/proc/self/status").read()
    return sum(int(re.search(rf"{kind}:\\s+(\\d+)", said).group(1)) for kind in kinds) / 1024

name, workers, most = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
torch.set_num_threads(1)
before, start, busy = held("VmRSS"), time.perf_counter(), sum(os.times()[:4])
data = load(name)
found = {"seconds": time.perf_counter() - start, "busy": sum(os.times()[:4]) - busy, "peak": held("VmHWM") - before}
print("ready", flush=True)
sys.stdin.readline()
order, spec, done, start = batches(len(data.train), 128, os.getpid()), LogisticMixtureSpec(10), 0, time.perf_counter()
while done < len(data.train) - 127 and time.perf_counter() - start < most:
    model_input(picked(data.train, next(order)), spec, 0)
    done += 128
found |= {"rate": done / (time.perf_counter() - start), "held": held("VmRSS") - before}
print(json.dumps(found))
"""


def picture(index: int, side: int) -> bytes:
    """A PNG of smooth noise, so that it has about the size of a photograph's."""
    coarse = max(1, side // 4)
    noise = np.random.default_rng(index).integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def folder(place: Path, n: int, side: int) -> str:
    """One file a picture."""
    place.mkdir()
    for index in range(n):
        (place / f"{index:07}.png").write_bytes(picture(index, side))
    return f"folder:{place}"


def tar(place: Path, n: int, side: int) -> str:
    """Shards of tar files."""
    place.mkdir()
    pictures = [picture(index, side) for index in range(min(n, DIFFERENT))]
    for first in range(0, n, A_SHARD):
        with tarfile.open(place / f"{first // A_SHARD:05}.tar", "w") as shard:
            for index in range(first, min(n, first + A_SHARD)):
                info = tarfile.TarInfo(f"{index:07}.png")
                info.size = len(content := pictures[index % DIFFERENT])
                shard.addfile(info, io.BytesIO(content))
    return f"tar:{place}"


def npy(place: Path, n: int, side: int) -> str:
    """An array (N, H, W, 3) of bytes."""
    place.mkdir()
    array = np.lib.format.open_memmap(place / "images.npy", "w+", np.uint8, (n, side, side, 3))
    for first in range(0, n, DIFFERENT):
        part = array[first : first + DIFFERENT]
        part[...] = np.random.default_rng(first).integers(0, 256, part.shape, dtype=np.uint8)
    array.flush()
    return f"npy:{place}"


SOURCES = {"folder": folder, "tar": tar, "npy": npy}


def run(name: str, workers: int, at_once: int, epoch: bool, **variables: str) -> list[dict[str, float]]:
    """What so many fresh processes say of loading, each for itself, and of an epoch, which they begin together."""
    command = [sys.executable, "-c", WORKER, name, str(workers), str(MOST_SECONDS if epoch else 0)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=os.environ | variables, **pipes) for _ in range(at_once)]
    for process in started:
        process.stdout.readline()
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{name}: a process that loads it failed")
    return [json.loads(text) for text in said]


def lines(source: str, n: int, side: int, workers: int) -> Iterator[str]:
    """The measurements of so many images, in words."""
    with tempfile.TemporaryDirectory() as made:
        name, cache = SOURCES[source](Path(made) / "images", n, side), str(Path(made) / "cache")
        phases = {"without a cache": {"VAEBENCH_CACHE": "off"}} if source == "folder" else {}
        for what, variables in (phases | {"first": {}, "second": {}}).items():
            epoch = what == "second"
            found = run(name, workers, workers if epoch else 1, epoch, XDG_CACHE_HOME=cache, **variables)
            one = found[0]
            loaded = f"{one['seconds']:8.2f} {one['busy']:12.2f} {one['peak']:14.0f}"
            read = f" {sum(each['rate'] for each in found):10,.0f} {one['held']:14.0f}" if epoch else ""
            yield f"{n:10,} {workers:8} {what:16} {loaded}{read}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the loading of images.")
    parser.add_argument("--source", choices=SOURCES, default="folder")
    parser.add_argument("--n", type=int, nargs="+", default=[20_000])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    chosen = parser.parse_args()
    print(f"{chosen.source}, {chosen.side}x{chosen.side} colour; a process keeps {MOST_RESIDENT >> 20} MiB of a file")
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores; torch {torch.__version__}, Pillow {PIL.__version__}")
    print(HEAD)
    for n in chosen.n:
        for workers in chosen.workers:
            for line in lines(chosen.source, n, chosen.side, workers):
                print(line, flush=True)


if __name__ == "__main__":
    main()
