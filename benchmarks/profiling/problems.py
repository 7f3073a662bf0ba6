"""The fused operations as problems: inputs in a type and layout, a forward and a backward pass, a float64 answer.

Timings, Proton and the checks on a GPU share them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cell_form import LayerForm
from kernels.ops import PLAIN, RESIDUAL, SOFT_CLAMPED, GaussianDraw, GaussianForm, Ops
from kernels.reference.backend import REFERENCE

SHAPES = ((128, 64, 1, 1), (128, 20, 8, 8), (128, 20, 16, 16))
"""Latents (B, Z, h, w): a vector, and NVAE's groups of 1,280 and 5,120."""
IMAGES = ((64, 3, 32, 32),)
MAPS = ((32, 128, 16, 16), (32, 768, 16, 16))
"""Activations (B, C, h, w) of NVAE's cells on CIFAR-10: at rest, and widened inside a cell of the decoder."""
DEPTHS = ((32, 1536, 16, 16),)
"""Activations of depthwise layers, which widen a cell of the decoder most."""
COMPONENTS, BITS = 10, 8
SPREAD = 0.5
"""Of raw means and log scales: networks give such; scales of 50 would magnify the noise's last digits."""

Forward = Callable[[Ops, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
"""Outputs from the operations, the differentiable inputs, and the others."""
Compiled = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
"""A forward pass with its operations put in."""
Layout = Callable[[Tensor], Tensor]
"""The same values at other strides."""


class Evaluated(NamedTuple):
    """Outputs of a forward pass, and the gradients of its differentiable inputs."""

    values: list[Tensor]
    gradients: list[Tensor]


def _last(x: Tensor) -> Tensor:
    """Channels beside each other."""
    return x.contiguous(memory_format=torch.channels_last)


LAYOUTS: Mapping[str, Layout] = {
    "contiguous": torch.Tensor.contiguous,
    "channels-last": lambda x: _last(x),
    "channels behind one more": lambda x: _last(torch.cat((x[:, :1], x), 1))[:, 1:],
    "sliced images": lambda x: torch.stack((x, x), 1).flatten(0, 1)[::2],
    "every second pixel": lambda x: torch.stack((x, x), -1)[..., 0],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
"""How activations (B, C, h, w) may lie in memory."""


@dataclass(frozen=True)
class Problem:
    """An operation's forward and backward pass on given inputs.

    `floor` is the bytes it must move; `upstream` holds a gradient for every output, None for those that have none;
    `constants` are inputs without gradients, of which some may be moved in place. `noisy`: the first output holds
    latents drawn with keyed noise.
    """

    kernel: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    floor: int
    given: tuple[Tensor, ...]
    upstream: tuple[Tensor | None, ...]
    constants: tuple[Tensor, ...]
    forward: Forward
    noisy: bool = False

    def noise(self) -> tuple[Tensor, Tensor]:
        """The noise of each latent drawn, and what multiplies it, float64."""
        one, none = (self.evaluate(_with_noise(level), wide=True).values[0] for level in (1.0, 0.0))
        scale = one - none
        return (self.evaluate(REFERENCE, wide=True).values[0] - none) / scale, scale

    def evaluate(self, ops: Ops, wide: bool = False, forward: Compiled | None = None) -> Evaluated:
        """Values and gradients on fresh inputs.

        Args:
            ops: whose operations.
            wide: compute in float64 from the same rounded inputs.
            forward: the forward pass from `compiled_forward`, in place of these operations' own.
        """
        kind = torch.float64 if wide else None
        constants = [_as(one, kind, copy=True) for one in self.constants]
        return self._pass(forward or self._forward(ops), constants, kind)

    def step(self, ops: Ops) -> list[Tensor]:
        """Values and gradients on the inputs as they lie there, for a clock."""
        values, gradients = self._pass(self._forward(ops), self.constants, None)
        return [*values, *gradients]

    def exact(self) -> list[Tensor]:
        """Values and gradients by the reference in float64."""
        values, gradients = self.evaluate(REFERENCE, wide=True)
        return [*values, *gradients]

    def compiled_step(self, ops: Ops) -> Callable[[], list[Tensor]]:
        """`step` with the forward pass, and so its gradient, through torch.compile as one graph."""
        forward = self.compiled_forward(ops)

        def step() -> list[Tensor]:
            values, gradients = self._pass(forward, self.constants, None)
            return [*values, *gradients]

        return step

    def compiled_forward(self, ops: Ops) -> Compiled:
        """The forward pass of these operations through torch.compile as one graph, for `evaluate`."""
        return torch.compile(self._forward(ops), fullgraph=True, dynamic=False)

    def _forward(self, ops: Ops) -> Compiled:
        """The forward pass of these operations."""
        forward = self.forward

        def run(leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return forward(ops, leaves, constants)

        return run

    def _pass(self, forward: Compiled, constants: Sequence[Tensor], kind: torch.dtype | None) -> Evaluated:
        """One forward and backward pass."""
        leaves = [_as(one.detach(), kind).requires_grad_() for one in self.given]
        outputs = forward(leaves, constants)
        pairs = [(out, up.to(out)) for out, up in zip(outputs, self.upstream, strict=True) if up is not None]
        if not pairs:
            return Evaluated(list(outputs), [])
        gradients = torch.autograd.grad([out for out, _ in pairs], leaves, [up for _, up in pairs])
        return Evaluated(list(outputs), list(gradients))


def _with_noise(level: float) -> Ops:
    """The reference with the same noise everywhere."""

    def sample_kl(mean: Tensor, *rest: Any, **request: Any) -> GaussianDraw:
        return REFERENCE.gaussian_sample_kl(mean, *rest, **request, noise=torch.full_like(mean, level))

    def sample(mean: Tensor, *rest: Any, **request: Any) -> Tensor:
        return REFERENCE.gaussian_sample(mean, *rest, **request, noise=torch.full_like(mean, level))

    return dataclasses.replace(REFERENCE, gaussian_sample_kl=sample_kl, gaussian_sample=sample)


def _as(tensor: Tensor, kind: torch.dtype | None, copy: bool = False) -> Tensor:
    """The tensor in another floating type; whole numbers and `None` leave it as it is."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(kind or tensor.dtype, copy=copy)


def random(*shape: int, key: int) -> Tensor:
    """Standard normal values on the CPU, the same for the same key."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


def gaussian_problem(
    name: str,
    form: GaussianForm,
    learned: bool,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    layout: Layout = LAYOUTS["contiguous"],
    *,
    log_ratio: bool = False,
    external: bool = False,
) -> Problem:
    """Draw with KL, on request with the log ratio or external noise, and the gradients of all parameters."""
    whole = (shape[0], 2 * shape[1], *shape[2:])
    given = [layout((SPREAD * random(*whole, key=key)).to(device, dtype)) for key in range(2 if learned else 1)]
    rows = torch.linspace(0.5, 1.5, shape[0], device=device)
    upstream = [layout(random(*shape, key=3).to(device, dtype)), rows, *([rows] if log_ratio else [])]
    seed = torch.zeros((), dtype=torch.int64, device=device)
    noise = [layout(random(*shape, key=4).to(device, dtype))] if external else []

    def forward(ops: Ops, leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
        mean, log_scale = leaves[0].chunk(2, 1)
        prior = leaves[1].chunk(2, 1) if learned else (None, None)
        wanted: dict[str, Any] = {"log_ratio": True} if log_ratio else {}  # unsaid, for operations that know none
        wanted |= {"noise": constants[1]} if external else {}  # `EAGER` brings its own where none is given
        draw = ops.gaussian_sample_kl(mean, log_scale, *prior, seed=constants[0], group=0, form=form, **wanted)
        return (draw.z, draw.kl) if draw.log_ratio is None else (draw.z, draw.kl, draw.log_ratio)

    floor = (32 if not learned else 56) * given[0].numel() // 2 * dtype.itemsize // 4
    return Problem(name, shape, dtype, floor, tuple(given), tuple(upstream), (seed, *noise), forward, not external)


def sample_problem(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: Layout = LAYOUTS["contiguous"]
) -> Problem:
    """A draw from the soft-clamped prior at temperature 0.7, and the gradients of its parameters."""
    whole = (shape[0], 2 * shape[1], *shape[2:])
    given = layout((SPREAD * random(*whole, key=0)).to(device, dtype))
    upstream = layout(random(*shape, key=3).to(device, dtype))
    seed = torch.zeros((), dtype=torch.int64, device=device)

    def forward(ops: Ops, leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
        mean, log_scale = leaves[0].chunk(2, 1)
        request = {"seed": constants[0], "group": 1, "form": SOFT_CLAMPED, "temperature": 0.7}
        return (ops.gaussian_sample(mean, log_scale, **request),)

    floor = 8 * given.numel() // 2 * dtype.itemsize
    return Problem(name, shape, dtype, floor, (given,), (upstream,), (seed,), forward, True)


def mixture_problem(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: Layout = LAYOUTS["contiguous"]
) -> Problem:
    """Log-likelihood of the logistic mixture of grey or colour images, and the gradient of its parameters."""
    batch, colours, height, width = shape
    per_component = 10 if colours == 3 else 3
    given = layout(random(batch, per_component * COMPONENTS, height, width, key=0).to(device, dtype))
    levels = torch.randint(0, 2**BITS, shape, generator=torch.Generator().manual_seed(1)).to(device)

    def forward(ops: Ops, leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (ops.logistic_mixture_log_prob(leaves[0], constants[0], bits=BITS),)

    floor = batch * height * width * (3 * per_component * COMPONENTS * dtype.itemsize + 16 + 8 * colours)
    name = f"logistic mixture, {COMPONENTS} components, {'colour' if colours == 3 else 'grey'}"
    x = levels.double() / (2**BITS - 1)
    constants = (x if dtype == torch.float64 else x.float(),)
    return Problem(name, shape, dtype, floor, (given,), (torch.ones(batch, device=device),), constants, forward)


def norm_problem(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    layout: Layout = LAYOUTS["channels-last"],
    *,
    training: bool = True,
    swish: bool = True,
    backward: bool = True,
) -> Problem:
    """Batch norm and swish of activations, its running statistics and the gradients of x, weight and bias.

    Weight, bias and statistics are float32, as under autocast. In training the backward pass reads x and the gradient
    twice, and so does the forward pass x.
    """
    channels = shape[1]
    x = layout((2 * random(*shape, key=0) + 1).to(device, dtype))
    mean, var, weight, bias = (random(channels, key=key).to(device) for key in (11, 12, 13, 14))
    upstream = layout(random(*shape, key=3).to(device, dtype)) if backward else None

    def forward(ops: Ops, leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
        request = {"training": training, "repeats": 4 if training else 1, "activation": "swish" if swish else "none"}
        y = ops.norm_swish(leaves[0], *constants, *leaves[1:], **request)
        return (y, *constants) if training else (y,)

    moved = (None, None) if training else ()
    fields = (3 if training else 2) + (5 if backward else 0)
    name = f"batch norm{' and swish' if swish else ''}, {'training' if training else 'evaluation'}"
    return Problem(
        name if backward else f"{name}, forward",
        shape,
        dtype,
        fields * x.numel() * dtype.itemsize,
        (x, weight, bias),
        (upstream, *moved),
        (mean, var.square() + 0.5),
        forward,
    )


def depthwise_problem(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    layout: Layout = LAYOUTS["channels-last"],
    *,
    kernel: int = 5,
) -> Problem:
    """Depthwise convolution of activations, and the gradients of them and of the weight."""
    channels = shape[1]
    x, upstream = (layout(random(*shape, key=key).to(device, dtype)) for key in (0, 3))
    weight = (random(channels, 1, kernel, kernel, key=1) / kernel).to(device, dtype)
    form = LayerForm(kernel=kernel, groups=channels)

    def forward(ops: Ops, leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (ops.network.convolution(leaves[0], leaves[1], None, form),)

    floor = 5 * x.numel() * dtype.itemsize  # x and y; their gradients, and x again for the weight's
    return Problem(f"depthwise {kernel}x{kernel}", shape, dtype, floor, (x, weight), (upstream,), (), forward)


def problems(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterable[Problem]:
    """Every operation at every shape."""
    forms = (
        ("gaussian, standard-normal prior", PLAIN, False),
        ("gaussian, learned prior", PLAIN, True),
        ("gaussian, residual and clamped", RESIDUAL, True),
    )
    for dtype in dtypes:
        for shape in SHAPES:
            for name, form, learned in forms:
                yield gaussian_problem(name, form, learned, shape, dtype, device)
        for shape in IMAGES:
            yield mixture_problem(shape, dtype, device)
        for shape in MAPS:
            yield norm_problem(shape, dtype, device)
            yield norm_problem(shape, dtype, device, training=False, backward=False)
        for shape in DEPTHS:
            yield depthwise_problem(shape, dtype, device)
