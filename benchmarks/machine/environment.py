"""What machine and software a number comes from, and what the machine is doing right now."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.base.errors import UserError
from benchmarks.machine import instructions
from benchmarks.records.record import Environment
from kernels.backends import describe
from kernels.cpu import library

ROOT = Path(__file__).resolve().parents[2]
CODE = ("kernels", "models", "benchmarks", "pyproject.toml")  # what "dirty" is asked of
DEVICES = re.compile(r"cpu|cuda(:[0-9]{1,3})?")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What x86 and ARM processors call it on Linux."""


def version(package: str) -> str | None:
    """Installed version of `package`, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def suite_version() -> str:
    """Version of this suite."""
    return version("vaebench") or "0+unknown"


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def cpu_name() -> str:
    """Model name of the processor."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(*fields: str) -> str:
    """The first of these fields in /proc/cpuinfo; empty where there is none."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in fields:
                return value.strip()
    return ""


def bfloat16_by_default(device: torch.device) -> bool:
    """Whether models train in bfloat16 there unless told otherwise: on GPUs that have it, and on those elsewhere."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return True
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether `device` is a CPU that says what it can do, and bfloat16 arithmetic is not in it."""
    flags = _cpu_info("flags", "Features").split()
    return device.type == "cpu" and bool(flags) and not BFLOAT16_FLAGS & set(flags)


def load_average() -> float | None:
    """Load of the machine over the last minute, or None where it cannot be read."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one.

    Raises:
        UserError: a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: torch {torch.__version__} finds no GPU; use --device cpu, or check the driver"
        )
    if not DEVICES.fullmatch(name):
        raise UserError(f"--device: expected auto, cpu or cuda, got '{name}'")
    return torch.device(name)


def device_elsewhere(name: str) -> torch.device:
    """The device of that name on the machines of a cluster, where this one may have none; "auto" is as `choose_device`.

    Raises:
        UserError: no device's name.
    """
    elsewhere = name.startswith("cuda") and DEVICES.fullmatch(name) and not torch.cuda.is_available()
    return torch.device(name) if elsewhere else choose_device(name)


def collect(device: torch.device, threads: int, precision: str) -> Environment:
    """The environment of a run on `device`."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *CODE)
    cuda = device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=version("torchvision") or "",
        triton=version("triton"),
        torch_fidelity=version("torch-fidelity"),
        cuda=torch.version.cuda if cuda else None,
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if cuda else cpu_name(),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=threads,
        precision=precision,
        operations=describe(device),
        platform=platform.platform(),
        suite_version=suite_version(),
        commit=commit,
        dirty=bool(status) if status is not None else None,
        command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        instruction_set=None if cuda or library.library() is None else instructions.present(),
    )


def note_missing_kernels(device: torch.device) -> None:
    """Say once, on stderr, that a run on the CPU does without the C kernels, or where they had to go, and why."""
    if device.type != "cpu":
        return
    missing, elsewhere = library.why_missing(), library.why_elsewhere()
    if missing is not None:
        print(f"note: running without the C kernels: {missing}; plain PyTorch is slower", file=sys.stderr)
    elif elsewhere is not None:
        print(f"note: the C kernels: {elsewhere}", file=sys.stderr)
