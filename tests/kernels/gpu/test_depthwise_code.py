"""The compiled kernels of depthwise convolutions: no spills, wide accesses, few instructions beside the products."""

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.compiler import ASTSource

from kernels.gpu.depthwise import plan
from kernels.gpu.depthwise.kernels import forward, weight_gradient
from kernels.readback.disassembly import read_amdgcn, read_cubin
from kernels.readback.static_profile import DTYPES, TARGETS, divisible, gpu_target

SIZES = dict.fromkeys(("units", "steps", "height"), "i32")
KERNEL = 5
CASES = [
    pytest.param(
        target, dtype, marks=() if (target, dtype) in (("sm_90", "bf16"), ("gfx942", "fp32")) else pytest.mark.slow
    )
    for target in TARGETS
    for dtype in ("fp32", "bf16")
]


def compiled(function, dtype, target, shape=(32, 1536, 16, 16)):
    """The kernel and its tile for such maps, as a GPU would get it."""
    made = plan.plan_of(function, torch.empty(shape, dtype=DTYPES[dtype], device="meta"), KERNEL, False, 528)
    (tile,) = made.launch.constants
    maps = dict.fromkeys(("x", "y") if function is forward else ("grad_y", "x"), f"*{dtype}")
    signature = maps | {"weight" if function is forward else "parts": "*fp32"} | SIZES
    source = ASTSource(function, signature | {"TILE": "constexpr"}, {"TILE": tile}, divisible(signature, False))
    gpu = gpu_target(target)
    options = {"num_warps": tile.warps(gpu.warp_size), "enable_fp_fusion": True}
    return triton.compile(source, target=gpu, options=options), tile


def read(kernel, turns):
    """Facts of the compiled kernel, whose loops turn so often."""
    asm = kernel.asm
    return read_amdgcn(asm["amdgcn"], turns) if "amdgcn" in asm else read_cubin(asm["cubin"], turns)


@pytest.mark.parametrize(("target", "dtype"), CASES)
@pytest.mark.parametrize("function", [forward, weight_gradient], ids=["forward", "weight gradient"])
def test_compiled_code(function, target, dtype):
    kernel, tile = compiled(function, dtype, target)
    once, twice = read(kernel, 1), read(kernel, 2)
    assert tile.full
    assert once.local_memory_bytes == 0
    assert once.load_bits >= 2 * 8 * DTYPES[dtype].itemsize  # both channels of a thread at once
    if function is forward:
        assert once.barriers == 0
    outputs = tile.rows * plan.PER_THREAD
    products = outputs * KERNEL * KERNEL
    beside = 3 if target.startswith("gfx") else 2  # AMD's accesses are masked by instructions of their own
    assert products < twice.instructions - once.instructions < beside * products  # a strip's start and end are in it


def test_a_mask_of_channels_costs_no_width():
    kernel, tile = compiled(forward, "bf16", "sm_90", (2, 24, 8, 8))
    assert not tile.full
    assert read(kernel, 1).load_bits >= 32
