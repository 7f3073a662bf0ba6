"""Step `kernels`: every fused operation against its float64 reference on the device, cheapest cases first.

A case varies one thing: type, layout, size, or how the operation is run. Triton compiles each variant, which takes
seconds, so that not all combinations are tried.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.gpu.findings import Fields, Findings
from benchmarks.profiling.kernel_timing import GRADIENT, VALUE, errors, errors_of
from benchmarks.profiling.problems import (
    BITS,
    LAYOUTS,
    Compiled,
    Evaluated,
    Layout,
    Problem,
    depthwise_problem,
    gaussian_problem,
    mixture_problem,
    norm_problem,
    sample_problem,
)
from kernels.backends import best_for
from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED, GaussianForm, Ops
from kernels.reference.backend import REFERENCE

CASE_SECONDS, COMPILE_SECONDS = {"cuda": 4.0, "cpu": 0.5}, 20.0
"""That a case may need, with Triton's compiler, and with torch.compile."""
BIG = 2**31 + 2**20
"""Elements of a tensor whose offsets do not fit 32 bits."""

Shape = tuple[int, int, int, int]
Make = Callable[[Shape, torch.dtype, torch.device, Layout], Problem]
Evaluate = Callable[[Problem, Ops], Evaluated]
Way = tuple[str, Evaluate]


@dataclass(frozen=True)
class Kind:
    """A fused operation in one form: its shapes as networks have them, odd ones, and whether it is a main form.

    Main forms are also tried in every layout, and compiled, captured and the like. `empty`: it takes no images at all.
    `casts`: autocast changes the types of its inputs, so that it answers another problem there.
    """

    name: str
    make: Make
    usual: Shape
    odd: Shape
    main: bool = False
    empty: bool = True
    casts: bool = False


def _gaussian(form: GaussianForm, learned: bool, **request: bool) -> Make:
    return lambda shape, dtype, device, layout: gaussian_problem(
        "", form, learned, shape, dtype, device, layout, **request
    )


def _norm(**request: bool) -> Make:
    return functools.partial(norm_problem, **request)


LATENTS, ODD_LATENTS = (8, 20, 16, 16), (3, 7, 5, 3)
ACTIVATIONS, ODD_ACTIVATIONS = (16, 128, 16, 16), (3, 20, 5, 7)
KINDS = (
    Kind("gaussian, standard-normal prior", _gaussian(PLAIN, False), LATENTS, ODD_LATENTS),
    Kind("gaussian, residual", _gaussian(RESIDUAL, True), LATENTS, ODD_LATENTS, main=True),
    Kind("mixture, colour", mixture_problem, (4, 3, 32, 32), (3, 3, 7, 5), main=True),
    Kind("norm and swish, training", _norm(training=True), ACTIVATIONS, ODD_ACTIVATIONS, main=True, empty=False),
    Kind("norm and swish, evaluation", _norm(training=False), ACTIVATIONS, ODD_ACTIVATIONS, main=True),
    Kind("depthwise 5x5", depthwise_problem, ACTIVATIONS, ODD_ACTIVATIONS, main=True, casts=True),
    Kind("gaussian, sample only", functools.partial(sample_problem, "sample only"), LATENTS, ODD_LATENTS),
    Kind("gaussian, learned prior", _gaussian(PLAIN, True), LATENTS, ODD_LATENTS),
    Kind("gaussian, clamped, standard prior", _gaussian(SOFT_CLAMPED, False), LATENTS, ODD_LATENTS),
    Kind("gaussian, clamped, learned prior", _gaussian(SOFT_CLAMPED, True), LATENTS, ODD_LATENTS),
    Kind("gaussian, residual, log ratio", _gaussian(RESIDUAL, True, log_ratio=True), LATENTS, ODD_LATENTS),
    Kind("gaussian, residual, given noise", _gaussian(RESIDUAL, True, external=True), LATENTS, ODD_LATENTS),
    Kind("mixture, grey", mixture_problem, (4, 1, 28, 28), (3, 1, 7, 5)),
    Kind("norm without swish, training", _norm(training=True, swish=False), ACTIVATIONS, ODD_ACTIVATIONS, empty=False),
)
"""The main forms are early, for the time may run out."""


def run(findings: Findings) -> None:
    """All cases."""
    findings.show(
        (
            *(("passed", "passed"), ("value_error", "value error"), ("value_tolerance", "value allowed")),
            *(
                ("gradient_error", "gradient error"),
                ("gradient_tolerance", "gradient allowed"),
                ("repeatable", "repeatable"),
            ),
            ("seconds", "s"),
        )
    )
    device = torch.device(findings.device)
    ops = best_for(device)
    findings.facts["operations"] = ops.name
    _check(findings, first_cases(device, findings.dry), ops)
    if findings.dry:
        findings.note("streams, graphs, torch.compile, tensors of 2^31 elements: on a GPU only")
    else:
        bigs = (("norm", big_norm), ("depthwise", big_depthwise), ("gaussian", big_gaussian), ("mixture", big_mixture))
        for name, big in bigs:
            findings.case(f"{name}, more than 2^31 elements, bfloat16", functools.partial(big, ops, device), needs=8)
    _check(findings, more_cases(device, findings.dry), ops)


Case = tuple[str, Callable[[], Problem], Evaluate]


def _check(findings: Findings, cases: Iterable[Case], ops: Ops) -> None:
    """Check the cases, with the time that they may need."""
    for name, make, evaluate in cases:
        needs = COMPILE_SECONDS if evaluate is compiled else CASE_SECONDS[findings.device]
        findings.case(name, functools.partial(check, make, ops, evaluate), needs=needs)


def case_of(
    kind: Kind,
    dtype: torch.dtype,
    layout: str,
    device: torch.device,
    dry: bool,
    size: Literal["usual", "odd", "empty"] = "usual",
    way: Way | None = None,
) -> Case:
    """One case; `way` is how it is run, by name."""
    shape = {"usual": kind.usual, "odd": kind.odd, "empty": (0, *kind.usual[1:])}[size]
    if dry and size == "usual":
        shape = (2, kind.usual[1] if kind.make is mixture_problem else 4, 4, 4)
    how, evaluate = way or ("", plainly)
    said = (kind.name, str(dtype).removeprefix("torch."), layout, "" if size == "usual" else size, how)
    make = functools.partial(kind.make, shape, dtype, device, LAYOUTS[layout])
    return ", ".join(filter(None, said)), make, evaluate


def first_cases(device: torch.device, dry: bool) -> Iterator[Case]:
    """Every form empty and in float32, the main ones in every way to run them and compiled."""
    case, last, main = functools.partial(case_of, device=device, dry=dry), "channels-last", [k for k in KINDS if k.main]
    for kind in KINDS:
        if kind.empty:
            yield case(kind, torch.float32, "contiguous", size="empty")
    for kind in KINDS:
        yield case(kind, torch.float32, last)
    for kind, way in itertools.product(main, _ways(device)):
        if not (kind.casts and way[1] is autocast):
            yield case(kind, torch.float32, last, way=way)
    for kind in [] if dry else main:
        yield case(kind, torch.float32, last, way=("torch.compile", compiled))


def more_cases(device: torch.device, dry: bool) -> Iterator[Case]:
    """Types of 16 bits, odd sizes, the other layouts, and the types in the layouts that they have not been in."""
    case, last, main = functools.partial(case_of, device=device, dry=dry), "channels-last", [k for k in KINDS if k.main]
    for kind in KINDS:
        yield case(kind, torch.bfloat16, last)
    for kind in KINDS:
        yield case(kind, torch.float32, "contiguous", size="odd")
    for kind in main:
        yield case(kind, torch.float16, "contiguous")
    for layout, kind in itertools.product([name for name in LAYOUTS if name not in ("contiguous", last)], main):
        yield case(kind, torch.float32, layout)
    for kind in KINDS:
        yield case(kind, torch.bfloat16, last, size="odd")
    for kind in KINDS:
        yield case(kind, torch.float16, last)
        yield case(kind, torch.float32, "contiguous")


def check(make: Callable[[], Problem], ops: Ops, evaluate: Evaluate) -> Fields:
    """Errors of values and gradients against the reference in float64, and whether a second run is the same."""
    problem = make()
    ours = evaluate(problem, ops)
    fields = judged(*errors_of(problem, ours), problem.dtype)
    again = evaluate(problem, ops)
    same = all(torch.equal(a, b) for one, two in zip(ours, again, strict=True) for a, b in zip(one, two, strict=True))
    wrong = [] if fields["passed"] else ["the errors exceed what is allowed"]
    wrong += [] if same else ["a second run gives other bits"]
    return {**fields, "shape": problem.shape, "repeatable": same, "passed": not wrong, "message": "; ".join(wrong)}


def judged(value: float, gradient: float, dtype: torch.dtype) -> dict[str, Any]:
    """Largest errors beside what is allowed."""
    return {
        "passed": value <= VALUE[dtype] and gradient <= GRADIENT[dtype],
        "value_error": value,
        "value_tolerance": VALUE[dtype],
        "gradient_error": gradient,
        "gradient_tolerance": GRADIENT[dtype],
    }


def plainly(problem: Problem, ops: Ops) -> Evaluated:
    """As it is."""
    return problem.evaluate(ops)


def compiled(problem: Problem, ops: Ops) -> Evaluated:
    """The forward pass, and so its gradient, through torch.compile as one graph."""
    return problem.evaluate(ops, forward=_compiled_forward(problem, ops))


@functools.lru_cache(maxsize=1)
def _compiled_forward(problem: Problem, ops: Ops) -> Compiled:
    """Compiled once for both passes over a problem, with nothing left of the one before."""
    torch.compiler.reset()
    return problem.compiled_forward(ops)


def autocast(problem: Problem, ops: Ops) -> Evaluated:
    """Under autocast to bfloat16, which leaves the operations' types as they are."""
    with torch.autocast(problem.given[0].device.type, torch.bfloat16):
        return problem.evaluate(ops)


def other_stream(problem: Problem, ops: Ops) -> Evaluated:
    """On a stream of its own, which is kept busy before, so that work on another stream would come too early."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = Problem(**{**vars(problem), "given": tuple(torch.zeros_like(one).copy_(one) for one in problem.given)})
        found = late.evaluate(ops)
    stream.synchronize()
    return found


def graphed(problem: Problem, ops: Ops) -> Evaluated:
    """Captured in a CUDA graph and replayed on the inputs, which are zero while it is captured."""
    given = tuple(torch.zeros_like(one) for one in problem.given)
    copied = Problem(**{**vars(problem), "given": given})
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        copied.evaluate(ops)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = copied.evaluate(ops)
    for target, source in zip(given, problem.given, strict=True):
        target.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    return Evaluated(*([one.clone() for one in part] for part in found))


def other_device(problem: Problem, ops: Ops) -> Evaluated:
    """On the second GPU, while the first is the current one."""

    def moved(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return tuple(None if one is None else one.to("cuda:1") for one in tensors)

    parts = {name: moved(getattr(problem, name)) for name in ("given", "upstream", "constants")}
    found = Problem(**{**vars(problem), **parts}).evaluate(ops)
    return Evaluated(*([one.to(problem.given[0].device) for one in part] for part in found))


def _ways(device: torch.device) -> list[Way]:
    """Ways to run that compile no other variant of a kernel."""
    if device.type == "cpu":
        return [("autocast", autocast)]
    found: list[Way] = [("other stream", other_stream), ("autocast", autocast), ("graph", graphed)]
    return [*found, *([("second device", other_device)] if torch.cuda.device_count() > 1 else [])]


def _room(elements: int, copies: float, itemsize: int = 2) -> None:
    """Raise MemoryError unless so many copies fit the device."""
    free, needed = torch.cuda.mem_get_info()[0], int(elements * copies * itemsize)
    if free < needed:
        raise MemoryError(f"{needed / 2**30:.0f} GiB needed, {free / 2**30:.0f} GiB free")


def _or_unjudged(fields: Callable[[], Fields]) -> Fields:
    """The fields, or a row without judgement where memory does not suffice."""
    try:
        return fields()
    except MemoryError as error:
        return {"passed": None, "message": str(error)}


def _last(x: Tensor) -> Tensor:
    """Channels beside each other."""
    return x.contiguous(memory_format=torch.channels_last)


def _present(upstream: Tensor | None) -> Tensor:
    """The gradient of an output that has one."""
    assert upstream is not None
    return upstream


def big_norm(ops: Ops, device: torch.device) -> Fields:
    """Batch norm and swish in training of images repeated so often that offsets pass 2^31.

    Mean and variance are those of the images once, and so are the gradients of each copy.
    """

    def fields() -> Fields:
        one = norm_problem((64, 128, 16, 16), torch.bfloat16, device)
        times = -(-BIG // one.given[0].numel())
        _room(times * one.given[0].numel(), 7)
        x, upstream = (_last(given.repeat(times, 1, 1, 1)) for given in (one.given[0], _present(one.upstream[0])))
        big = Problem(**{**vars(one), "given": (x, *one.given[1:]), "upstream": (upstream, None, None)})
        ours, theirs = big.evaluate(ops), one.evaluate(REFERENCE, wide=True)
        ends = slice(None, 64), slice(-64, None)
        mine = Evaluated([ours.values[0][end] for end in ends], [ours.gradients[0][end] for end in ends])
        other = Evaluated([theirs.values[0]] * 2, [theirs.gradients[0]] * 2)
        return {"shape": tuple(x.shape), **judged(*errors(mine, other), torch.bfloat16)}

    return _or_unjudged(fields)


def big_depthwise(ops: Ops, device: torch.device) -> Fields:
    """A depthwise convolution of images repeated so often that offsets pass 2^31; first and last ones are compared.

    The weight's gradient is that of the images once, times so many.
    """

    def fields() -> Fields:
        one = depthwise_problem((64, 128, 16, 16), torch.bfloat16, device)
        times = -(-BIG // one.given[0].numel())
        _room(times * one.given[0].numel(), 5)
        many = [_last(given.repeat(times, 1, 1, 1)) for given in (one.given[0], _present(one.upstream[0]))]
        big = Problem(**{**vars(one), "given": (many[0], one.given[1]), "upstream": (many[1],)})
        ours, theirs = big.evaluate(ops), one.evaluate(REFERENCE, wide=True)
        ends = slice(None, 64), slice(-64, None)
        maps = [found[end] for found in (ours.values[0], ours.gradients[0]) for end in ends]
        mine = Evaluated(maps[:2], [*maps[2:], ours.gradients[1].double() / times])
        other = Evaluated(theirs.values * 2, [theirs.gradients[0]] * 2 + theirs.gradients[1:])
        return {"shape": tuple(many[0].shape), **judged(*errors(mine, other), torch.bfloat16)}

    return _or_unjudged(fields)


def big_gaussian(ops: Ops, device: torch.device) -> Fields:
    """Draw and KL of so many images that offsets pass 2^31; the last images are compared, by their own noise."""

    def fields() -> Fields:
        one = gaussian_problem("", RESIDUAL, True, (64, 64, 32, 32), torch.bfloat16, device)
        times = -(-BIG // one.given[0].numel())
        _room(times * one.given[0].numel(), 7)
        samples, seed = 64 * times, one.constants[0]
        whole = [given.repeat(times, 1, 1, 1).requires_grad_() for given in one.given]

        def draw(of: Ops, leaves: Sequence[Tensor], first: int, upstream: Tensor) -> Evaluated:
            pairs = [half for leaf in leaves for half in leaf.chunk(2, 1)]
            found = of.gaussian_sample_kl(*pairs, seed=seed, group=0, form=RESIDUAL, first_sample=first)
            rows = torch.ones_like(found.kl)
            return Evaluated(
                [found.z, found.kl], list(torch.autograd.grad((found.z, found.kl), leaves, (upstream, rows)))
            )

        up = _present(one.upstream[0])
        ours = draw(ops, whole, 0, up[-1:].expand(samples, -1, -1, -1).contiguous())
        last = slice(samples - 2, samples)
        exact = [leaf[last].detach().double().requires_grad_() for leaf in whole]
        theirs = draw(REFERENCE, exact, samples - 2, up[-1:].double().expand(2, -1, -1, -1))
        mine = Evaluated([one[last] for one in ours.values], [one[last] for one in ours.gradients])
        return {"shape": tuple(whole[0].shape), **judged(*errors(mine, theirs), torch.bfloat16)}

    return _or_unjudged(fields)


def big_mixture(ops: Ops, device: torch.device) -> Fields:
    """Logistic mixture of so many images that offsets pass 2^31; the last images are compared."""

    def fields() -> Fields:
        one = mixture_problem((64, 3, 32, 32), torch.bfloat16, device)
        times = -(-BIG // one.given[0].numel())
        _room(times * one.given[0].numel(), 4)
        parameters, x = one.given[0].repeat(times, 1, 1, 1).requires_grad_(), one.constants[0].repeat(times, 1, 1, 1)
        log_prob = ops.logistic_mixture_log_prob(parameters, x, bits=BITS)
        gradient = torch.autograd.grad(log_prob.sum(), parameters)[0]
        theirs = one.evaluate(REFERENCE, wide=True)
        mine = Evaluated([log_prob[:64], log_prob[-64:]], [gradient[:64], gradient[-64:]])
        other = Evaluated(theirs.values * 2, theirs.gradients * 2)
        return {"shape": tuple(parameters.shape), **judged(*errors(mine, other), torch.bfloat16)}

    return _or_unjudged(fields)
