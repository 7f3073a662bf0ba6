"""Batch-norm statistics of generated images, for sampling (NVAE, Vahdat & Kautz 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.output import Draw, Model

Statistics = dict[str, Tensor]


@dataclass
class ReadjustedBatchNorm:
    """Running statistics for sampling at a temperature, measured once on images drawn from the prior, then kept.

    Args:
        model: its weights must not change while the statistics are used.
        seed: () int64 on the model's device; keys the noise of the drawn images.
        batches, batch_size: how many images are drawn; the published code draws 500 batches of 16.
    """

    model: Model
    seed: Tensor
    batches: int = 500
    batch_size: int = 16
    _kept: dict[float, Statistics] = field(default_factory=dict, repr=False)

    @contextmanager
    def applied(self, temperature: float) -> Iterator[None]:
        """The model has the statistics of `temperature` inside this block, and its own after it."""
        if temperature not in self._kept:
            self._kept[temperature] = self._measure(temperature)
        own = _statistics(self.model)
        _set(self.model, self._kept[temperature])
        try:
            yield
        finally:
            _set(self.model, own)

    @torch.no_grad()
    def _measure(self, temperature: float) -> Statistics:
        """Running statistics after `batches` batches from the prior in training mode."""
        own, was_training = _statistics(self.model), self.model.training
        self.model.train()
        try:
            for batch in range(self.batches):
                draw = Draw(self.seed, first_sample=batch * self.batch_size)
                state = self.model.sample_state(self.batch_size, draw, temperature)
                self.model.decode_parameters(state)
            return _statistics(self.model)
        finally:
            self.model.train(was_training)
            _set(self.model, own)


def _statistics(model: nn.Module) -> Statistics:
    """Copies of the running statistics of all batch norms."""
    return {
        f"{name}.{key}": value.clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, value in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def _set(model: nn.Module, statistics: Statistics) -> None:
    buffers = dict(model.named_buffers())
    for key, value in statistics.items():
        buffers[key].copy_(value)
