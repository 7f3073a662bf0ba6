"""How tensors are walked, and that a launch compiles for a GPU which this machine need not have."""

import subprocess
import sys
import textwrap

import pytest
import torch

pytest.importorskip("triton")

from kernels.gpu import latent_plan


def walk_of(*tensors: torch.Tensor) -> latent_plan.Walk:
    return latent_plan.choose_walk([latent_plan.field(tensor) for tensor in tensors], tensors[0])


def test_halves_of_a_convolution_output_are_read_in_place():
    output = torch.empty(3, 40, 8, 8)
    mean, log_scale = output.chunk(2, 1)
    pair = latent_plan.field(mean, log_scale)
    assert [tensor.data_ptr() for tensor in pair.tensors] == [mean.data_ptr(), log_scale.data_ptr()]
    assert pair.strides == (40 * 64, 64, 1)
    walk = walk_of(mean)
    assert (walk.layout, walk.unit, walk.alignment) == ("flat", 16, 16)


def test_channels_last_halves_are_read_in_place():
    output = torch.empty(3, 40, 8, 8, memory_format=torch.channels_last)
    mean, _ = output.chunk(2, 1)
    walk = walk_of(mean, latent_plan.output_like(mean))
    assert (walk.layout, walk.channels) == ("channels_last", 20)


def test_mixed_formats_are_walked_by_strides():
    mean = torch.empty(2, 8, 4, 4)
    assert walk_of(mean, mean.contiguous(memory_format=torch.channels_last)).layout == "strided"


def test_a_vector_is_a_row_of_pixels():
    assert latent_plan.extent_of(torch.empty(5, 7)) == latent_plan.Extent(5, 1, 7)
    assert latent_plan.extent_of(torch.empty(5, 7, 1, 1)) == latent_plan.Extent(5, 1, 7)
    assert latent_plan.extent_of(torch.empty(5)) == latent_plan.Extent(5, 1, 1)
    assert walk_of(torch.empty(5, 7)).layout == "flat"


def test_pixels_without_a_single_stride_are_copied():
    tensor = torch.empty(2, 3, 4, 5).transpose(2, 3)
    assert latent_plan.strides_of(tensor) is None
    assert latent_plan.field(tensor).strides == (60, 20, 1)


@pytest.mark.parametrize("size", [1, 64, 320, 1280, 5120, 20480, 333])
def test_blocks_are_well_used(size):
    block = latent_plan.choose_block(size, smallest=128)
    used = size / (-(-size // block) * block)
    best = max(size / (-(-size // b) * b) for b in latent_plan.BLOCKS)
    assert used >= min(latent_plan.USEFUL_SHARE, best)


def test_sixteen_bit_types_hold_eight_neighbours():
    tensor = torch.empty(2, 1024, dtype=torch.bfloat16)
    assert walk_of(tensor).neighbours == 8
    assert walk_of(tensor, torch.empty(2, 1024)).neighbours == 4


def test_samples_beyond_the_index_range_are_refused():
    huge = torch.empty(1, device="meta").expand(1, 2**31)
    with pytest.raises(ValueError, match="latents a sample"):
        latent_plan.choose_walk([latent_plan.Field((torch.empty(0),), (0, 0, 1))], huge)


LAUNCHES = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class NoGpu:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

driver.set_active(NoGpu())
from kernels.gpu import gaussian, latent_plan, mixture, mixture_plan, operators
from kernels.ops import RESIDUAL

class CompileOnly:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.compiled = self.kernel.warmup(*arguments, grid=grid, **options)
        return run

for module in (gaussian, mixture):
    module.forward, module.backward = CompileOnly(module.forward), CompileOnly(module.backward)
latent_plan.fast_math = mixture_plan.fast_math = lambda tensor: 1
for dtype in (torch.float32, torch.bfloat16):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        posterior, prior = (
            torch.zeros(2, 64, 8, 8, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_() for _ in "qp"
        )
        draw = operators.FUSED.gaussian_sample_kl(
            *posterior.chunk(2, 1), *prior.chunk(2, 1), seed=torch.tensor(0), group=1, form=RESIDUAL
        )
        (draw.z.square().sum() + draw.kl.sum()).backward()
        for kernel in (gaussian.forward, gaussian.backward):
            ptx = kernel.compiled.asm["ptx"]
            assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx, (dtype, memory_format)
            assert "ld.local" not in ptx and "atom." not in ptx
        print("compiled", dtype, memory_format)
parameters = torch.zeros(2, 50, 16, 32, requires_grad=True)
operators.FUSED.logistic_mixture_log_prob(parameters, torch.zeros(2, 3, 16, 32), bits=8).sum().backward()
for kernel in (mixture.forward, mixture.backward):
    assert "ld.global.v4.b32" in kernel.compiled.asm["ptx"] and "atom." not in kernel.compiled.asm["ptx"]
print("compiled mixture")
"""


def test_a_launch_compiles_to_wide_accesses_without_atomics():
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LAUNCHES)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("compiled") == 5
