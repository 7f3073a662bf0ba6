"""Times tiles of depthwise convolutions on a GPU: `PYTHONPATH=.:tests/helpers python -m depthwise_tiles`.

Microseconds of the values, of the gradient of the input and of that of the weight, against cuDNN, replayed as CUDA
graphs with cold caches, for maps (B, C, h, w) of NVAE's decoders.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.profiling.kernel_timing import captured, time_call
from kernels.gpu.depthwise import plan

SHAPES = (
    (torch.bfloat16, (32, 1536, 16, 16)),
    (torch.float32, (32, 1536, 16, 16)),
    (torch.bfloat16, (32, 768, 8, 8)),
    (torch.bfloat16, (200, 192, 28, 28)),
)
VARIANTS: tuple[dict[str, object], ...] = (
    {},
    {"ROWS": (4,)},
    {"ROWS": (16,)},
    {"PIXELS": 8},
    {"PIXELS": 8, "ROWS": (4,)},
    {"PIXELS": 2},
    {"CHANNELS": 32, "PIXELS": 8},
    {"CHANNELS": 128, "PIXELS": 2},
    {"PROGRAMS": 1024, "PARTS": 264},
    {"PROGRAMS": 4096, "PARTS": 1056},
    {"PER_THREAD": 1},
)
"""Constants of `kernels.gpu.depthwise.plan` that take the place of its own."""
SECONDS = 0.04


def microseconds(*calls: Callable[[], object]) -> list[float]:
    """The median of each call."""
    device = torch.device("cuda")
    return [round(statistics.median(time_call(captured(call), device, SECONDS)), 1) for call in calls]


def main() -> None:
    """Print a line a variant."""
    usual = {name: getattr(plan, name) for variant in VARIANTS for name in variant}
    for dtype, shape in SHAPES:
        channels, backward = shape[1], torch.ops.aten.convolution_backward
        x, g = (
            torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )
        weight = torch.randn(channels, 1, 5, 5, device="cuda")
        taps, same = plan.taps_of(weight), weight.to(dtype)
        rest = (None, [1, 1], [2, 2], [1, 1], False, [0, 0], channels)
        theirs = microseconds(
            lambda: F.conv2d(x, same, None, 1, 2, 1, channels),
            lambda: backward(g, x, same, *rest, [True, False, False]),
            lambda: backward(g, x, same, *rest, [False, True, False]),
        )
        print(dtype, shape, "cuDNN", theirs, flush=True)
        for variant in VARIANTS:
            for name, value in {**usual, **variant}.items():
                setattr(plan, name, value)
            plan.FILTERS.clear()
            plan.GRADIENTS.clear()
            ours = microseconds(
                lambda: plan.convolve(x, taps),
                lambda: plan.convolve(g, taps, turned=True),
                lambda: plan.weight_gradient(g, x, 5),
            )
            print("  ", variant or "as planned", ours, flush=True)


if __name__ == "__main__":
    main()
