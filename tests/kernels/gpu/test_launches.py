"""Kept launches: each equals the one that Triton binds anew, and nothing that was kept for other arguments is launched.

Launches are compiled for a GPU and noted, not executed: which kernel text, grid and arguments the launcher got.
"""

import itertools
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from ptx.driver import Device, compiled_for
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from kernels.gpu import eager, latent_plan, launches
from kernels.gpu.operators import FUSED
from kernels.ops import PLAIN, RESIDUAL

LAST = torch.channels_last
SEED = torch.tensor(5)
BOUND = JITFunction.run


def shown(value):
    """An argument as it can be compared between runs: what a kernel sees of a tensor, but for its address."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.dtype, value.shape, value.stride(), value.data_ptr() % 16


@contextmanager
def noted():
    """Within, launches are compiled and noted in the list that is given."""
    found = []

    def launch(device, function, text, grid, arguments):
        found.append((function, text, grid, [(kind, shown(value)) for kind, value in arguments]))

    with mock.patch.object(Device, "launch", launch), compiled_for():
        yield found


@contextmanager
def binding_counted():
    """Within, the kernels that went through Triton's binder are in the list that is given."""
    found = []

    def run(kernel, *arguments, **options):
        found.append(kernel.__name__)
        return BOUND(kernel, *arguments, **options)

    with mock.patch.object(JITFunction, "run", run):
        yield found


def gaussian(shape=(2, 8, 4, 4), dtype=torch.float32, offset=0, memory_format=torch.contiguous_format, **request):
    """A draw with gradients; parameters begin `offset` elements after an aligned address."""

    def call():
        count = torch.Size(shape).numel()
        given = [torch.zeros(count + offset, dtype=dtype)[offset:].view(shape) for _ in range(4)]
        if not offset:
            given = [one.contiguous(memory_format=memory_format) for one in given]
        leaves = [one.requires_grad_() for one in given]
        draw = FUSED.gaussian_sample_kl(*leaves, seed=SEED, **{"group": 1, "form": RESIDUAL} | request)
        outputs = [one for one in draw if one is not None]
        torch.autograd.grad(outputs, leaves, [torch.ones_like(one) for one in outputs])

    return call


def standard(**request):
    """A draw without a learned prior, and without gradients."""
    return lambda: FUSED.gaussian_sample_kl(
        torch.zeros(2, 64), torch.zeros(2, 64), None, None, **{"seed": SEED, "group": 1} | request
    )


def sample(temperature):
    return lambda: FUSED.gaussian_sample(
        torch.zeros(2, 64), torch.zeros(2, 64), seed=SEED, group=1, temperature=temperature
    )


def norm(shape=(2, 8, 4, 4), dtype=torch.float32, offset=0, memory_format=torch.contiguous_format, **request):
    """Batch norm with gradients; activations and channels begin `offset` elements after an aligned address."""

    def call():
        count, channels = torch.Size(shape).numel(), shape[1]
        x = torch.zeros(count + offset, dtype=dtype)[offset:].view(shape)
        x = x if offset else x.contiguous(memory_format=memory_format)
        mean, var, weight, bias = (torch.ones(channels + offset)[offset:] for _ in range(4))
        leaves = [one.requires_grad_() for one in (x, weight, bias)]
        y = FUSED.norm_swish(x, mean, var, weight, bias, **{"training": True} | request)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return call


def halves(memory_format):
    """Batch norm of each half of the channels of one tensor."""

    def call():
        x = torch.zeros(2, 10, 4, 4).contiguous(memory_format=memory_format)
        for half in x.split((3, 7), 1):
            channels = [torch.ones(half.shape[1]) for _ in range(4)]
            FUSED.norm_swish(half, *channels, training=False)

    return call


def mixture(shape=(4, 4), components=2, bits=8, offset=0, dtype=torch.float32):
    def call():
        parameters = torch.zeros(2 * 10 * components * shape[0] * shape[1] + offset, dtype=dtype)[offset:]
        parameters = parameters.view(2, 10 * components, *shape).requires_grad_()
        log_prob = FUSED.logistic_mixture_log_prob(parameters, torch.zeros(2, 3, *shape), bits=bits)
        torch.autograd.grad(log_prob, parameters, torch.ones_like(log_prob))

    return call


FAMILIES = {
    "gaussian": {
        "plain": gaussian(),
        "shifted": gaussian(offset=1),
        "shifted by two": gaussian(offset=2),
        "16 bits": gaussian(dtype=torch.bfloat16),
        "shifted, 16 bits": gaussian(dtype=torch.bfloat16, offset=4),
        "channels last": gaussian(memory_format=LAST),
        "one latent": gaussian((2, 1, 1, 1)),
        "a unit of latents": gaussian((2, 16)),
        "one sample": gaussian((1, 8, 4, 4)),
        "several programs": gaussian((2, 20, 9, 9)),
        "another form": gaussian(form=PLAIN),
        "another clamp": gaussian(form=RESIDUAL.__class__(2.0, 0.01, True)),
        "group 2^31": gaussian(group=2**31),
        "first sample 2^31": gaussian(first_sample=2**31),
        "log ratio": gaussian(log_ratio=True),
        "noise": gaussian(noise=torch.zeros(2, 8, 4, 4)),
        "shifted noise": gaussian(noise=torch.zeros(257)[1:].view(2, 8, 4, 4)),
        "standard prior": standard(),
        "shifted seed": standard(seed=torch.zeros(2, dtype=torch.int64)[1]),
        "sample": sample(0.7),
        "sample, an integer": sample(1),
    },
    "norm": {
        "plain": norm(),
        "shifted": norm(offset=1),
        "16 bits": norm(dtype=torch.bfloat16),
        "channels last": norm(memory_format=LAST),
        "one channel": norm((5, 1, 3, 3)),
        "one pixel": norm((7, 5, 1, 1)),
        "masked": norm((3, 20, 5, 5), memory_format=LAST),
        "many programs": norm((32, 4, 32, 32)),
        "repeats": norm(repeats=4),
        "no activation": norm(activation="none"),
        "evaluation": norm(training=False),
        "halves": halves(torch.contiguous_format),
        "halves, channels last": halves(LAST),
    },
    "mixture": {
        "plain": mixture(),
        "shifted": mixture(offset=1),
        "16 bits": mixture(dtype=torch.bfloat16),
        "other shape": mixture((5, 7)),
        "three components": mixture(components=3),
        "five bits": mixture(bits=5),
        "several programs": mixture((24, 24)),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_launches_are_those_that_triton_binds(family):
    calls = FAMILIES[family]
    anew, kept = {}, {}
    with noted() as found:
        for name, call in calls.items():
            launches.forget()
            found.clear()
            call()
            anew[name] = list(found)
        for name, call in [*calls.items(), *reversed(calls.items())]:
            found.clear()
            call()
            kept[name] = list(found)
            assert kept[name] == anew[name], name
        with binding_counted() as bound:
            for name, call in calls.items():
                found.clear()
                call()
                assert found == anew[name], name
    assert bound == []
    texts = [tuple(repr(launch) for launch in found) for found in anew.values()]
    assert len(set(texts)) > len(texts) * 0.8  # the calls do differ


def test_a_kept_launch_computes_the_same():
    def step():
        torch.manual_seed(0)
        x, up = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4)
        channels = [torch.rand(8) + 0.5 for _ in range(4)]
        y = FUSED.norm_swish(x, *channels, training=True)
        draw = FUSED.gaussian_sample_kl(x, y.detach(), None, None, seed=SEED, group=2)
        return [y, *channels[:2], draw.z, draw.kl, *torch.autograd.grad([y, draw.z, draw.kl.sum()], x, [up, up, None])]

    with compiled_for():
        first, _ = step(), step()
        with binding_counted() as bound:
            kept = step()
    assert bound == []
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_numbers_of_a_step_are_not_kept():
    with noted() as found, binding_counted() as bound:
        for group, first_sample in itertools.product((0, 1, 16), (0, 1, 64)):
            standard(group=group, first_sample=first_sample)()
        sample(0.5)()
        sample(1.0)()
    arguments = [[value for kind, value in launch[3]] for launch in found]
    assert [one[-2:] for one in arguments[:9]] == [list(pair) for pair in itertools.product((0, 1, 16), (0, 1, 64))]
    assert [one[-1] for one in arguments[9:]] == [0.5, 1.0]
    assert bound == ["forward"] * 2


def test_another_device_is_planned_anew(monkeypatch):
    with noted(), binding_counted() as bound:
        norm(training=False)()
        monkeypatch.setattr(torch.Tensor, "get_device", lambda tensor: 1)
        norm(training=False)()
    assert bound == ["forward", "backward_sums", "backward"] * 2


@pytest.mark.parametrize("call", [norm(), gaussian(), mixture()], ids=["norm", "gaussian", "mixture"])
def test_results_at_odd_addresses_take_the_binder(monkeypatch, call):
    def shifted(*shape, like, dtype=None, **_):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        memory = torch.zeros(torch.Size(shape).numel() + 1, dtype=dtype or like.dtype)
        return memory[1:].view(shape)

    with noted() as found:
        call()
        usual = list(found)
        found.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", lambda like, **kwargs: shifted(*like.shape, like=like, **kwargs))
            patch.setattr(
                torch.Tensor, "new_empty", lambda like, *shape, **kwargs: shifted(*shape, like=like, **kwargs)
            )
            call()
            odd = list(found)
            launches.forget()
            found.clear()
            call()
            assert odd == found
        launches.forget()
        found.clear()
        call()
        call()
    assert [launch[1] for launch in odd] != [launch[1] for launch in usual]
    assert found == usual * 2


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(launches, "MOST", 3)
    with noted():
        for size in range(1, 9):
            FUSED.gaussian_sample(torch.zeros(1, size), torch.zeros(1, size), seed=SEED, group=0)
            assert 1 <= len(latent_plan.FORWARD) <= 3


def test_bad_shapes_are_refused_after_good_ones():
    ones, x = torch.ones(4), torch.zeros(2, 4, 2, 2)
    with noted():
        FUSED.norm_swish(x, ones, ones.clone(), ones, ones, training=True)
        moved = torch.zeros(4)
        with pytest.raises(ValueError, match=r"\(4,\)"):
            FUSED.norm_swish(x, moved, ones, torch.ones(3), ones, training=True)
        with pytest.raises(ValueError, match="contiguous"):
            FUSED.norm_swish(x, torch.ones(8)[::2], ones, ones, ones, training=True)
        with pytest.raises(ValueError, match="more than one value"):
            FUSED.norm_swish(torch.zeros(1, 4, 1, 1), ones, ones, ones, ones, training=True)


def test_autograd_sees_that_running_statistics_move():
    x, var, ones = torch.zeros(2, 4, 2, 2, requires_grad=True), torch.ones(4), torch.ones(4)
    mean = torch.zeros(4)
    with noted():
        y = FUSED.norm_swish(x, mean, var, ones, ones, training=False)
        FUSED.norm_swish(x, mean, var, ones, ones, training=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_the_profiler_sees_operations_by_name(training):
    x, channels = torch.zeros(2, 4, 2, 2), [torch.ones(4) for _ in range(4)]
    with noted(), torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = FUSED.norm_swish(x, *channels, training=training)
        FUSED.gaussian_sample(y, y, seed=SEED, group=0)
    names = {event.name for event in profile.events()}
    assert {"FusedBatchNormTraining" if training else "FusedBatchNorm", "FusedGaussian"} <= names
    assert not y.requires_grad


class Seen(TorchDispatchMode):
    """Notes the operators of this package."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if str(operator).startswith("vaebench"):
            self.names.append(operator._opname)
        return operator(*args, **kwargs or {})


def test_modes_see_the_operators():
    with noted(), Seen() as seen:
        norm()()
        gaussian()()
        mixture()()
    assert seen.names == [
        *("norm_statistics", "norm", "norm_backward"),
        *("gaussian", "gaussian_backward"),
        *("mixture", "mixture_backward"),
    ]


def test_fake_tensors_have_the_shapes_of_real_ones():
    with FakeTensorMode():
        x, channels = torch.empty(2, 8, 4, 4, requires_grad=True), [torch.empty(8) for _ in range(4)]
        y = FUSED.norm_swish(x, *channels, training=True)
        draw = FUSED.gaussian_sample_kl(x, x, None, None, seed=torch.empty((), dtype=torch.int64), group=0)
        (gradient,) = torch.autograd.grad(y.sum() + draw.kl.sum(), x)
    assert y.shape == draw.z.shape == gradient.shape == x.shape
    assert draw.kl.shape == (2,)


def test_tensors_without_memory_have_the_shapes_of_real_ones():
    x, channels = torch.empty(2, 8, 4, 4, device="meta"), [torch.empty(8, device="meta") for _ in range(4)]
    y = FUSED.norm_swish(x.requires_grad_(), *channels, training=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == gradient.shape == x.shape
    assert y.is_meta


def test_statistics_move_in_inference_mode():
    with noted() as found, torch.inference_mode():
        channels = [torch.ones(4) for _ in range(4)]
        FUSED.norm_swish(torch.zeros(2, 4, 2, 2), *channels, training=True)
    assert [launch[0].rsplit(".", 1)[1] for launch in found] == ["statistics", "merge", "forward"]


def test_transforms_and_subclasses_take_the_operators():
    class Subclass(torch.Tensor):
        pass

    plain = torch.zeros(2, 3)
    assert eager.unobserved(plain, None, torch.nn.Parameter(plain))
    assert not eager.unobserved(plain.as_subclass(Subclass))
    assert not eager.unobserved(torch.zeros(2, dtype=torch.complex64).conj().imag)
    assert torch.vmap(lambda x: x + eager.unobserved(plain))(torch.zeros(2)).tolist() == [0, 0]
    with torch.autograd.forward_ad.dual_level():
        assert not eager.unobserved(plain)
    assert eager.unobserved(plain)


def test_compilation_sees_the_operators():
    names = []

    def backend(module, _):
        names.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return lambda *_: (torch.zeros(()),)

    def step(x, mean, var, weight, bias, parameters):
        y = FUSED.norm_swish(x, mean, var, weight, bias, training=True)
        z = FUSED.gaussian_sample(y, y, seed=SEED, group=0)
        kl = FUSED.gaussian_sample_kl(z, y, None, None, seed=SEED, group=0).kl
        return (kl + FUSED.logistic_mixture_log_prob(parameters, z, bits=8)).sum()

    channels = [torch.ones(3) for _ in range(4)]
    torch.compile(step, fullgraph=True, backend=backend)(torch.zeros(2, 3, 4, 4), *channels, torch.zeros(2, 20, 4, 4))
    operators = ["norm_statistics", "norm", "gaussian", "gaussian", "mixture"]
    assert [name.split(".")[1] for name in names if name.startswith("vaebench")] == operators
