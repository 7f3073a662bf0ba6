"""A training state whose steps several processes take together."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training.diagnostics import buffers_restored
from benchmarks.training.ranks import Ranks
from benchmarks.training.state import TrainingState, forward_terms
from models.elbo import ELBOTerms
from models.output import Draw, Model

NEW, OLD = "forward_sync_buffers", "broadcast_buffers"
EACH_KEEPS_ITS_BUFFERS: Any = {NEW if NEW in inspect.signature(DistributedDataParallel).parameters else OLD: False}
"""Argument under the name that this torch has for it: no forward pass sends the first process's buffers to all."""


class SharedForward:
    """The ELBO terms of a whole batch, of which each process computes its share of the images.

    The same images with the same noise as in one process. Gradients are averaged while the backward pass goes on, in
    buckets (Li et al. 2020), unless the pass is `held_back`. Buffers need no exchange: batch norms are those of all
    processes, and what else there is follows from the weights.
    """

    def __init__(self, model: Model, ranks: Ranks) -> None:
        self.model, self.ranks = DistributedDataParallel(model, **EACH_KEEPS_ITS_BUFFERS), ranks

    def __call__(self, model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> ELBOTerms:
        """Terms (B,), (B, G) of the whole batch x (B, C, H, W), the same in all processes; see `Ranks.whole`."""
        own_x, own_draw = share_of(self.ranks, x, draw)
        own = forward_terms(self.model, own_x, own_draw, bfloat16)  # pyright: ignore[reportArgumentType]
        distortion = self.ranks.whole(own.distortion, len(x))
        return ELBOTerms(distortion, self.ranks.whole(own.rates, len(x)), own.resolutions)

    def around_pass(self, last: bool) -> AbstractContextManager[None]:
        """What a pass of a batch runs in: gradients are exchanged in the last one."""
        return nullcontext() if last else self.model.no_sync()


def share_of(ranks: Ranks, x: Tensor, draw: Draw) -> tuple[Tensor, Draw]:
    """This process's images of a batch, with the noise that they have in the whole one."""
    share = ranks.share(len(x))
    return x[share], dataclasses.replace(draw, first_sample=draw.first_sample + share.start)


def share_steps(state: TrainingState, ranks: Ranks) -> None:
    """Let the steps of `state` be taken by all ranks together; its parameters become those of the first."""
    state.ranks = ranks
    if ranks.count == 1:
        return
    if not ranks.first:
        state.average = {}  # the first keeps it
    shared = SharedForward(state.model, ranks)
    state.forward, state.around_pass = shared, shared.around_pass


def initialise_from_data(model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> None:
    """Let layers that start from their first batch do so on the whole of it, as in one process."""
    if any(getattr(module, "awaits_data", False) for module in model.modules()):
        with torch.no_grad(), buffers_restored(model):
            forward_terms(model, x, draw, bfloat16)
