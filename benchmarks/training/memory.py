"""How much memory a model needs, measured without running it: on the meta device, by autograd's saved tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from models.elbo import terms
from models.output import Draw, Model


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: parameters, their gradients, optimiser state, and what a training step keeps for its backward pass.

    `per_step` is kept once a step (weights derived from parameters), `per_image` once an image. Work space of single
    operations and the allocator's slack are not counted.
    """

    parameters: int
    gradients: int
    optimizer: int
    per_step: int
    per_image: int

    def training(self, batch: int) -> int:
        """Bytes of a training step of `batch` images."""
        return self.parameters + self.gradients + self.optimizer + self.per_step + batch * self.per_image


def estimate_memory(model: Model, optimizer_slots: int = 2) -> MemoryEstimate:
    """The estimate for training `model` in its parameters' type.

    Args:
        model: on any device; one built on the meta device is not copied.
        optimizer_slots: numbers the optimiser keeps per parameter (Adam, AdamW and Adamax: 2; with EMA 3).
    """
    meta = model if next(model.parameters()).is_meta else copy.deepcopy(model).to("meta")
    parameters = sum(p.numel() * p.element_size() for p in meta.parameters())
    was_training = meta.training
    try:
        one, two = (saved_bytes(meta.train(), batch) for batch in (1, 2))
    finally:
        meta.train(was_training)
    return MemoryEstimate(parameters, parameters, optimizer_slots * parameters, 2 * one - two, two - one)


def saved_bytes(model: Model, batch: int) -> int:
    """Bytes that the forward pass and ELBO of `batch` images save for the backward pass, parameters excluded."""
    like = next(model.parameters())
    shape = model.image
    x = torch.zeros(batch, shape.channels, shape.height, shape.width, dtype=like.dtype, device=like.device)
    seed = torch.zeros((), dtype=torch.int64, device=like.device)
    draw = Draw(seed, noise=lambda _, size: torch.zeros(size, dtype=like.dtype, device=like.device))
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[_storage(tensor)] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        one = terms(model(x, draw), x)
        loss = one.distortion.mean() + one.rate.mean()
        penalty = model.penalty(1.0)
        loss = loss if penalty is None else loss + penalty
    owned = _owned(model)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in owned)


def _owned(model: nn.Module) -> set[int]:
    """Storages of parameters and buffers."""
    return {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
