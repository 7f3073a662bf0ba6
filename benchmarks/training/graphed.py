"""Training steps replayed as CUDA graphs: thousands of launches become two, and nothing is compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.output import Draw

EAGER_STEPS = 1
"""Steps before the first capture: kernels are chosen, what starts from data is initialised, and state is made."""
REASON = 300
"""Characters of a complaint that are passed on."""


class LossWeights(NamedTuple):
    """What the loss takes from the progress of the training.

    Args:
        rate: factor on the (balanced) rates.
        kl: warm-up weight of the KL, for the model's penalty.
        balanced: whether the rates of the latent groups are balanced.
    """

    rate: float | Tensor
    kl: float | Tensor
    balanced: bool


Measure = Callable[[Tensor, Draw, LossWeights], Tensor]
"""Forward and backward pass: (2,) norm of the gradients and loss, from images, draw and weights of the loss."""
Take = Callable[[Tensor, float | None], None]
"""The update, from what was measured, with gradients clipped to a norm or left as they are."""


class Measured(NamedTuple):
    """A captured forward and backward pass and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    seed: Tensor
    rate: Tensor
    kl: Tensor
    found: Tensor
    gradients: list[Tensor | None]


class StepGraphs:
    """Replays both halves of a step, each captured once in every form (shape of the images, balanced, clipped).

    All that changes from step to step is read from memory: images, seed, learning rate and weights of the loss. The
    first step runs eagerly, on the stream of the captures. Where a capture fails, steps run eagerly from then on;
    `note` says why.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer, self.device, self.note = optimizer, device, ""
        self.stream = torch.cuda.Stream(device)
        self.learning_rate = torch.zeros((), device=device)
        self.taken = 0
        self.measures: dict[tuple[torch.Size, bool], Measured] = {}
        self.takes: dict[tuple[torch.Size, bool, float | None], torch.cuda.CUDAGraph] = {}

    def measure(self, measure: Measure, x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
        """What `measure` finds on these inputs, replayed from the second step on."""
        self.form = (x.shape, weights.balanced)
        if self.form not in self.measures and not self._eager():
            self._try(lambda: self._capture_measure(measure, x, draw, weights))
        if self._eager():
            with self._aside():
                return measure(x, draw, weights)
        one = self.measures[self.form]
        one.x.copy_(x)
        one.seed.copy_(draw.seed)
        one.rate.fill_(weights.rate)
        one.kl.fill_(weights.kl)
        one.graph.replay()
        return one.found

    def take(self, take: Take, found: Tensor, limit: float | None) -> None:
        """The update that follows what was measured."""
        form = (*self.form, limit)
        if form not in self.takes and not self._eager():
            self._try(lambda: self._capture_take(take, found, limit))
        if self._eager():
            with self._aside():
                take(found, limit)
        else:
            self.learning_rate.fill_(self.optimizer.param_groups[0]["lr"])
            self.takes[form].replay()
            torch.autograd.graph.increment_version(self._parameters())  # what was worked out from them holds no more
        self.taken += 1

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _eager(self) -> bool:
        return bool(self.note) or self.taken < EAGER_STEPS

    def _try(self, capture: Callable[[], None]) -> None:
        """Capture, of which nothing is executed; where that fails, say so once."""
        try:
            capture()
        except RuntimeError as error:
            self.note = f"compile = graph, but steps run eagerly: {' '.join(str(error).split())[:REASON]}"
            print(self.note, file=sys.stderr, flush=True)
            torch.cuda.synchronize(self.device)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the captures' stream, so that what autograd remembers belongs to it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _captured(self, call: Callable[[], Tensor | None]) -> tuple[torch.cuda.CUDAGraph, Tensor | None]:
        """A graph of the call's launches, in memory that all graphs share, and what the call returned."""
        graph, others = torch.cuda.CUDAGraph(), [one.graph for one in self.measures.values()]
        with torch.cuda.graph(graph, pool=others[0].pool() if others else None, stream=self.stream):
            result = call()
        return graph, result

    def _capture_measure(self, measure: Measure, x: Tensor, draw: Draw, weights: LossWeights) -> None:
        rate, kl = (torch.zeros((), device=self.device) for _ in range(2))
        x, seed = x.clone(), draw.seed.clone()
        call = lambda: measure(x, Draw(seed), LossWeights(rate, kl, weights.balanced))  # noqa: E731
        graph, found = self._captured(call)
        assert found is not None
        self.measures[self.form] = Measured(graph, x, seed, rate, kl, found, [p.grad for p in self._parameters()])

    def _capture_take(self, take: Take, found: Tensor, limit: float | None) -> None:
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for parameter, gradient in zip(self._parameters(), self.measures[self.form].gradients, strict=True):
            parameter.grad = gradient  # another form's may lie there
        try:
            for group in groups:
                group["lr"] = self.learning_rate
            self.takes[(*self.form, limit)], _ = self._captured(lambda: take(found, limit))
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
