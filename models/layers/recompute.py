"""Less memory for the backward pass of a model that is built already."""

from __future__ import annotations

import dataclasses

from torch import nn

from kernels.cell_form import CellForm


def start_recomputing(model: nn.Module) -> bool:
    """Let the model's cells keep only their inputs for the backward pass and compute the rest again.

    Values and gradients stay what they are (Chen et al. 2016, section 4). False where no cell is left to do so.
    """
    found = False
    for module in model.modules():
        form = getattr(module, "form", None)
        if isinstance(form, CellForm) and not form.recompute:
            setattr(module, "form", dataclasses.replace(form, recompute=True))  # noqa: B010 - no tensor, no module
            found = True
    return found
