"""How activations are swept, and that a launch compiles for a GPU which this machine need not have."""

import itertools
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from kernels.gpu import norm_plan
from kernels.readback.disassembly import read_amdgcn, read_cubin
from kernels.readback.norm_cases import NORM_KERNELS
from kernels.readback.static_profile import DIRECTIONS, DTYPES, TARGETS, build_of, compile_kernel


def plan_of(
    *shape: int, dtype: torch.dtype = torch.float32, last: bool = True, parts: int = norm_plan.PROGRAMS, fields: int = 1
):
    x = torch.empty(shape, dtype=dtype, device="meta")
    layout = "channels_last" if last else "channels_first"
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert norm_plan.layout_of(x) == layout
    return norm_plan.choose_plan((x,) * fields, layout, parts)


NVAE_SHAPES = [(64, 32, 32, 32), (64, 192, 16, 16), (64, 768, 8, 8), (16, 60, 64, 64), (64, 384, 4, 4), (1, 20, 4, 4)]


@pytest.mark.parametrize("shape", NVAE_SHAPES, ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_programs_cover_every_line_once(shape, last, dtype):
    plan = plan_of(*shape, dtype=dtype, last=last, parts=norm_plan.MAX_PARTS)
    one, (batch, channels, height, width) = plan.sweep, shape
    lines, length = (batch * height * width, channels) if last else (batch, height * width)
    columns = -(-length // one.columns)
    parts = plan.grid[1] if last else plan.grid[1] // columns
    covered = one.rows * plan.steps * parts
    assert covered - one.rows * plan.steps < lines <= covered
    assert plan.grid[0] == (columns if last else channels)
    assert one.full == (covered == lines and columns * one.columns == length)
    assert plan.grid[1] <= norm_plan.MAX_PARTS


def test_nvae_maps_are_swept_in_full_and_by_128_bits():
    for shape in NVAE_SHAPES[:3]:
        plan = plan_of(*shape)
        assert plan.sweep.full
        assert plan.sweep.unit == 16
        assert plan.sweep.rows * plan.sweep.columns == norm_plan.THREADS * norm_plan.TURNS * 4


def test_columns_follow_the_channels():
    assert [plan_of(8, channels, 8, 8).sweep.columns for channels in (3, 20, 32, 64, 96, 192)] == [
        4,
        32,
        32,
        64,
        32,
        64,
    ]


def test_huge_activations_take_more_steps():
    plan = plan_of(2048, 64, 128, 128)
    assert plan.grid == (1, norm_plan.PROGRAMS)
    assert plan.steps * plan.sweep.rows * norm_plan.PROGRAMS == 2048 * 128 * 128


def test_the_output_has_the_memory_format_of_the_input():
    last, first = torch.empty(2, 8, 4, 4, memory_format=torch.channels_last), torch.empty(2, 8, 4, 4)
    for x in (last, last[:, 3:], last[:1]):
        assert norm_plan.output_like(x).is_contiguous(memory_format=torch.channels_last)
    for x in (first, first[:, 3:], first[..., 1:]):
        assert norm_plan.output_like(x).is_contiguous()


MASKED = [
    pytest.param(
        target, dtype, last, marks=() if (target, dtype, last) == ("sm_90", "bf16", True) else pytest.mark.slow
    )
    for target in TARGETS
    for dtype in ("fp32", "bf16")
    for last in (True, False)
]


@pytest.mark.parametrize(("target", "dtype", "last"), MASKED)
@pytest.mark.parametrize(
    "channels", [20, pytest.param(24, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_masked_programs_do_not_spill(target, dtype, last, channels):
    side = {24: 8, 20: 6, 5: 5}[channels]
    for kernel, direction in itertools.product(NORM_KERNELS, DIRECTIONS):
        build = build_of(kernel, direction, dtype, fast=2 if target.startswith("gfx") else 1)
        fields = len(build.signature.keys() & {"x", "y", "grad_y", "grad_x"})
        masked = plan_of(2, channels, side, side, dtype=DTYPES[dtype], last=last, fields=fields).sweep
        assert not masked.full
        plan = replace(masked, fast=build.plan.fast)
        built = build._replace(constants=build.constants | {"SWEEP": plan}, plan=plan)
        compiled = compile_kernel(built, target, aligned_scalars=False)
        code = read_amdgcn(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else read_cubin(compiled.asm["cubin"])
        assert code.local_memory_bytes == 0  # AMD's scalar registers may spill to vector registers
        if channels == 24 or (channels == 20 and dtype == "fp32"):
            assert code.load_bits == 128


LAUNCHES = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class NoGpu:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

driver.set_active(NoGpu())
from kernels.gpu import norm, norm_plan, operators

class CompileOnly:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.compiled = self.kernel.warmup(*arguments, grid=grid, **options)
        return run

NAMES = ("statistics", "merge", "forward", "backward_sums", "backward")
for name in NAMES:
    setattr(norm, name, CompileOnly(getattr(norm, name)))
norm_plan.fast_math = lambda tensor: 1
CASES = (
    (torch.float32, torch.channels_last, 24),
    (torch.bfloat16, torch.contiguous_format, 64),
)
for case in CASES:
    dtype, memory_format, channels = case
    x = torch.zeros(2, channels, 8, 8, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    operators.FUSED.norm_swish(x, *(torch.ones(channels) for _ in range(4)), training=True).sum().backward()
    for name in NAMES:
        ptx = getattr(norm, name).compiled.asm["ptx"]
        assert "ld.local" not in ptx and "atom." not in ptx and "red.global" not in ptx, (name, case)
        assert name == "merge" or "ld.global.v4.b32" in ptx, (name, case)
        assert name not in ("forward", "backward") or "st.global.v4.b32" in ptx, (name, case)
    print("compiled", *case)
"""


def test_a_launch_compiles_to_wide_accesses_without_atomics():
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LAUNCHES)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("compiled") == 2
