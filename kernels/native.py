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
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.ops import GaussianForm

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


class Form(ctypes.Structure):
    """How raw values become Gaussians; 0 stands for no clamp and no floor."""

    _fields_ = (("clamp", ctypes.c_float), ("floor", ctypes.c_float), ("residual", ctypes.c_int32))


class Raw(ctypes.Structure):
    """Raw mean and log scale, and the distance of two samples; null pointers stand for zeros."""

    _fields_ = (("mean", ctypes.c_void_p), ("log_scale", ctypes.c_void_p), ("row", ctypes.c_int64))


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
    loaded.vaebench_gaussian.argtypes = (Raw, Raw, Form, pointer, ctypes.c_int32, *(integer,) * 3, *(pointer,) * 2)
    loaded.vaebench_gaussian.argtypes += (integer, integer)
    loaded.vaebench_gaussian.restype = None
    loaded.vaebench_gaussian_backward.argtypes = (Raw, Raw, Form, *(pointer,) * 7, integer, integer)
    loaded.vaebench_gaussian_backward.restype = None
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


class Parameters(NamedTuple):
    """Raw mean and log scale (B, ...) in float32 whose samples are contiguous and lie equally far apart."""

    mean: Tensor
    log_scale: Tensor

    def raw(self, start: int) -> Raw:
        """The parameters from a sample on, as the C kernels take them."""
        row = self.mean.stride(0) if len(self.mean) > 1 else 0
        return Raw(at(self.mean, row * start), at(self.log_scale, row * start), row)


def parameters(mean: Tensor, log_scale: Tensor) -> Parameters:
    """The parameters as the C kernels read them; the halves of a convolution's output are read in place."""
    pair = [value.float() for value in (mean, log_scale)]
    in_rows = all(value[:1].is_contiguous() for value in pair) and pair[0].stride(0) == pair[1].stride(0)
    return Parameters(*(pair if in_rows else [value.contiguous() for value in pair]))


def at(tensor: Tensor | None, offset: int) -> int | None:
    """Address of the float32 at that offset."""
    return None if tensor is None else tensor.data_ptr() + 4 * offset


def form_of(form: GaussianForm) -> Form:
    """The form as the C kernels take it."""
    return Form(form.soft_clamp or 0.0, form.scale_floor, form.residual)


def gaussian(
    lib: ctypes.CDLL,
    posterior: Parameters,
    prior: Parameters | None,
    form: GaussianForm,
    noise: Tensor | None,
    key: tuple[int, int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """z, KL (B,) and the noise used, float32 contiguous; `key` is (seed, group, first sample)."""
    shape = posterior.mean.shape
    z, kl = torch.empty(shape), torch.zeros(shape[0])
    eps = torch.empty(shape) if noise is None else noise.float().contiguous()
    size = z.numel() // max(1, shape[0])

    def work(start: int, count: int) -> None:
        first = start * size
        raws = posterior.raw(start), Raw() if prior is None else prior.raw(start), form_of(form)
        seed, group, sample = key[0], key[1], key[2] + start
        draws = at(eps, first), noise is None, seed, group, sample
        lib.vaebench_gaussian(*raws, *draws, at(z, first), at(kl, start), count, size)

    in_shares(work, shape[0] if size else 0, size)
    return z, kl, eps


def gaussian_backward(
    lib: ctypes.CDLL,
    posterior: Parameters,
    prior: Parameters | None,
    form: GaussianForm,
    noise: Tensor,
    grad_z: Tensor,
    grad_kl: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of mean and log scale, and of those of the prior if there is one, float32 contiguous."""
    shape, size = noise.shape, noise.numel() // max(1, len(noise))
    gradients = [torch.empty(shape) for _ in range(2 if prior is None else 4)]
    outputs = [*gradients, None, None][:4]
    grad_z, grad_kl = grad_z.float().contiguous(), grad_kl.float().contiguous()

    def work(start: int, count: int) -> None:
        first = start * size
        raws = posterior.raw(start), Raw() if prior is None else prior.raw(start), form_of(form)
        upstream = at(noise, first), at(grad_z, first), at(grad_kl, start)
        lib.vaebench_gaussian_backward(*raws, *upstream, *(at(one, first) for one in outputs), count, size)

    in_shares(work, shape[0] if size else 0, size)
    return tuple(gradients)


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
