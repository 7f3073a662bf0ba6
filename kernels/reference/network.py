"""REFERENCE: the layers of a network, one by one: residual cells, activated convolutions, weight and spectral norms."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernels.cell_form import CellActivation, CellForm, CellNorm, CellTensors, LayerForm, PackedCell
from kernels.ops import Activation, NetworkOps, NormSwish
from kernels.reference.norm import norm_swish

ACTIVATIONS: dict[CellActivation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "swish": F.silu,
    "elu": F.elu,
    "gelu": F.gelu,
}


def repeat_pixels(x: Tensor) -> Tensor:
    """Each pixel twice in both directions (nearest-neighbour up-sampling)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def gated_residual(skip: Tensor | None, branch: Tensor, gate: Tensor | None, gain: float) -> Tensor:
    """Sum skip + gain * gate * branch, in one pass over memory; without a gate, skip + gain * branch."""
    if skip is None:
        branch = branch if gate is None else branch * gate
        return branch if gain == 1 else branch * gain
    if gate is None:
        return torch.add(skip, branch, alpha=gain)
    return torch.addcmul(skip, branch, gate, value=gain)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor:
    """(B, C, h, w) -> (B, C_out, h', w'): [each pixel twice,] convolution, without the activation."""
    x = repeat_pixels(x) if form.repeat else x
    padding = form.dilation * (form.kernel - 1) // 2
    return F.conv2d(x, weight, bias, form.stride, padding, form.dilation, form.groups)


class Convolved(Protocol):
    """`convolved`, or what takes its place."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor:
        """Convolve."""
        ...


class Parts(NamedTuple):
    """What a network is computed with, layer by layer: batch norms with their swish, and convolutions."""

    norm_swish: NormSwish = norm_swish
    convolved: Convolved = convolved


PLAIN_PARTS = Parts()


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm, *, parts: Parts = PLAIN_PARTS
) -> Tensor:
    """Activation, then convolution; see `kernels.cell_form.ActivatedConvolution`."""
    return parts.convolved(ACTIVATIONS[form.activation](x), weight, bias, form)


def _normed(x: Tensor, norm: CellNorm, activation: Activation, training: bool, parts: Parts) -> Tensor:
    """A cell's norm, and swish if asked for."""
    return parts.norm_swish(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training=training,
        momentum=norm.momentum,
        eps=norm.epsilon,
        repeats=norm.repeats,
        activation=activation,
    )


def _activated(x: Tensor, norm: CellNorm | None, form: LayerForm, training: bool, parts: Parts) -> Tensor:
    """[Norm,] activation of a layer's input; a norm takes swish along."""
    if norm is None:
        return ACTIVATIONS[form.activation](x)
    if form.activation == "swish":
        return _normed(x, norm, "swish", training, parts)
    return ACTIVATIONS[form.activation](_normed(x, norm, "none", training, parts))


def opened_gate(branch: Tensor, gate: Sequence[Tensor]) -> Tensor | None:
    """Gates in (0, 1) (B, C, 1, 1) of squeeze-excitation (Hu et al. 2018): mean over pixels, bottleneck, sigmoid."""
    if not gate:
        return None
    hidden = F.relu(F.linear(branch.mean((2, 3)), gate[0], gate[1]))  # (B, C) -> (B, C / 16)
    return F.linear(hidden, gate[2], gate[3]).sigmoid()[:, :, None, None]


def _one_pass(
    x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, training: bool, parts: Parts
) -> Tensor:
    """The cell, layer by layer."""
    branch = x
    for norm, layer, conv in zip(tensors.norms, form.layers, tensors.convolutions, strict=False):
        branch = parts.convolved(_activated(branch, norm, layer, training, parts), conv.weight, conv.bias, layer)
    last = tensors.norms[-1]
    branch = branch if last is None else _normed(branch, last, "none", training, parts)
    return gated_residual(skip, branch, opened_gate(branch, tensors.gate), form.gain)


def _still(tensors: CellTensors) -> CellTensors:
    """The same tensors, whose running statistics a pass does not move."""
    norms = (norm and dataclasses.replace(norm, momentum=0.0) for norm in tensors.norms)
    return dataclasses.replace(tensors, norms=tuple(norms))


def _recomputed_pass(
    x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, training: bool, parts: Parts
) -> Tensor:
    """The cell, of which only the input is kept; the pass that the backward runs again moves no statistics."""
    passes = [tensors]

    def run(x: Tensor, skip: Tensor | None) -> Tensor:
        return _one_pass(x, skip, form, passes.pop() if passes else _still(tensors), training, parts)

    return checkpoint(run, x, skip, use_reentrant=False, preserve_rng_state=False)


def residual_cell(
    x: Tensor,
    skip: Tensor | None,
    form: CellForm,
    tensors: CellTensors,
    *,
    training: bool,
    parts: Parts = PLAIN_PARTS,
) -> Tensor:
    """The cell; see `kernels.cell_form.ResidualCell`. `parts` compute its layers."""
    run = _recomputed_pass if form.recompute and torch.is_grad_enabled() else _one_pass
    added = x if skip is None and form.residual else skip
    return run(x, added, form, tensors, training, parts)


def run_packed(cell: PackedCell, x: Tensor, skip: Tensor | None, *, parts: Parts = PLAIN_PARTS) -> Tensor:
    """The cell in evaluation; see `kernels.cell_form.RunPacked`."""
    return residual_cell(x, skip, cell.form, cell.tensors, training=False, parts=parts)


def _of_equal_shape(weights: Sequence[Tensor]) -> list[list[int]]:
    """Indices of weights (O, ...) that are equal as (O, N) matrices, in order of first appearance."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, weight in enumerate(weights):
        found[weight.shape[0], weight[0].numel()].append(index)
    return list(found.values())


def rows_of_norm(rows: Tensor, log_norm: Tensor, floor: float) -> Tensor:
    """Rows (..., O, N) rescaled to norm exp(log_norm) (..., O, 1): exp(g) w / (|w| + floor)."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows * (log_norm.exp() / (norm + floor))


def weight_norm(weights: Sequence[Tensor], log_norms: Sequence[Tensor], floor: float) -> tuple[Tensor, ...]:
    """The weights, those of equal shape together; see `kernels.ops.WeightNorm`."""
    found: dict[int, Tensor] = {}
    for indices in _of_equal_shape(weights):
        rows = torch.stack([weights[index].flatten(1) for index in indices])  # (n, O, C_in k k)
        norms = torch.stack([log_norms[index].flatten(1) for index in indices])
        for index, weight in zip(indices, rows_of_norm(rows, norms, floor).unbind(), strict=True):
            found[index] = weight.view_as(weights[index])
    return tuple(found[index] for index in range(len(weights)))


def power_iteration(matrices: Tensor, u: Tensor, rounds: int, floor: float) -> tuple[Tensor, Tensor]:
    """Left and right singular vectors (N, R), (N, C) of the top singular values of (N, R, C) matrices, from u."""
    v = u.new_zeros(())
    for _ in range(rounds):
        v = F.normalize(torch.bmm(u[:, None], matrices)[:, 0], dim=1, eps=floor)
        u = F.normalize(torch.bmm(matrices, v[:, :, None])[:, :, 0], dim=1, eps=floor)
    return u, v


def spectral_norms(weights: Sequence[Tensor], left: Sequence[Tensor], rounds: int, floor: float) -> Tensor:
    """Sum of top singular values, those of equal shape iterated together; see `kernels.ops.SpectralNorms`."""
    sums = []
    for indices in _of_equal_shape(weights):
        matrices = torch.stack([weights[index].flatten(1) for index in indices])  # (n, O, C_in k k)
        with torch.no_grad():
            u, v = power_iteration(matrices.detach(), torch.stack([left[index] for index in indices]), rounds, floor)
            for index, vector in zip(indices, u, strict=True):
                left[index].copy_(vector)
        sums.append((u[:, None] @ matrices @ v[:, :, None]).sum())  # u^T W v of each: (n, 1, 1)
    return torch.stack(sums).sum()


def network_of(parts: Parts = PLAIN_PARTS) -> NetworkOps:
    """Networks layer by layer, computed with `parts`."""
    return NetworkOps(
        residual_cell=functools.partial(residual_cell, parts=parts),
        pack_cell=PackedCell,
        run_packed=functools.partial(run_packed, parts=parts),
        convolution=functools.partial(convolution, parts=parts),
        weight_norm=weight_norm,
        spectral_norms=spectral_norms,
    )
