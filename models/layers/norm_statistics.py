"""Running statistics of batch norms: averaged anew over passes of one's choice, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of `model` that keep running statistics."""
    return [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]


@contextmanager
def averaged_anew(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """The passes inside this block give the batch norms that they reach their running statistics.

    Those are the mean, over the passes, of the batch's mean and of its unbiased variance; every pass counts alike.
    Norms that no pass reaches keep theirs. The model is in training mode inside the block; after it every module has
    its own mode, and the list that the block is given holds the norms that were reached.
    """
    norms = batch_norms(model)
    momenta, own = [norm.momentum for norm in norms], [_statistics(norm) for norm in norms]
    modes = _modes(model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    reached: list[_BatchNorm] = []
    try:
        yield reached
    finally:
        reached += [norm for norm in norms if norm.num_batches_tracked]
        for norm, momentum, kept in zip(norms, momenta, own, strict=True):
            norm.momentum = momentum
            if norm not in reached:
                _set(norm, kept)
        _set_modes(model, modes)


@contextmanager
def given_back(model: nn.Module) -> Iterator[None]:
    """Whatever this block does to running statistics and modes is undone after it, bit for bit."""
    norms, modes = batch_norms(model), _modes(model)
    own = [_statistics(norm) for norm in norms]
    try:
        yield
    finally:
        for norm, kept in zip(norms, own, strict=True):
            _set(norm, kept)
        _set_modes(model, modes)


def _statistics(norm: nn.Module) -> list[Tensor]:
    """Copies of the norm's running mean, variance and count."""
    return [buffer.clone() for buffer in norm.buffers(recurse=False)]


@torch.no_grad()
def _set(norm: nn.Module, statistics: list[Tensor]) -> None:
    for buffer, value in zip(norm.buffers(recurse=False), statistics, strict=True):
        buffer.copy_(value)


def _modes(model: nn.Module) -> list[bool]:
    """Whether each module is in training mode."""
    return [module.training for module in model.modules()]


def _set_modes(model: nn.Module, modes: list[bool]) -> None:
    """Give every module its mode; what modules keep between passes is forgotten, as a change of mode has it."""
    model.train(modes[0])
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
