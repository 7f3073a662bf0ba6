"""What a training carries from step to step, its optimizer, and how both are written to disk and read back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.storage import tensors
from benchmarks.suites.config import TrainingConfig, TrialConfig
from benchmarks.training.graphed import StepGraphs
from kernels.cpu.adamax import Adamax
from models.elbo import ELBOTerms, terms
from models.output import Draw, Model

Forward = Callable[[Model, Tensor, Draw, bool], ELBOTerms]
"""ELBO terms from model, images, draw, and whether the model computes in bfloat16."""


def forward_terms(model: Model, x: Tensor, draw: Draw, bfloat16: bool) -> ELBOTerms:
    """The ELBO terms of images x; with `bfloat16` the model, but not its likelihood, runs under autocast."""
    precision = torch.autocast(x.device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    with precision:
        output = model(x, draw)
    return terms(output, x)


@dataclass
class TrainingState:
    """Everything that training carries from step to step.

    `forward` is `forward_terms` or its compiled form; `graphs`, where there are any, replay the steps.
    """

    model: Model
    optimizer: Optimizer
    losses: Tensor  # (steps,) on the host; NaN where the step was skipped
    steps: int
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)
    validation: list[tuple[int, float]] = field(default_factory=list)
    trouble: str = ""
    forward: Forward = forward_terms
    cpu_seconds: float | None = 0.0  # None: not known from the start
    graphs: StepGraphs | None = None

    @property
    def skipped(self) -> int:
        """Number of steps that were not taken: loss or gradient not finite, or the gradient too large."""
        return int(self.losses[: self.step].isnan().sum())


def build_optimizer(config: TrainingConfig, model: nn.Module, device: torch.device) -> Optimizer:
    """The configured optimizer; on a GPU its step counter lives on the device."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    beta1, beta2 = config.betas
    options["betas"] = (beta1, beta2)
    if config.optimizer == "adamax":
        return Adamax(parameters, **options, foreach=True, capturable=device.type == "cuda")
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **options, fused=True, capturable=device.type == "cuda")


def save_state(state: TrainingState, folder: Path) -> None:
    """Write the training state atomically."""
    saved, rest = tensors.flatten_optimizer(state.optimizer.state_dict())
    saved |= {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    saved |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    saved["losses"] = state.losses
    metadata = {
        "steps": state.steps,
        "step": state.step,
        "seconds": state.seconds,
        "cpu_seconds": state.cpu_seconds,
        "validation": state.validation,
        "trouble": state.trouble,
        "optimizer": rest,
    }
    tensors.save(folder / tensors.STATE, saved, metadata)


def restore(model: Model, trial: TrialConfig, folder: Path) -> TrainingState | None:
    """The state saved in `folder`, loaded into `model`, or None if there is none."""
    if not (folder / tensors.STATE).exists():
        return None
    device = next(model.parameters()).device
    stored = tensors.load(folder / tensors.STATE)
    model.load_state_dict(_under(stored.tensors, "model."))
    optimizer = build_optimizer(trial.training, model, device)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(tensors.unflatten_optimizer(stored.tensors, stored.metadata["optimizer"], groups))
    _match_layout(optimizer)
    average = {name: tensor.to(device) for name, tensor in _under(stored.tensors, "average.").items()}
    meta = stored.metadata
    return TrainingState(
        model,
        optimizer,
        stored.tensors["losses"],
        meta["steps"],
        meta["step"],
        meta["seconds"],
        average,
        [(int(step), float(value)) for step, value in meta["validation"]],
        meta.get("trouble", ""),
        cpu_seconds=meta.get("cpu_seconds"),
    )


def _match_layout(optimizer: Optimizer) -> None:
    """Give loaded state the strides of its parameters: fused optimizers walk memory, not indices."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
