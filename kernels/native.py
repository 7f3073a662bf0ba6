"""Builds and loads the C kernels of `native.c` where there is a compiler; without one the CPU path does without.

The library is built once per source, compiler and processor into the user's cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).parent / "native.c"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
SMALLEST_SHARE = 1 << 14
"""Elements below which another thread costs more than it saves."""


def compiler() -> str | None:
    """Path of a C compiler, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def library_path(cc: str) -> Path:
    """Where the library for this source, compiler and processor is kept."""
    identity = "\0".join((SOURCE.read_text(), *FLAGS, cc, processor()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vaebench" / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"


def build(cc: str, path: Path) -> None:
    """Compile into `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        command = [cc, *FLAGS, "-o", str(partial), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        partial.replace(path)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None where it cannot be built."""
    cc = compiler()
    if cc is None:
        return None
    try:
        path = library_path(cc)
        if not path.exists():
            build(cc, path)
        loaded = ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    loaded.vaebench_normals.argtypes = (pointer, *(integer,) * 5)
    loaded.vaebench_normals.restype = None
    loaded.vaebench_mixture.argtypes = (*(pointer,) * 4, *(integer,) * 4, ctypes.c_float)
    loaded.vaebench_mixture.restype = ctypes.c_int
    return loaded


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child makes its own."""
    return ThreadPoolExecutor(os.cpu_count())


def in_shares(work: Callable[[int, int], None], samples: int, size: int) -> None:
    """Call work(start, count) for shares of the samples, on as many threads as torch uses and the work is worth."""
    shares = max(1, min(torch.get_num_threads(), samples, samples * size // SMALLEST_SHARE))
    bounds = [samples * share // shares for share in range(shares + 1)]
    if shares == 1:
        work(0, samples)
        return
    pool = _pool(os.getpid())
    jobs = [pool.submit(work, start, end - start) for start, end in itertools.pairwise(bounds)]
    for job in jobs:
        job.result()


def normals(lib: ctypes.CDLL, seed: Tensor, group: int, shape: torch.Size, first_sample: int) -> Tensor:
    """`kernels.philox.normals` in float32 on the CPU: the same words, normals within 1e-6."""
    noise = torch.empty(shape)
    samples = shape[0]
    size, key = noise.numel() // max(1, samples), int(seed)

    def work(start: int, count: int) -> None:
        lib.vaebench_normals(noise.data_ptr() + 4 * start * size, key, group, first_sample + start, count, size)

    in_shares(work, samples if size else 0, size)
    return noise


def mixture(lib: ctypes.CDLL, parameters: Tensor, x: Tensor, bits: int, gradient: Tensor | None) -> Tensor:
    """Log p(x) (B,) float64 of the logistic mixture; contiguous float32 tensors (B, P, H, W) and (B, C, H, W).

    Writes the gradient of the parameters for unit upstream into `gradient`, if there is one.
    """
    batch, colours, height, width = x.shape
    plane, channels = height * width, parameters.shape[1]
    components = channels // (10 if colours == 3 else 3)
    log_prob = torch.zeros(batch, dtype=torch.float64)

    def work(start: int, count: int) -> None:
        at = start * channels * plane * 4
        failed = lib.vaebench_mixture(
            parameters.data_ptr() + at,
            x.data_ptr() + start * colours * plane * 4,
            log_prob.data_ptr() + start * 8,
            None if gradient is None else gradient.data_ptr() + at,
            count,
            components,
            colours,
            plane,
            1.0 / (2**bits - 1),
        )
        if failed:
            raise MemoryError("no memory for the components of the logistic mixture")

    in_shares(work, batch, channels * plane)
    return log_prob
