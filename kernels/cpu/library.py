"""Builds and loads the C kernels where there is a compiler; without one the CPU path does without.

The library is built once per source, compiler and processor into the user's cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.ops import GaussianForm

FOLDER = Path(__file__).parent / "source"
SOURCES = tuple(sorted(FOLDER.glob("*.c")))
HEADERS = tuple(sorted(FOLDER.glob("*.h")))
FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-shared", "-fPIC"),
)
OPENMP = "-fopenmp"
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
    identity = "\0".join((*(path.read_text() for path in SOURCES + HEADERS), *FLAGS, cc, processor()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vaebench" / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"


def build(cc: str, path: Path) -> None:
    """Compile into `path`, atomically; without OpenMP, and so with one thread, where the compiler has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        command = [cc, *FLAGS, "-o", str(partial), *map(str, SOURCES), "-lm"]
        for openmp in ([OPENMP], []):
            done = subprocess.run([*command, *openmp], capture_output=True, timeout=120, check=not openmp)
            if done.returncode == 0:
                break
        partial.replace(path)


class Form(ctypes.Structure):
    """How raw values become Gaussians; 0 stands for no clamp and no floor."""

    _fields_ = (("clamp", ctypes.c_float), ("floor", ctypes.c_float), ("residual", ctypes.c_int32))


class Raw(ctypes.Structure):
    """Raw mean and log scale, and the distance of two samples; null pointers stand for zeros."""

    _fields_ = (("mean", ctypes.c_void_p), ("log_scale", ctypes.c_void_p), ("row", ctypes.c_int64))


@functools.cache
def load() -> ctypes.CDLL | str:
    """The loaded library, or in one line why there is none."""
    cc = compiler()
    if cc is None:
        return f"no C compiler ({', '.join(COMPILERS)}) was found"
    try:
        path = library_path(cc)
        if not path.exists():
            build(cc, path)
        return declared(ctypes.CDLL(str(path)))
    except (OSError, RuntimeError) as error:
        return f"they could not be built or loaded: {error}"
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        return f"{cc} could not build them: {said[0] if said else error}"


def library() -> ctypes.CDLL | None:
    """The loaded library, or None where it cannot be built."""
    found = load()
    return None if isinstance(found, str) else found


def why_missing() -> str | None:
    """Why the C kernels are not used here, in one line; None where they are."""
    found = load()
    return found if isinstance(found, str) else None


def declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of what its Gaussian, noise and mixture functions take."""
    integer, address, threads = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
    forward = (Raw, Raw, Form, address, ctypes.c_int32, *(integer,) * 3, *(address,) * 3)
    loaded.vaebench_gaussian.argtypes = (*forward, integer, integer, threads)
    loaded.vaebench_gaussian_backward.argtypes = (Raw, Raw, Form, *(address,) * 7, integer, integer, threads)
    loaded.vaebench_normals.argtypes = (address, *(integer,) * 5, threads)
    loaded.vaebench_mixture.argtypes = (*(address,) * 4, *(integer,) * 4, ctypes.c_float, threads)
    loaded.vaebench_mixture.restype = ctypes.c_int
    return loaded


def loaded() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: it cannot be built here.
    """
    found = library()
    if found is None:
        raise RuntimeError("the C kernels need a C compiler (cc, gcc or clang); without one, layers run one by one")
    return found


def refuse_second_order() -> None:
    """Raise RuntimeError where gradients of gradients are asked for (`create_graph=True`)."""
    if torch.is_grad_enabled():
        raise RuntimeError("the CPU path has no second-order gradients; build the model with REFERENCE")


def threads_for(samples: int, size: int) -> int:
    """How many of torch's threads the work on samples of that many elements is worth."""
    return max(1, min(torch.get_num_threads(), samples, samples * size // SMALLEST_SHARE))


def normals(lib: ctypes.CDLL, seed: Tensor, group: int, shape: torch.Size, first_sample: int) -> Tensor:
    """`kernels.reference.philox.normals` in float32 on the CPU: the same words, normals within 1e-6."""
    noise = torch.empty(shape)
    samples = shape[0]
    size = noise.numel() // max(1, samples)
    lib.vaebench_normals(noise.data_ptr(), int(seed), group, first_sample, samples, size, threads_for(samples, size))
    return noise


class Parameters(NamedTuple):
    """Raw mean and log scale (B, ...) in float32 whose samples are contiguous and lie equally far apart."""

    mean: Tensor
    log_scale: Tensor

    def raw(self) -> Raw:
        """The parameters as the C kernels take them."""
        row = self.mean.stride(0) if len(self.mean) > 1 else 0
        return Raw(self.mean.data_ptr(), self.log_scale.data_ptr(), row)


def parameters(mean: Tensor, log_scale: Tensor) -> Parameters:
    """The parameters as the C kernels read them; the halves of a convolution's output are read in place."""
    pair = [value.float() for value in (mean, log_scale)]
    in_rows = all(value[:1].is_contiguous() for value in pair) and pair[0].stride(0) == pair[1].stride(0)
    return Parameters(*(pair if in_rows else [value.contiguous() for value in pair]))


def pointer(tensor: Tensor | None) -> int | None:
    """Address of the first value."""
    return None if tensor is None else tensor.data_ptr()


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
    log_ratio: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """z, KL (B,), the noise used, and log q(z) - log p(z) (B,) if asked for; float32 contiguous.

    `key` is (seed, group, first sample).
    """
    shape = posterior.mean.shape
    z, kl, ratio = torch.empty(shape), torch.zeros(shape[0]), torch.zeros(shape[0]) if log_ratio else None
    eps = torch.empty(shape) if noise is None else noise.float().contiguous()
    samples, size = shape[0], z.numel() // max(1, shape[0])
    lib.vaebench_gaussian(
        posterior.raw(),
        Raw() if prior is None else prior.raw(),
        form_of(form),
        eps.data_ptr(),
        noise is None,
        *key,
        *(pointer(one) for one in (z, kl, ratio)),
        samples,
        size,
        threads_for(samples, size),
    )
    return z, kl, eps, ratio


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
    samples, size = len(noise), noise.numel() // max(1, len(noise))
    gradients = [torch.empty(noise.shape) for _ in range(2 if prior is None else 4)]
    upstream = noise, grad_z.float().contiguous(), grad_kl.float().contiguous()
    lib.vaebench_gaussian_backward(
        posterior.raw(),
        Raw() if prior is None else prior.raw(),
        form_of(form),
        *(pointer(one) for one in (*upstream, *[*gradients, None, None][:4])),
        samples,
        size,
        threads_for(samples, size),
    )
    return tuple(gradients)


def mixture(lib: ctypes.CDLL, parameters: Tensor, x: Tensor, bits: int, gradient: Tensor | None) -> Tensor:
    """Log p(x) (B,) float64 of the logistic mixture; contiguous float32 tensors (B, P, H, W) and (B, C, H, W).

    Writes the gradient of the parameters for unit upstream into `gradient`, if there is one.
    """
    batch, colours, height, width = x.shape
    plane, channels = height * width, parameters.shape[1]
    components = channels // (10 if colours == 3 else 3)
    log_prob = torch.zeros(batch, dtype=torch.float64)
    failed = lib.vaebench_mixture(
        *(pointer(one) for one in (parameters, x, log_prob, gradient)),
        batch,
        components,
        colours,
        plane,
        1.0 / (2**bits - 1),
        threads_for(batch, channels * plane),
    )
    if failed:
        raise MemoryError("no memory for the components of the logistic mixture")
    return log_prob
