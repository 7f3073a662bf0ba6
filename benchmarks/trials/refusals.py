"""Settings of a training that cost time on a CPU in place of saving it, found before anything runs.

Only `run` refuses them: a library's caller, `throughput` and tests may compare what they like.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.machine.environment import emulates_bfloat16
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import TrialConfig
from kernels.cell_form import CellForm
from kernels.cpu import library
from models.output import ImageShape

CPU = torch.device("cpu")


def why_refused(trial: TrialConfig, image: ImageShape) -> str:
    """Why the trial's precision or compilation would slow its training on a CPU, in one line; empty if it would not.

    Cells in C are in float32 and no part of a compiled pass (`docs/speed.md` has figures); other models gain by both.
    """
    bfloat16, compiled = trial.training.precision == "bfloat16", trial.training.compile == "on"
    if trial.device != "cpu" or not (bfloat16 or compiled):
        return ""
    if bfloat16 and emulates_bfloat16(CPU):
        return _said(trial, "precision=float32", "bfloat16, which this processor has no arithmetic for and emulates")
    if library.library() is None or not has_cells(build_model(trial, image, torch.device("meta"))):
        return ""
    if bfloat16:
        return _said(trial, "precision=float32", "bfloat16, in which its cells do without the faster kernels in C")
    return _said(trial, "compile=off", "on, which takes minutes and makes its cells slower than the kernels in C")


def has_cells(model: nn.Module) -> bool:
    """Whether the model has cells of which each is one operation."""
    return any(isinstance(getattr(module, "form", None), CellForm) for module in model.modules())


def _said(trial: TrialConfig, expected: str, got: str) -> str:
    return f"{trial.row}: expected training.{expected} on a CPU, got {got}; --set training.{expected}, or use a GPU"
