"""The compiled kernels, executed without a GPU: PTX by Triton, interpreted lane by lane, against the float64 reference.

Public operations run on CPU tensors; each launch is compiled for the target with the arguments and specialisations that
a GPU would get, and its PTX is executed (`tests/helpers/ptx`). Every access is checked for bounds, alignment, memory
that nobody wrote, and races.
"""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ptx.driver import compiled_for
from ptx.errors import MisalignedError, OutOfBoundsError, RaceError, UnsupportedError, UnwrittenError

from kernels.cell_form import LayerForm
from kernels.gpu import latent_plan
from kernels.gpu.operators import FUSED
from kernels.ops import PLAIN, RESIDUAL
from kernels.readback.static_profile import COMPONENTS, DIRECTIONS, DTYPES, KERNELS, build_of
from kernels.reference.backend import REFERENCE
from kernels.reference.philox import normals

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
SEED = torch.tensor(2**40 + 5)
ROUNDINGS = ("nearest", "scattered", "up", "down")

# |error| / (1 + |reference|), those of Triton's interpreter and, for 16 bits, of the rounding of inputs and outputs;
# where approximate functions are as far off as documented, those that a GPU is held to.
NEAREST = {"fp32": (4e-6, 5e-5), "bf16": (1e-2, 2e-2), "fp16": (2e-3, 4e-3)}
APPROXIMATE = NEAREST | {"fp32": (2e-5, 2e-4)}
NOISE = 1e-5


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(value, expected):
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach().double()
    found = float(((value - expected).abs() / (1 + expected.abs())).max())
    return found if found == found else float("inf")  # NaN: memory that nobody wrote


def gaussian(form, learned, memory_format, shape):
    """A draw with KL and log ratio, and the gradients of its parameters."""

    def step(ops, dtype, wide):
        given = [random(*shape, seed=seed).to(dtype) for seed in range(4 if learned else 2)]
        upstream = [random(*shape, seed=5).to(dtype), random(shape[0], seed=6), random(shape[0], seed=7)]
        leaves = [(one.double() if wide else one).contiguous(memory_format=memory_format) for one in given]
        leaves = [one.requires_grad_() for one in leaves]
        prior = leaves[2:] or [None, None]
        draw = ops.gaussian_sample_kl(
            *leaves[:2], *prior, seed=SEED, group=3, form=form, first_sample=7, log_ratio=True
        )
        outputs = list(draw)
        ups = [up.to(one.dtype).contiguous(memory_format=memory_format) if one.ndim == 4 else up.to(one.dtype)
               for up, one in zip(upstream, outputs, strict=True)]  # fmt: skip
        return outputs, torch.autograd.grad(outputs, leaves, ups)

    return step


def mixture(colours, components, size):
    """Log probabilities of images with both edges among their levels, and the gradient of the parameters."""

    def step(ops, dtype, wide):
        parameters = 1.5 * random(2, (10 if colours == 3 else 3) * components, *size, seed=1)
        parameters[:, components:].view(2, colours, -1, components, *size)[:, :, 1] -= 2
        levels = torch.randint(0, 256, (2, colours, *size), generator=torch.Generator().manual_seed(2))
        levels[:, :, 0, 0], levels[:, :, 0, 1] = 0, 255
        leaf = parameters.to(dtype)
        leaf = (leaf.double() if wide else leaf).requires_grad_()
        x = levels.double() / 255
        log_prob = ops.logistic_mixture_log_prob(leaf, x if wide else x.float(), bits=8)
        return [log_prob], torch.autograd.grad(log_prob, leaf, torch.tensor([1.0, -0.7], dtype=log_prob.dtype))

    return step


def norm(memory_format, shape, training):
    """Norm and swish with moved running statistics, and the gradients of x, weight and bias."""

    def step(ops, dtype, wide):
        x, upstream = ((2 * random(*shape, seed=seed) + 1).to(dtype) for seed in (1, 2))
        x, upstream = (one.double() if wide else one for one in (x, upstream))
        x, upstream = (one.contiguous(memory_format=memory_format) for one in (x, upstream))
        mean, var, weight, bias = (random(shape[1], seed=seed) for seed in (11, 12, 13, 14))
        var = var.square() + 0.5
        mean, var, weight, bias = (one.double() if wide else one for one in (mean, var, weight, bias))
        leaves = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
        y = ops.norm_swish(leaves[0], mean, var, *leaves[1:], training=training, repeats=4)
        return [y, mean, var], torch.autograd.grad(y, leaves, upstream)

    return step


def depthwise(shape, kernel):
    """A depthwise convolution, and the gradients of x and of the weight."""

    def step(ops, dtype, wide):
        x, upstream = (random(*shape, seed=seed).to(dtype) for seed in (1, 2))
        given = [x, random(shape[1], 1, kernel, kernel, seed=3), upstream]
        given = [one.double() if wide else one for one in given]
        x, weight, upstream = (one.contiguous(memory_format=CHANNELS_LAST) for one in given)
        leaves = [x.requires_grad_(), weight.contiguous().requires_grad_()]
        y = ops.network.convolution(*leaves, None, LayerForm(kernel=kernel, groups=shape[1]))
        return [y], torch.autograd.grad(y, leaves, upstream)

    return step


NORM = norm(CHANNELS_LAST, (2, 64, 16, 8), training=True)
RUNS = {
    "gaussian, standard-normal prior": gaussian(PLAIN, False, CONTIGUOUS, (2, 3, 4, 4)),
    "gaussian, learned prior": gaussian(PLAIN, True, CONTIGUOUS, (2, 8, 4, 4)),
    "gaussian, residual and clamped": gaussian(RESIDUAL, True, CONTIGUOUS, (2, 8, 4, 4)),
    "gaussian, residual and clamped, channels last": gaussian(RESIDUAL, True, CHANNELS_LAST, (2, 20, 4, 4)),
    "logistic mixture, 10 components, colour": mixture(3, COMPONENTS, (16, 8)),
    "batch norm and swish, reduction": NORM,
    "batch norm and swish, writing": NORM,
    "depthwise 5x5": depthwise((1, 64, 4, 8), 5),
}
"""What executes each kernel, with all its elements inside or with masks."""
MORE = {
    "grey mixture, masked": mixture(1, 3, (5, 7)),
    # Threads that hold a sum more than once would be found to differ in it: see `rounded` in `kernels/gpu/norm.py`.
    "norm, masked": norm(CHANNELS_LAST, (3, 20, 5, 5), training=True),
    "norm, channels first": norm(CONTIGUOUS, (2, 8, 4, 4), training=True),
    "norm in evaluation": norm(CHANNELS_LAST, (3, 5, 3, 7), training=False),
    "depthwise 3x3, masked": depthwise((2, 6, 5, 11), 3),
}
SLOW = {
    "gaussian, one latent": gaussian(PLAIN, True, CONTIGUOUS, (2, 1, 1, 1)),
    "gaussian, several programs": gaussian(RESIDUAL, True, CONTIGUOUS, (2, 20, 9, 9)),
    "gaussian, odd, channels last": gaussian(RESIDUAL, True, CHANNELS_LAST, (3, 5, 3, 3)),
    "colour mixture, masked": mixture(3, 2, (5, 7)),
    "colour mixture, several programs": mixture(3, 2, (24, 24)),
    "norm, one channel": norm(CONTIGUOUS, (5, 1, 3, 3), training=True),
    "norm in evaluation, channels first": norm(CONTIGUOUS, (2, 6, 5, 3), training=False),
    "depthwise 7x7, odd": depthwise((2, 3, 9, 5), 7),
    "depthwise 5x5, several blocks": depthwise((1, 70, 8, 16), 5),
}
EVERY = RUNS | MORE | SLOW
QUICK_SIXTEEN_BITS = ("gaussian, learned prior", "grey mixture, masked", "norm, masked", "depthwise 3x3, masked")


@functools.cache
def compiled(name, dtype, capability, rounding):
    """Outputs and gradients by the compiled kernels, and the kernels that ran."""
    with compiled_for(capability, rounding) as device:
        return EVERY[name](FUSED, DTYPES[dtype], wide=False), tuple(device.launched)


def errors(name, dtype, capability, rounding):
    """Largest errors of outputs and of gradients."""
    ours, _ = compiled(name, dtype, capability, rounding)
    theirs = EVERY[name](REFERENCE, DTYPES[dtype], wide=True)
    return [max(error(a, b) for a, b in zip(x, y, strict=True)) for x, y in zip(ours, theirs, strict=True)]


def is_quick(name, dtype, capability):
    """Every kernel in float32 for one target, and one of each kind in bfloat16."""
    small = dtype == "fp32" or (dtype == "bf16" and name in QUICK_SIXTEEN_BITS)
    return capability == 90 and name not in SLOW and small


ALL_ROUNDINGS = {(name, "fp32", 90) for name in ("gaussian, learned prior", "grey mixture, masked", *SLOW)}

CASES = [
    pytest.param(*case, id=f"sm_{case[2]} {case[1]} {case[0]}", marks=() if is_quick(*case) else pytest.mark.slow)
    for case in itertools.product(EVERY, DTYPES, (90, 80))
]


@pytest.mark.parametrize(("name", "dtype", "capability"), CASES)
def test_values_and_gradients(name, dtype, capability):
    for rounding in ROUNDINGS if (name, dtype, capability) in ALL_ROUNDINGS else ROUNDINGS[:2]:
        tolerance = (NEAREST if rounding == "nearest" else APPROXIMATE)[dtype]
        values, gradients = errors(name, dtype, capability, rounding)
        assert values < tolerance[0], rounding
        assert gradients < tolerance[1], rounding


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_profiled_kernel_is_executed(kernel, direction):
    function = build_of(kernel, direction, "fp32", fast=1).function
    assert kernel.name in RUNS, "a kernel that is profiled has a run here"
    _, launched = compiled(kernel.name, "fp32", 90, "nearest")
    assert f"{function.fn.__module__}.{function.fn.__name__}" in launched


def jitted(path):
    """Functions of a file that Triton compiles, with the names that each uses."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(one) for one in node.decorator_list):
            found[node.name] = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} - {node.name}
    return found


def test_every_kernel_of_the_backend_is_executed():
    folder = Path(latent_plan.__file__).parent
    paths = sorted(folder.rglob("*.py"))
    by_file = {".".join(path.relative_to(folder).with_suffix("").parts): jitted(path) for path in paths}
    used = set().union(*(names for functions in by_file.values() for names in functions.values()))
    kernels = {f"kernels.gpu.{file}.{name}" for file, functions in by_file.items() for name in functions}
    kernels = {name for name in kernels if name.rsplit(".", 1)[1] not in used}
    launched = {one for name in RUNS for one in compiled(name, "fp32", 90, "nearest")[1]}
    assert launched == kernels


def test_noise_is_that_of_the_reference():
    zero = torch.zeros(2, 256)
    expected = normals(SEED, 3, (2, 256), dtype=torch.float64)
    for rounding in ROUNDINGS:
        with compiled_for(rounding=rounding):
            drawn = FUSED.gaussian_sample(zero, zero, seed=SEED, group=3)
        assert float((drawn - expected).abs().max()) < NOISE


# Kernels broken on purpose


def broken(name, edit):
    """Run with edited PTX."""
    with compiled_for(edit=edit):
        EVERY[name](FUSED, torch.float32, wide=False)


def replaced(kernel, pattern, replacement, nth=0):
    """An edit of one occurrence in one kernel."""

    def edit(text):
        if f".entry {kernel}(" not in text:
            return text
        place = list(re.finditer(pattern, text))[nth]
        return text[: place.start()] + place.expand(replacement) + text[place.end() :]

    return edit


def test_a_wrong_mask_is_out_of_bounds():
    with pytest.raises(OutOfBoundsError, match=r"forward, line \d+: .*ld\.global"):
        broken("gaussian, standard-normal prior", lambda text: re.sub(r"@%p\d+ (ld\.global)", r"\1", text))
    with pytest.raises(OutOfBoundsError, match=r"st\.global"):
        broken("gaussian, standard-normal prior", lambda text: re.sub(r"@%p\d+ (st\.global\.v4)", r"\1", text))


def test_a_planned_alignment_that_does_not_hold_is_misaligned(monkeypatch):
    monkeypatch.setattr(latent_plan.Field, "addresses", lambda field: [])
    tensors = [random(2 * 128 + 1, seed=seed)[1:].view(2, 8, 4, 4) for seed in range(2)]
    with pytest.raises(MisalignedError, match="16 bytes"), compiled_for():
        FUSED.gaussian_sample_kl(*tensors, None, None, seed=SEED, group=0)


def test_an_odd_address_is_misaligned():
    with pytest.raises(MisalignedError, match="16 bytes"):
        broken("gaussian, learned prior", replaced("forward", r"(ld\.global\.v4[^;]*\[ %rd\d+ \+) 0", r"\1 4"))


def test_a_missing_store_leaves_memory_unwritten():
    with pytest.raises(UnwrittenError, match=r"merge, .* is read and was never written"):
        broken("norm, channels first", replaced("statistics", r"@%p\d+ st\.global[^;]*;", ""))


def barriers(kernel):
    """How many barriers a kernel of the norm has."""
    counts = []

    def count(text):
        if f".entry {kernel}(" in text:
            counts.append(len(re.findall(r"bar\.sync\s+0;", text)))
        return text

    broken("norm, channels first", count)
    return counts[0]


@pytest.mark.parametrize("kernel", ["statistics", "backward_sums"])
def test_a_missing_barrier_is_a_race(kernel):
    for nth in range(barriers(kernel)):
        with pytest.raises(RaceError, match="no barrier in between"):
            broken("norm, channels first", replaced(kernel, r"bar\.sync\s+0;", "", nth))


def test_running_statistics_are_read_by_all_warps_before_one_moves_them():
    with pytest.raises(RaceError, match=r"merge, .*st\.global"):
        broken("norm, channels first", replaced("merge", r"bar\.sync\s+0;", "", -1))


def test_an_unknown_instruction_is_named():
    with pytest.raises(UnsupportedError, match=r"ex3\.approx"):
        broken("gaussian, learned prior", lambda text: text.replace("ex2.approx", "ex3.approx"))


@pytest.mark.parametrize(("offset", "wide"), [(0, True), (1, False)], ids=["aligned", "shifted"])
def test_specialisations_follow_the_arguments(offset, wide):
    tensors = [random(2 * 128 + 1, seed=seed)[offset : 256 + offset].view(2, 128) for seed in range(2)]
    texts = []
    with compiled_for(edit=lambda text: texts.append(text) or text):
        draw = FUSED.gaussian_sample_kl(*tensors, None, None, seed=SEED, group=0)
    expected = REFERENCE.gaussian_sample_kl(*(one.double() for one in tensors), None, None, seed=SEED, group=0)
    assert error(draw.z, expected.z) < NEAREST["fp32"][0]
    assert ("ld.global.v4" in texts[0]) == wide
    assert ".reqntid 32\n" in texts[0]
