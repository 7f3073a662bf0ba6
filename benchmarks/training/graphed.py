"""Training steps replayed as CUDA graphs: thousands of launches become one, and nothing is compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.output import Draw

EAGER_STEPS = 1
"""Steps before the first capture: they choose kernels, initialise what is initialised from data, and make state."""
REASON = 300
"""Characters of a complaint that are passed on."""


class LossWeights(NamedTuple):
    """What the loss takes from the progress of the training.

    Args:
        rate: factor on the balanced rates.
        kl: warm-up weight of the KL, for the model's penalty.
        balanced: whether the rates of the latent groups are balanced.
    """

    rate: float | Tensor
    kl: float | Tensor
    balanced: bool


Step = Callable[[Tensor, Draw, LossWeights], Tensor]
"""One step: its loss () from images, draw and weights of the loss; parameters and their state move."""


class Captured(NamedTuple):
    """A captured step and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    seed: Tensor
    rate: Tensor
    kl: Tensor
    loss: Tensor


@dataclass
class StepGraphs:
    """Replays a step that was captured once for each form of it (shape of the images, rates balanced or not).

    All that changes from step to step is read from memory: images, seed, learning rate and weights of the loss. The
    first steps run eagerly, on the stream of the captures. Where a capture fails, the step runs eagerly from then on;
    `note` says why.
    """

    optimizer: Optimizer
    device: torch.device
    note: str = ""
    eager: int = EAGER_STEPS
    captured: dict[tuple[torch.Size, bool], Captured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream = torch.cuda.Stream(self.device)
        self.learning_rate = torch.zeros((), device=self.device)
        self.failed = False

    def step(self, take: Step, x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
        """The loss of `take` on these inputs, replayed from the third step on."""
        form = (x.shape, weights.balanced)
        if self.eager or self.failed:
            self.eager = max(0, self.eager - 1)
            return self._aside(take, x, draw, weights)
        if form not in self.captured:
            try:
                self.captured[form] = self._capture(take, x, draw, weights)
            except RuntimeError as error:  # nothing was executed
                self.failed = True
                self.note = f"compile = graph, but steps run eagerly: {' '.join(str(error).split())[:REASON]}"
                print(self.note, file=sys.stderr, flush=True)
                torch.cuda.synchronize(self.device)
                return self._aside(take, x, draw, weights)
        one = self.captured[form]
        one.x.copy_(x)
        one.seed.copy_(draw.seed)
        one.rate.fill_(weights.rate)
        one.kl.fill_(weights.kl)
        self.learning_rate.fill_(self.optimizer.param_groups[0]["lr"])
        one.graph.replay()
        return one.loss.clone()

    def _aside(self, take: Step, x: Tensor, draw: Draw, weights: LossWeights) -> Tensor:
        """The step on the captures' stream, so that what autograd remembers belongs to it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            loss = take(x, draw, weights)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return loss

    def _capture(self, take: Step, x: Tensor, draw: Draw, weights: LossWeights) -> Captured:
        """Record the step; nothing of it is executed."""
        rate, kl = (torch.zeros((), device=self.device) for _ in range(2))
        x, seed = x.clone(), draw.seed.clone()
        fixed = [group["lr"] for group in self.optimizer.param_groups]
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.captured.values())).graph.pool() if self.captured else None
        try:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                loss = take(x, Draw(seed), LossWeights(rate, kl, weights.balanced))
        finally:
            for group, value in zip(self.optimizer.param_groups, fixed, strict=True):
                group["lr"] = value
        return Captured(graph, x, seed, rate, kl, loss)
