"""Loads the C kernels where there is a compiler; without one the CPU path does without.

The library is built once per source, compiler and processor into the user's cache folder (`build`). The environment
variable VAEBENCH_CPU_ARCH names another processor to build for than this one, as the compiler's `-march` takes it:
`x86-64-v3` is AVX2.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import operator
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.cpu.build import BuildError, Place, build, place, remember
from kernels.cpu.structures import Cell, Form, Layer, Raw, Shape, TrainableCell

FOLDER = Path(__file__).parent / "source"
SOURCES = tuple(sorted(FOLDER.glob("*.c")))
HEADERS = tuple(sorted(FOLDER.glob("*.h")))
FLAGS = (
    *("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-shared", "-fPIC"),
)
OPENMP = "-fopenmp"
ARCHITECTURE = "VAEBENCH_CPU_ARCH"
COMPILERS = ("cc", "gcc", "clang")
SMALLEST_SHARE = 1 << 14
"""Elements below which another thread costs more than it saves."""
FLOAT32 = {torch.float32}
UP_TO_FLOAT32 = {torch.float32, torch.float16, torch.bfloat16}
_DTYPE, _ON_CPU = operator.attrgetter("dtype"), operator.attrgetter("is_cpu")


def compiler() -> str | None:
    """Path of a C compiler, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def flags() -> tuple[str, ...]:
    """What the compiler is given besides the sources."""
    return (f"-march={os.environ.get(ARCHITECTURE) or 'native'}", *FLAGS)


def processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def identity(cc: str) -> str:
    """Hash of what the library depends on: source, compiler and processor."""
    found = Path(cc).stat()
    program = f"{cc} {found.st_size} {found.st_mtime_ns}"
    parts = (*(path.read_text() for path in SOURCES + HEADERS), *flags(), program, processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def folders() -> list[Path]:
    """Where libraries may be kept: in the user's cache folder, else in one for temporary files."""
    cache = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home
        cache = cache or str(Path.home() / ".cache")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    temporary = Path(tempfile.gettempdir()) / f"vaebench-{user}"
    return [*([Path(cache) / "vaebench" / "native"] if cache else []), temporary]


@dataclass(frozen=True)
class Found:
    """The loaded library or None, and in one line why there is none, or why it lies elsewhere than usual."""

    library: ctypes.CDLL | None
    note: str = ""


@functools.cache
def load() -> Found:
    """The library: one that was built before and is as it was, else built now, once."""
    cc = compiler()
    if cc is None:
        return Found(None, f"no C compiler ({', '.join(COMPILERS)}) was found")
    try:
        target = place(folders(), identity(cc))
        for path in target.libraries():
            kept = _opened(path)
            if kept is not None:
                return Found(kept, target.note)
        remembered = target.remembered()
        if remembered is not None:
            return Found(None, remembered)
        return Found(_built(cc, target), target.note)
    except BuildError as error:
        return Found(None, str(error))
    except (OSError, RuntimeError) as error:
        return Found(None, f"they could not be built or loaded: {error}")


def seconds_to_build() -> float | None:
    """Seconds of a compilation, which a machine does once; None where there is no compiler, or it fails."""
    cc = compiler()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        try:
            _built(cc or "", Place(Path(folder), "timed"))
        except (BuildError, OSError):
            return None
        return time.perf_counter() - begun


def _built(cc: str, target: Place) -> ctypes.CDLL:
    """The library as it is compiled now; without OpenMP, and so with one thread, where the compiler has none.

    Raises:
        BuildError: it cannot be compiled or loaded.
    """
    path = build([cc, *flags(), *map(str, SOURCES), "-lm"], ([OPENMP], []), target)
    built = _opened(path)
    if built is None:
        reason = f"what {cc} built cannot be loaded"
        remember(target, reason)
        raise BuildError(reason)
    return built


def _opened(path: Path) -> ctypes.CDLL | None:
    """The library in a file; None, and the file removed, where it is none of ours."""
    try:
        return declared(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        path.unlink(missing_ok=True)
        return None


def library() -> ctypes.CDLL | None:
    """The loaded library, or None where it cannot be built."""
    return load().library


def instruction_set() -> str | None:
    """Vector instructions that the loaded library was built for ("AVX-512", "AVX2", "NEON", ...); None without one."""
    found = library()
    return None if found is None else found.vaebench_instruction_set().decode()


def why_missing() -> str | None:
    """Why the C kernels are not used here, in one line; None where they are."""
    found = load()
    return found.note if found.library is None else None


def why_elsewhere() -> str | None:
    """Why the C kernels are kept in another folder than usual, in one line; None where they are not."""
    found = load()
    return found.note or None if found.library is not None else None


def declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of what its functions take and return."""
    address, integer, threads, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32
    single, double = ctypes.c_float, ctypes.c_double
    three, four, trainable = (address,) * 3, (address,) * 4, ctypes.POINTER(TrainableCell)
    signatures: dict[str, tuple[object, ...]] = {
        "normals": (address, *(integer,) * 5, threads),
        "gaussian": (Raw, Raw, Form, address, flag, *(integer,) * 3, *three, integer, Shape, threads),
        "gaussian_backward": (Raw, Raw, Form, *three, Raw, Raw, integer, Shape, threads),
        "mixture": (*four, *(integer,) * 4, flag, single, threads),
        "mixture_mean": (address, address, *(integer,) * 4, flag, threads),
        "bernoulli": (*four, integer, integer, threads),
        "lit_rows": (*four, *(integer,) * 3, threads),
        "lit_rows_backward": (*three, *(integer,) * 3, threads),
        "below": (ctypes.c_uint32, address, address, integer),
        "trainable_cell": (trainable, *four, flag, flag, threads),
        "trainable_cell_backward": (trainable, *three, *three, threads),
        "kept_floats": (trainable,),
        "largest_between": (trainable,),
        "norm": (address, address, *(integer,) * 3, address, address, *(double,) * 3, *three),
        "pack": (Layer, *four),
        "packed_size": (Layer,),
        "cell": (ctypes.POINTER(Cell), *three, threads),
        "weight_norm": (address, integer, single, threads),
        "weight_norm_backward": (address, integer, single, threads),
        "spectral_norms": (address, integer, integer, single, threads),
        "spectral_norms_backward": (address, integer, single, threads),
        "adamax": (address, integer, double, double, *(single,) * 3, threads),
        "gaussian_sample": (address, address, integer, integer, single, address, *(integer,) * 3, threads),
        "to_planes": (address, integer, integer, address, *(integer,) * 3, threads),
        "to_pixels": (address, address, *(integer,) * 3, threads),
        "instruction_set": (),
    }
    results = {"bernoulli": flag, "instruction_set": ctypes.c_char_p}
    results |= dict.fromkeys(("packed_size", "kept_floats", "largest_between"), integer)
    for name, arguments in signatures.items():
        function = getattr(loaded, f"vaebench_{name}")
        function.argtypes, function.restype = arguments, results.get(name)
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


def takes(*tensors: Tensor, half: bool = False, autocast: bool = False) -> bool:
    """Whether the C kernels are there and take these tensors: float32 on the CPU, not under autocast.

    With `half`, 16-bit floats as well, which the caller widens; with `autocast`, under autocast too.
    """
    if not (set(map(_DTYPE, tensors)) <= (UP_TO_FLOAT32 if half else FLOAT32) and all(map(_ON_CPU, tensors))):
        return False
    return (autocast or not torch.is_autocast_enabled("cpu")) and library() is not None


def threads_for(values: int, parts: int | None = None) -> int:
    """How many of torch's threads the work on so many values, in so many parts, is worth."""
    most = torch.get_num_threads() if parts is None else min(torch.get_num_threads(), parts)
    return max(1, min(most, values // SMALLEST_SHARE))
