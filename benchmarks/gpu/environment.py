"""Step `environment`: device, driver, clocks, versions, and what the device reaches at best."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.base.limits import memory_limit, usable_cores
from benchmarks.gpu.findings import Fields, Findings
from benchmarks.machine.environment import bfloat16_by_default, collect, version
from benchmarks.machine.process import tensor_float32
from benchmarks.profiling.kernel_timing import copy_bandwidth, time_call

QUERIES = (
    *("name", "driver_version", "vbios_version", "pstate", "memory.total", "memory.used", "persistence_mode"),
    *("compute_cap", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "clocks.applications.graphics"),
    *("power.draw", "power.limit", "power.default_limit", "power.max_limit", "temperature.gpu"),
    *("clocks_throttle_reasons.active", "ecc.mode.current", "mig.mode.current", "utilization.gpu"),
)
"""What is asked of nvidia-smi."""
SMI_SECONDS, MOST_CALLS = 10, 6
SIDE = {"cuda": 8192, "cpu": 256}
"""Of the square matrices whose product is timed."""
SECONDS = {"cuda": 0.6, "cpu": 0.05}


def run(findings: Findings) -> None:
    """Facts first, then rates."""
    findings.show((("value", "value"), ("unit", "unit"), ("p20", "p20"), ("p80", "p80"), ("size", "size")))
    device = torch.device(findings.device)
    findings.case("versions", lambda: _facts(findings, _versions(device)))
    if not findings.dry:
        findings.case("nvidia-smi", lambda: _facts(findings, _smi()))
        findings.case("device", lambda: _facts(findings, _properties()))
    findings.case("copy bandwidth", lambda: _copy(device))
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        findings.case(f"matrix product, {name}", _product_case(device, dtype, tf32))
    if not findings.dry:
        findings.case("launch of an empty kernel", _launch)
        findings.case("nvidia-smi after load", lambda: _facts(findings, _smi("after load: ")))


def _product_case(device: torch.device, dtype: torch.dtype, tf32: bool) -> Callable[[], Fields]:
    return lambda: _product(device, dtype, tf32)


def _facts(findings: Findings, facts: dict[str, Any]) -> Fields:
    """Add facts; the row itself is empty."""
    findings.facts |= facts
    return {}


def _versions(device: torch.device) -> dict[str, Any]:
    """The environment as a record holds it, and what else a number may depend on."""
    found = dataclasses.asdict(collect(device, torch.get_num_threads(), "float32"))
    del found["command"]  # this step's own process, which nobody calls
    packages = ("numpy", "torch-fidelity", "mlxtend", "jaxtyping", "beartype", "scikit-image", "scikit-learn", "pytest")
    return {
        **found,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "packages": {name: version(name) for name in packages},
        "usable cores": usable_cores(),
        "memory (GiB)": round((memory_limit() or 0) / 2**30, 1),
        "bfloat16 by default": bfloat16_by_default(device),
        "compilers": {name: shutil.which(name) for name in ("gcc", "g++", "nvcc", "ptxas", "ncu")},
    }


def _smi(prefix: str = "") -> dict[str, Any]:
    """Answers of nvidia-smi for the first device; what this version does not know is left out.

    Each call takes up to a second, so that all is asked at once, and again without what it does not know.
    """
    asked, done = list(QUERIES), None
    for _ in range(MOST_CALLS):
        command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {f"{prefix}nvidia-smi": f"gave nothing: {type(error).__name__}"}
        said = done.stdout + done.stderr
        unknown = [query for query in asked if f'"{query}"' in said]
        if done.returncode == 0 or not unknown:
            break
        asked = [query for query in asked if query not in unknown]
    lines = done.stdout.splitlines() if done else []
    if done is None or done.returncode or not lines:
        return {f"{prefix}nvidia-smi": f"gave nothing: {lines[:1]}"}
    answers = [answer.strip() for answer in lines[0].split(",")]
    return {f"{prefix}{query}": answer for query, answer in zip(asked, answers, strict=False)}


def _properties() -> dict[str, Any]:
    """What torch says of the devices."""
    found = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "devices": torch.cuda.device_count(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "multiprocessors": found.multi_processor_count,
        "L2 (MiB)": getattr(found, "L2_cache_size", 0) / 2**20,
        "memory free (GiB)": round(free / 2**30, 2),
        "memory total (GiB)": round(total / 2**30, 2),
        "architectures of torch": " ".join(torch.cuda.get_arch_list()),
    }


def _copy(device: torch.device) -> Fields:
    """Bytes read and written a second."""
    return {"value": copy_bandwidth(device), "unit": "GB/s, read and written"}


def _product(device: torch.device, dtype: torch.dtype, tf32: bool) -> Fields:
    """TFLOP/s of a product of random square matrices; multiplications and additions count."""
    side = SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    with tensor_float32(tf32):
        times = torch.tensor(time_call(lambda: torch.mm(a, b), device, SECONDS[device.type]))
    rates = [2 * side**3 / float(times.quantile(q)) / 1e6 for q in (0.8, 0.5, 0.2)]
    return {"value": rates[1], "unit": "TFLOP/s", "p20": rates[0], "p80": rates[2], "size": side}


def _launch() -> Fields:
    """Microseconds that a small operation takes from Python, many in a row."""
    x = torch.zeros(1, device="cuda")

    def many() -> None:
        for _ in range(100):
            x.add_(1)

    return {"value": statistics.median(time_call(many, torch.device("cuda"))) / 100, "unit": "us a launch"}
