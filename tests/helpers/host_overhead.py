"""Host time of the fused operations: microseconds a call, forward and backward, and where they go.

    PYTHONPATH=.:tests/helpers python -m host_overhead [--device cuda] [--rounds N]

Without a GPU the operations run on CPU tensors through Triton's own launch path, and the launch itself does nothing:
what is timed is the host's part alone, in processor time. On a GPU the tensors are so small that the host is what is
timed there too, by the clock. Of an operation's time, "launches" goes when no kernel is launched, "plans" when results
are given ready-made besides, and "autograd" is the rest; "anew" is the whole where no plan and no launch is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from ptx.driver import SHARED_MEMORY, PtxBackend
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from kernels.gpu import latent_plan, launches, mixture_plan, norm_plan
from kernels.gpu.operators import FUSED
from kernels.ops import RESIDUAL

CHANNELS = 16
CALLS = 50
"""Calls of one round; a round's time is divided by it."""


class NoGpu:
    """Stands for Triton's driver: everything up to the launch is Triton's, and the launch does nothing."""

    def __init__(self) -> None:
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (object(), None, 0, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY},
        )

    def get_current_target(self) -> GPUTarget:
        """An H100."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only stream."""
        return 0

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        """What Triton calls for each launch of a compiled kernel."""
        return launch_nothing


def launch_nothing(*_: object) -> None:
    """Launch nothing."""


@contextlib.contextmanager
def without_launches() -> Iterator[None]:
    """Within, fused operations on CPU tensors do everything but launch."""
    with contextlib.ExitStack() as stack:
        for module in (latent_plan, mixture_plan, norm_plan):
            stack.enter_context(mock.patch.object(module, "fast_math", return_value=1))
        replaced = dataclasses.replace(backends["nvidia"], compiler=PtxBackend)
        stack.enter_context(mock.patch.dict(backends, nvidia=replaced))
        stack.enter_context(mock.patch.object(driver, "_active", NoGpu()))
        yield


def median_us(call: Callable[[], object], rounds: int, on_gpu: bool) -> tuple[float, float]:
    """Median and interquartile range over rounds of the microseconds of one call."""
    clock = time.perf_counter if on_gpu else time.process_time
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        if on_gpu:
            torch.cuda.synchronize()
        start = clock()
        for _ in range(CALLS):
            call()
        times.append((clock() - start) / CALLS * 1e6)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, high - low


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Within, every call plans anew and goes through Triton's binder."""
    launches.forget()
    with mock.patch.object(launches, "KEEPING", False):
        yield


@contextlib.contextmanager
def nothing_launched() -> Iterator[None]:
    """Within, plans are made and found, and nothing is launched."""
    with mock.patch.object(launches.Launch, "__call__", launch_nothing):
        yield


PLANNED = (
    (norm_plan, ("norm_training", "norm_forward", "norm_backward")),
    (latent_plan, ("gaussian_forward", "gaussian_backward")),
    (mixture_plan, ("mixture_forward", "mixture_backward")),
)


@contextlib.contextmanager
def results_ready() -> Iterator[None]:
    """Within, what a plan's function returned first it returns again."""

    def again(function: Callable[..., Any]) -> Callable[..., Any]:
        results: list[Any] = []

        def given(*arguments: Any) -> Any:
            if not results:
                results.extend(pytree.tree_flatten(function(*arguments)))
            leaves = [one.detach() if isinstance(one, Tensor) else one for one in results[0]]
            return pytree.tree_unflatten(leaves, results[1])

        return given

    with contextlib.ExitStack() as stack:
        for module, names in PLANNED:
            for name in names:
                stack.enter_context(mock.patch.object(module, name, again(getattr(module, name))))
        yield


def operations(device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name: an operation forward and backward, or a plain one to compare with."""
    shape = (2, CHANNELS, 1, 1)
    x, up = torch.randn(shape, device=device), torch.randn(shape, device=device)
    mean, var, weight, bias = (torch.ones(CHANNELS, device=device) for _ in range(4))
    leaves = [one.clone().requires_grad_() for one in (x, weight, bias)]
    seed = torch.tensor(7, device=device)
    gauss = [torch.randn(2, 8, 4, 4, device=device).requires_grad_() for _ in range(4)]
    parameters = torch.randn(2, 100, 4, 4, device=device).requires_grad_()
    image = torch.zeros(2, 3, 4, 4, device=device)

    def backward(outputs: list[Tensor], inputs: list[Tensor], upstream: list[Tensor]) -> None:
        torch.autograd.grad(outputs, inputs, upstream)

    def fused_norm(training: bool) -> Callable[[], object]:
        def call() -> None:
            y = FUSED.norm_swish(leaves[0], mean, var, leaves[1], leaves[2], training=training)
            backward([y], leaves, [up])

        return call

    def plain_norm(training: bool) -> Callable[[], object]:
        def call() -> None:
            y = F.silu(F.batch_norm(leaves[0], mean, var, leaves[1], leaves[2], training))
            backward([y], leaves, [up])

        return call

    def evaluation() -> None:
        with torch.no_grad():
            FUSED.norm_swish(x, mean, var, weight, bias, training=False)

    def plain_evaluation() -> None:
        with torch.no_grad():
            F.silu(F.batch_norm(x, mean, var, weight, bias, False))

    ones = torch.ones(2, device=device)

    def gaussian() -> None:
        draw = FUSED.gaussian_sample_kl(*gauss, seed=seed, group=3, form=RESIDUAL)  # pyright: ignore[reportCallIssue]
        backward([draw.z, draw.kl], gauss, [gauss[0].detach(), ones])

    def sample() -> None:
        with torch.no_grad():
            FUSED.gaussian_sample(gauss[0], gauss[1], seed=seed, group=3, temperature=0.7)

    def mixture() -> None:
        backward([FUSED.logistic_mixture_log_prob(parameters, image, bits=8)], [parameters], [ones])

    return {
        "norm + swish, training, forward + backward": fused_norm(True),
        "F.batch_norm + F.silu, training, forward + backward": plain_norm(True),
        "norm + swish, evaluation, forward + backward": fused_norm(False),
        "norm + swish, evaluation, forward": evaluation,
        "F.batch_norm + F.silu, evaluation, forward": plain_evaluation,
        "Gaussian sample + KL, forward + backward": gaussian,
        "Gaussian sample, forward": sample,
        "logistic mixture, forward + backward": mixture,
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (launches do nothing) or cuda")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of a median")
    request = parser.parse_args(arguments)
    device = torch.device(request.device)
    torch.set_num_threads(1)
    on_gpu = device.type == "cuda"
    with contextlib.nullcontext() if on_gpu else without_launches():
        print(f"torch {torch.__version__}, Triton {triton.__version__}, {device}, {os.cpu_count()} CPUs")
        columns = "".join(f"{name:>10}" for name in ("p50", "IQR", "launches", "plans", "autograd", "anew"))
        print(f"{'us a call':52}{columns}")
        for name, call in operations(device).items():
            whole, spread = median_us(call, request.rounds, on_gpu)
            cells = [whole, spread]
            if not name.startswith("F."):
                with nothing_launched():
                    planned, _ = median_us(call, request.rounds, on_gpu)
                with results_ready():
                    registered, _ = median_us(call, request.rounds, on_gpu)
                with nothing_kept():
                    anew, _ = median_us(call, request.rounds, on_gpu)
                cells += [whole - planned, planned - registered, registered, anew]
            print(f"{name:52}" + "".join(f"{cell:10.1f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
