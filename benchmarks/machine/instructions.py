"""Vector instructions that our kernels and torch's own libraries use: the processor's, or fewer, to stand for others.

Every library reads its limit from the environment when it starts, so a process limits those that it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import torch

from benchmarks.base.children import environment
from benchmarks.base.errors import UserError
from kernels.cpu import library

NATIVE, AVX2, AVX512 = "native", "avx2", "avx512"
NAMES = {AVX2: "AVX2", AVX512: "AVX-512"}
FLAGS = {AVX2: "avx2", AVX512: "avx512f"}
"""What Linux calls them in /proc/cpuinfo."""
LIMITS: dict[str, dict[str, str]] = {
    AVX512: {},
    AVX2: {
        library.ARCHITECTURE: "x86-64-v3",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    },
}
"""What limits our kernels, oneDNN, ATen and the vectors of torch.compile, MKL, and the compiler that that calls."""
OF_TORCH = {"AVX2": NAMES[AVX2], "AVX512": NAMES[AVX512]}
"""Our names for what torch calls its capabilities; "DEFAULT" says little."""


def available() -> list[str]:
    """Instruction sets of this processor that can be asked for, the widest last."""
    flags = library.processor().split()
    return [name for name, flag in FLAGS.items() if flag in flags]


def limits_of(name: str) -> Mapping[str, str]:
    """The environment variables that limit a process to that set.

    Raises:
        UserError: the processor does not have it.
    """
    if name == NATIVE:
        return {}
    if name not in available():
        has = ", ".join([NATIVE, *available()])
        raise UserError(f"--instructions {name}: expected what this processor has ({has}); leave the flag out")
    return LIMITS[name]


def in_force(name: str) -> bool:
    """Whether this process runs under that limit; "native" is whatever its environment says.

    Raises:
        UserError: the processor does not have it.
    """
    wanted = limits_of(name)
    return name == NATIVE or all(os.environ.get(variable) == wanted.get(variable) for variable in LIMITS[AVX2])


def under(name: str, words: Sequence[str]) -> int:
    """The exit code of this command line in a process under that limit."""
    wanted = limits_of(name)
    kept = {variable: value for variable, value in environment(None).items() if variable not in LIMITS[AVX2]}
    return subprocess.run([sys.executable, "-m", "benchmarks", *words], env={**kept, **wanted}, check=False).returncode


def present() -> str:
    """What this process computes with, for the record: "AVX2, by limit on an AVX-512 processor"."""
    ours, torchs = library.instruction_set(), torch.backends.cpu.get_cpu_capability()
    theirs = OF_TORCH.get(torchs)
    found = ours or theirs or torchs
    if ours and theirs and ours != theirs:
        found = f"{ours} in our kernels, {theirs} in torch"
    limited = AVX512 in available() and NAMES[AVX2] in found
    return f"{found}, by limit on an {NAMES[AVX512]} processor" if limited else found


def is_avx512() -> bool:
    """Whether our kernels and torch both use AVX-512."""
    return present() == NAMES[AVX512]
