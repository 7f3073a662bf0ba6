"""The forward pass of training through torch.compile, or eagerly where that fails, which is said and recorded."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.training.state import Forward, forward_terms
from models.elbo import ELBOTerms
from models.output import Draw, Model

REASON = 300
"""Characters of a compiler's complaint that are passed on."""


class Compilation(NamedTuple):
    """The forward pass to train with, and what the record should say about it."""

    forward: Forward
    note: str


def compiled_forward(model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> Compilation:
    """`forward_terms` compiled for this model and batch: replayed as a CUDA graph on a GPU, fused loops on a CPU.

    Forward and backward pass are rehearsed on x, which compiles them; the model is left as it was. Where the compiler
    fails on what runs eagerly, the eager form is returned, and stderr says why.
    """
    rehearse(forward_terms, model, x, draw, bfloat16)
    mode = "reduce-overhead" if x.device.type == "cuda" else "default"
    fast = torch.compile(forward_terms, mode=mode)

    def forward(model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> ELBOTerms:
        torch.compiler.cudagraph_mark_step_begin()
        return fast(model, x, draw, bfloat16)

    started = time.perf_counter()
    try:
        rehearse(forward, model, x, draw, bfloat16)
    except Exception as error:  # whatever it is, it is the compiler's: the eager pass went through
        reason = " ".join(str(error).split())[:REASON]
        note = f"compile = on, but the training ran eagerly, for {type(error).__name__}: {reason}"
        print(note, file=sys.stderr, flush=True)
        return Compilation(forward_terms, note)
    seconds = time.perf_counter() - started
    return Compilation(forward, f"compiled by torch.compile (mode {mode}) in {seconds:.0f} s, not counted as training")


def rehearse(forward: Forward, model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> None:
    """One forward and backward pass that leaves neither gradients nor traces in batch-norm statistics."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        found = forward(model, x, draw, bfloat16)
        (found.distortion.mean() + found.rates.sum(1).mean()).backward()
    finally:
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)
        model.zero_grad(set_to_none=True)
