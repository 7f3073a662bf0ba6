"""What the compiler made of the fused kernels, for GPUs that need not be there.

Each kernel is compiled ahead of time for each target and read back; times are estimates from datasheet peaks in
`gpus.csv`: memory traffic, instruction issue and special functions, of which the largest bounds the kernel.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.ops import PLAIN, RESIDUAL, GaussianForm
from kernels.readback.disassembly import Code, ToolsMissing, read_amdgcn, read_cubin
from kernels.readback.norm_cases import NORM_KERNELS, STEPS, NormKernel
from kernels.reference.backend import REFERENCE

if TYPE_CHECKING:  # where Triton is missing, names and tables must be there all the same
    from kernels.gpu.latent_plan import Fast, Walk
    from kernels.gpu.mixture_plan import Tile
    from kernels.gpu.norm_plan import Sweep

Direction = Literal["forward", "backward"]

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
KNOWN_TARGETS = (*TARGETS, "sm_86", "sm_89", "sm_120", "gfx90a", "gfx950")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
BLOCK = 2048
CHANNELS = 20
"""Latent channels of the channels-last cases."""
COMPONENTS = 10
BITS = 8
BYTES_OF_PIXEL = 3 * 4 + 2 * 4
"""Of the logistic mixture besides its parameters: a float32 colour pixel, and two log-sum-exps."""


@dataclass(frozen=True)
class Kernel:
    """A kernel to profile; a mixture where `form` is None."""

    name: str
    form: GaussianForm | None
    learned_prior: bool = False
    channels_last: bool = False


KERNELS = (
    Kernel("gaussian, standard-normal prior", PLAIN),
    Kernel("gaussian, learned prior", PLAIN, learned_prior=True),
    Kernel("gaussian, residual and clamped", RESIDUAL, learned_prior=True),
    Kernel("gaussian, residual and clamped, channels last", RESIDUAL, learned_prior=True, channels_last=True),
    Kernel("logistic mixture, 10 components, colour", None),
    *NORM_KERNELS,
)


def is_mixture(kernel: Kernel | NormKernel) -> bool:
    """Whether elements are pixels of the logistic mixture."""
    return isinstance(kernel, Kernel) and kernel.form is None


@dataclass(frozen=True)
class StaticProfile:
    """One kernel compiled for one target. An element is a latent, or a pixel of the logistic mixture.

    `instructions_per_component` divides those of a pixel by the number of mixture components. Times of
    `estimate_us_per_million` elements are keyed by GPU, then by "memory", "issue" and "special"; `bound` names the
    largest for each GPU.
    """

    kernel: str
    direction: Direction
    dtype: str
    target: str
    registers: int
    spills: int
    local_memory_bytes: int
    shared_memory_bytes: int
    barriers: int
    load_bits: int
    store_bits: int
    instructions_per_element: float
    instructions_per_component: float | None
    special_functions_per_element: float
    bytes_per_element: float
    bytes_floor: float
    bytes_eager: float
    estimate_us_per_million: dict[str, dict[str, float]]
    bound: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Coverage:
    """How the programs of the Gaussian kernels cover groups of `latents` a sample.

    `useful_lanes` is the share of lanes with a latent; launches count the second stage of the KL's sum.
    """

    latents: int
    dtype: str
    block: int
    programs_per_sample: int
    useful_lanes: float
    launches_forward: int
    launches_backward: int


def coverage(latents: int, dtype: str) -> Coverage:
    """The coverage of one group size."""
    from kernels.gpu.latent_plan import choose_block

    block = choose_block(latents, smallest=128 if DTYPES[dtype].itemsize == 4 else 256)
    programs = -(-latents // block)
    return Coverage(latents, dtype, block, programs, latents / (programs * block), 1 + (programs > 1), 1)


@dataclass(frozen=True)
class Gpu:
    """Datasheet peaks: memory in TB/s, FP32 in TFLOPS; FP32, issued and special lanes of a multiprocessor per clock.

    `sources` say where those of memory, FP32 and lanes were read, or that one is "unsourced".
    """

    gpu: str
    target: str
    memory_tb_per_s: float
    fp32_tflops: float
    fp32_lanes: int
    issue_lanes: int
    special_lanes: int
    sources: tuple[str, str, str]

    @property
    def issue(self) -> float:
        """Lanes issued, 10^12 a second; a multiply-add counts as two operations of the FP32 peak."""
        return self.fp32_tflops / 2 * self.issue_lanes / self.fp32_lanes

    def microseconds(self, moved: float, instructions: float, special: float) -> dict[str, float]:
        """Times of a million elements, from bytes, instructions and special functions of one."""
        special_rate = self.issue * self.special_lanes / self.issue_lanes
        return {
            "memory": moved / self.memory_tb_per_s,
            "issue": instructions / self.issue,
            "special": special / special_rate,
        }


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The table of GPUs."""
    with (Path(__file__).parent / "gpus.csv").open(newline="") as file:
        return tuple(
            Gpu(
                row["gpu"],
                row["target"],
                float(row["memory_tb_per_s"]),
                float(row["fp32_tflops"]),
                int(row["fp32_lanes"]),
                int(row["issue_lanes"]),
                int(row["special_lanes"]),
                (row["memory_source"], row["fp32_source"], row["lanes_source"]),
            )
            for row in csv.DictReader(file)
        )


class CountBytes(TorchDispatchMode):
    """Counts the bytes that executed operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(min(one.nbytes, one.untyped_storage().nbytes()) for one in tensors)
        return result


def eager_call(kernel: Kernel | NormKernel, dtype: torch.dtype) -> tuple[list[Tensor], Any]:
    """Leaves and the forward pass of the same operation in plain PyTorch, with noise from `torch.randn_like`."""
    if isinstance(kernel, NormKernel):
        return kernel.eager_call(dtype)
    generator = torch.Generator().manual_seed(0)
    if kernel.form is None:
        parameters = torch.randn(2, 10 * COMPONENTS, 16, 16, generator=generator).to(dtype).requires_grad_()
        x = torch.rand(2, 3, 16, 16, generator=generator)
        return [parameters], lambda: (REFERENCE.logistic_mixture_log_prob(parameters, x, bits=BITS),)
    count = 4 if kernel.learned_prior else 2
    leaves = [torch.randn(2, CHANNELS, 32, 32, generator=generator).to(dtype).requires_grad_() for _ in range(count)]
    prior = leaves[2:] or [None, None]

    def forward() -> tuple[Tensor, Tensor]:
        noise, seed = torch.randn_like(leaves[0]), torch.tensor(0)
        assert kernel.form is not None
        draw = REFERENCE.gaussian_sample_kl(*leaves[:2], *prior, seed=seed, group=0, form=kernel.form, noise=noise)
        return draw.z, draw.kl

    return leaves, forward


@functools.cache
def eager_bytes(kernel: Kernel | NormKernel, direction: Direction, dtype: str) -> float:
    """Bytes per element that plain PyTorch moves for the same operation, counted while it runs."""
    leaves, forward = eager_call(kernel, DTYPES[dtype])
    elements = leaves[0].numel() // (10 * COMPONENTS if is_mixture(kernel) else 1)
    with CountBytes() as counted:
        outputs = forward()
    upstream = [torch.ones_like(output) for output in outputs]
    if direction == "backward":
        with CountBytes() as counted:
            torch.autograd.grad(outputs, leaves, upstream)
    return counted.bytes / elements


def bytes_floor(kernel: Kernel | NormKernel, direction: Direction, dtype: str) -> float:
    """Bytes per element that any implementation moves: every input read once, every output written once."""
    size = DTYPES[dtype].itemsize
    if isinstance(kernel, NormKernel):
        return kernel.bytes_floor(direction, size)
    if kernel.form is None:
        return (10 if direction == "forward" else 20) * COMPONENTS * size + BYTES_OF_PIXEL
    inputs = 4 if kernel.learned_prior else 2
    return (inputs + 1 if direction == "forward" else 2 * inputs + 1) * size


def walk_of(kernel: Kernel, dtype: str, fast: Fast) -> Walk:
    """The walk of full blocks with everything divisible by 16."""
    from kernels.gpu.latent_plan import Walk

    aligned = 16 if DTYPES[dtype].itemsize == 4 or not kernel.channels_last else 8
    neighbours = 8 if DTYPES[dtype].itemsize == 2 and not kernel.channels_last else 4
    layout, channels = ("channels_last", CHANNELS) if kernel.channels_last else ("flat", 0)
    unit = 4 if kernel.channels_last else 16
    return Walk(layout, channels, unit, aligned, BLOCK, True, neighbours, fast)


def tile_of(direction: Direction, dtype: str, fast: Fast) -> Tile:
    """The tile of full blocks of colour pixels."""
    from kernels.gpu.mixture_plan import MIXTURE_BLOCK, Tile, pixels_per_thread

    per_thread = pixels_per_thread(DTYPES[dtype].itemsize, contiguous=True, backward=direction == "backward")
    return Tile(3, COMPONENTS, 1 / (2**BITS - 1), MIXTURE_BLOCK, True, True, per_thread, fast)


def gaussian_signature(kernel: Kernel, direction: Direction, dtype: str) -> dict[str, Any]:
    """Types of the kernel's arguments; those left out are None."""
    pointer, strides = f"*{dtype}", ("i32", "i32", "i32")
    pair, single = (pointer, pointer, strides), (pointer, strides)
    prior = pair if kernel.learned_prior else None
    common = {"posterior": pair, "prior": prior, "noise": None, "seed": "*i64"}
    if direction == "forward":
        own: dict[str, Any] = {"z": single, "kl": "*fp32", "log_ratio": None}
    else:
        own = {"grad_z": single, "grad_kl": "*fp32", "grad_log_ratio": None}
        own |= {"grad_posterior": pair, "grad_prior": prior}
    scalars = {"units": "i32", "pixels": "i32", "group": "i32", "first_sample": "i32", "temperature": None}
    return common | own | scalars


def mixture_signature(direction: Direction, dtype: str) -> dict[str, Any]:
    """Types of the kernel's arguments."""
    field = (f"*{dtype}", ("i32",) * 4)
    own = {"log_prob": "*fp32"} if direction == "forward" else {"gradient": field, "upstream": "*fp32"}
    sums = {"normaliser": "*fp32", "evidence": "*fp32", "size": "i32", "columns": "i32"}
    return {"parameters": field, "x": ("*fp32", ("i32",) * 4)} | own | sums


def divisible(signature: dict[str, Any], scalars: bool) -> dict[tuple[int, ...], list[list[Any]]]:
    """Triton's note that pointers, and `scalars` too, are divisible by 16."""

    def paths(kind: Any, path: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
        if isinstance(kind, tuple):
            for index, part in enumerate(kind):
                yield from paths(part, (*path, index))
        elif kind is not None and (kind.startswith("*") or scalars):
            yield path

    found = (path for index, kind in enumerate(signature.values()) for path in paths(kind, (index,)))
    return {path: [["tt.divisibility", 16]] for path in found}


def gpu_target(target: str) -> Any:
    """Triton's name of a target such as "sm_90" or "gfx942"."""
    from triton.backends.compiler import GPUTarget

    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)


class Build(NamedTuple):
    """What Triton compiles for one kernel, and the elements of a program whose loop turns `turns` times."""

    function: Any
    signature: dict[str, Any]
    constants: dict[str, Any]
    plan: Walk | Tile | Sweep
    turns: int
    elements: int


def build_of(kernel: Kernel | NormKernel, direction: Direction, dtype: str, fast: Fast) -> Build:
    """The build of one kernel."""
    from kernels.gpu import gaussian, mixture

    if isinstance(kernel, NormKernel):
        constants = kernel.constants(direction, DTYPES[dtype].itemsize, fast)
        sweep: Sweep = constants["SWEEP"]
        elements = STEPS * sweep.rows * sweep.columns
        signature = kernel.signature(direction, dtype)
        return Build(kernel.function(direction), signature, constants, sweep, STEPS, elements)
    if kernel.form is None:
        tile = tile_of(direction, dtype, fast)
        function, signature = getattr(mixture, direction), mixture_signature(direction, dtype)
        return Build(function, signature, {"TILE": tile}, tile, COMPONENTS, tile.block)
    walk = walk_of(kernel, dtype, fast)
    constants, signature = {"FORM": kernel.form, "WALK": walk}, gaussian_signature(kernel, direction, dtype)
    return Build(getattr(gaussian, direction), signature, constants, walk, 1, walk.block)


def compile_kernel(build: Build, target: str, aligned_scalars: bool) -> Any:
    """Triton's compiled kernel, where pointers are divisible by 16, and scalars too if they are aligned."""
    import triton
    from triton.compiler import ASTSource

    gpu, signature = gpu_target(target), build.signature
    absent = {name: None for name, kind in signature.items() if kind is None}
    types = {name: "constexpr" if kind is None else kind for name, kind in signature.items()}
    types |= dict.fromkeys(build.constants, "constexpr")
    source = ASTSource(build.function, types, absent | build.constants, divisible(signature, aligned_scalars))
    options = {"num_warps": build.plan.warps(gpu.warp_size), "enable_fp_fusion": True}
    return triton.compile(source, target=gpu, options=options)


def profile(
    kernel: Kernel | NormKernel, direction: Direction, dtype: str, target: str, function: Any = None
) -> StaticProfile:
    """The profile of one kernel for one target; `function` stands in for the kernel (tests edit one)."""
    hip = target.startswith("gfx")
    build = build_of(kernel, direction, dtype, fast=2 if hip else 1)
    if function is not None:
        build = build._replace(function=function)
    compiled = compile_kernel(build, target, aligned_scalars=is_mixture(kernel))
    asm, turns = compiled.asm, build.turns
    code: Code = read_amdgcn(asm["amdgcn"], turns) if hip else read_cubin(asm["cubin"], turns)
    elements = build.elements / (compiled.metadata.num_warps * (64 if hip else 32))
    instructions, special = code.instructions / elements, code.special / elements
    moved = code.bytes_moved / elements
    times = {gpu.gpu: gpu.microseconds(moved, instructions, special) for gpu in gpus() if gpu.target == target}
    return StaticProfile(
        kernel=kernel.name,
        direction=direction,
        dtype=dtype,
        target=target,
        registers=code.registers,
        spills=code.spills,
        local_memory_bytes=code.local_memory_bytes,
        shared_memory_bytes=compiled.metadata.shared,
        barriers=code.barriers,
        load_bits=code.load_bits,
        store_bits=code.store_bits,
        instructions_per_element=round(instructions, 2),
        instructions_per_component=round(instructions / COMPONENTS, 2) if is_mixture(kernel) else None,
        special_functions_per_element=round(special, 2),
        bytes_per_element=moved,
        bytes_floor=bytes_floor(kernel, direction, dtype),
        bytes_eager=round(eager_bytes(kernel, direction, dtype), 1),
        estimate_us_per_million={gpu: {name: round(us, 3) for name, us in row.items()} for gpu, row in times.items()},
        bound={gpu: max(row, key=lambda name: row[name]) for gpu, row in times.items()},
    )


def static_profiles(
    targets: Iterable[str] = TARGETS,
    dtypes: Iterable[str] = ("fp32", "bf16"),
    kernels: Iterable[Kernel | NormKernel] = KERNELS,
) -> Iterable[StaticProfile]:
    """Profiles of every kernel, direction and type for every target, one at a time.

    Raises:
        ToolsMissing: Triton or its disassembler is not installed.
        ValueError: a target that Triton does not name like "sm_90" or "gfx942".
    """
    if importlib.util.find_spec("triton") is None:
        raise ToolsMissing("triton is not installed; pip install triton (Linux only)")
    for target, kernel, dtype, direction in itertools.product(targets, kernels, dtypes, DIRECTIONS):
        yield profile(kernel, direction, dtype, target)
