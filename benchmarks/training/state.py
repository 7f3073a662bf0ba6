"""What a training carries from step to step, its optimizer, and how both are written to disk and read back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically
from benchmarks.storage import tensors
from benchmarks.suites.config import TrainingConfig, TrialConfig
from benchmarks.training.graphed import StepGraphs
from benchmarks.training.ranks import ALONE, Ranks
from kernels.cpu.adamax import Adamax
from models.elbo import ELBOTerms, terms
from models.layers.recompute import start_recomputing
from models.output import Draw, Model

NUMBERS = (
    "steps",
    "step",
    "seconds",
    "cpu_seconds",
    "trouble",
    "back_offs",
    "over_threshold",
    "locked",
    "passes",
    "recompute",
    "restarts",
)
"""What a saved state holds besides tensors; an older one lacks some."""
LESS = ("passes", "recompute", "restarts")
"""Of them what a process that lacks memory changes."""
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": Adamax,
}
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

    `forward` is `forward_terms` or its compiled form; `graphs`, where there are any, replay the steps. `back_offs`
    counts its returns to a good state, each at half the rate; `over_threshold` the steps skipped for their gradient's
    norm, `locked` the last of them in a row; a batch takes `passes` forward and backward passes, in which, where memory
    ran out, cells `recompute` what they would have kept; `restarts` are the fresh processes in which it went on. Of
    several `ranks` that take the steps together each holds a state; the first has the average. `around_pass(last)` is
    what each of the passes runs in.
    """

    model: Model
    optimizer: Optimizer
    losses: Tensor  # (steps,) on the host; NaN where the step was not taken
    steps: int
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)
    validation: list[tuple[int, float]] = field(default_factory=list)
    trouble: str = ""
    forward: Forward = forward_terms
    cpu_seconds: float | None = 0.0  # None: not known from the start
    graphs: StepGraphs | None = None
    back_offs: int = 0
    over_threshold: int = 0
    locked: int = 0
    passes: int = 1
    recompute: bool = False
    restarts: int = 0
    ranks: Ranks = ALONE
    around_pass: Callable[[bool], AbstractContextManager[None]] = lambda last: contextlib.nullcontext()
    gradient_norm: float = math.nan  # of the last step, before clipping

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters by name."""
        return dict(self.model.named_parameters())

    @property
    def skipped(self) -> int:
        """Number of steps that were not taken: loss or gradient not finite, or its norm over the threshold."""
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
    one_pass = {"foreach": True} if config.optimizer == "adamax" else {"fused": True}
    return _bare(OPTIMIZERS[config.optimizer])(parameters, **options, **one_pass, capturable=device.type == "cuda")


@functools.cache
def _bare(kind: type[Optimizer]) -> type[Any]:
    """The optimizer without what torch has around its methods for torch.compile, which imports the compiler: seconds.

    Training compiles no optimizer.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), bare | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def save_state(state: TrainingState, folder: Path) -> None:
    """Write the training state whole, as the first rank; the one before it stays beside it."""
    if not state.ranks.first:
        return
    with contextlib.suppress(FileNotFoundError):
        (folder / tensors.STATE).replace(folder / tensors.STATE_BEFORE)
    _write(state, folder / tensors.STATE)


def save_good(state: TrainingState, folder: Path) -> None:
    """Write, as the first rank, the state to which `return_to_good` goes back."""
    if state.ranks.first:
        _write(state, folder / tensors.STATE_GOOD)


def leave_for_next(state: TrainingState, folder: Path) -> None:
    """Let fresh processes go on from `state`, whose step found no memory.

    The first rank writes it. Another one, which may hold other averages, leaves word of what to try, and they go on
    from the last state on disk.
    """
    if state.ranks.first:
        save_state(state, folder)
        return
    asked = {name: getattr(state, name) for name in LESS}
    write_text_atomically(folder / tensors.STARVED, json.dumps(asked) + "\n")


def heed_starved(state: TrainingState, folder: Path) -> bool:
    """Take to what another rank left word of, unless `state` has come as far; whether it had not."""
    try:
        asked = json.loads((folder / tensors.STARVED).read_text())
        passes, recompute, restarts = (int(asked[name]) for name in LESS)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{folder / tensors.STARVED} cannot be read and is left out: {error}", file=sys.stderr, flush=True)
        return False
    if restarts <= state.restarts:
        return False
    state.passes, state.restarts = max(passes, state.passes), restarts
    if recompute and not state.recompute:
        state.recompute = start_recomputing(state.model)
    return True


def _write(state: TrainingState, path: Path) -> None:
    saved, rest = tensors.flatten_optimizer(state.optimizer.state_dict())
    saved |= {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    saved |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    saved["losses"] = state.losses
    numbers = {name: getattr(state, name) for name in NUMBERS}
    tensors.save(path, saved, numbers | {"validation": state.validation, "optimizer": rest})


def restore(model: Model, trial: TrialConfig, folder: Path) -> TrainingState | None:
    """The latest whole state saved in `folder`, loaded into `model`, or None if there is none.

    A damaged one is said on stderr.
    """
    for name in (tensors.STATE, tensors.STATE_BEFORE):
        if (folder / name).exists():
            try:
                return _read(model, trial, folder / name)
            except UserError as error:
                print(f"{error}; an earlier state is used, or the training starts again", file=sys.stderr, flush=True)
    return None


def return_to_good(state: TrainingState, trial: TrialConfig, folder: Path) -> TrainingState:
    """The state of `save_good` in place of `state`, at half the rate; time spent and what was found out go on.

    Raises:
        UserError: it is missing or damaged.
    """
    good = _read(state.model, trial, folder / tensors.STATE_GOOD)
    kept = ("seconds", "cpu_seconds", "trouble", "passes", "recompute", "restarts", "forward", "ranks", "around_pass")
    for name in kept:
        setattr(good, name, getattr(state, name))
    good.back_offs = state.back_offs + 1
    if state.graphs is not None:  # they hold the memory of the optimizer that is gone
        good.graphs = StepGraphs(good.optimizer, state.graphs.device)
    return good


def forget(folder: Path) -> None:
    """Remove all states of a training from `folder`."""
    for name in tensors.STATES:
        (folder / name).unlink(missing_ok=True)


def _read(model: Model, trial: TrialConfig, path: Path) -> TrainingState:
    """The state in a file, loaded into `model`.

    Raises:
        UserError: the file is missing or damaged.
    """
    device = next(model.parameters()).device
    stored = tensors.load(path)
    model.load_state_dict(_under(stored.tensors, "model."))
    optimizer = build_optimizer(trial.training, model, device)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(tensors.unflatten_optimizer(stored.tensors, stored.metadata["optimizer"], groups))
    _match_layout(optimizer)
    meta = stored.metadata
    state = TrainingState(model, optimizer, stored.tensors["losses"], meta["steps"], cpu_seconds=None)
    state.average = {name: tensor.to(device) for name, tensor in _under(stored.tensors, "average.").items()}
    state.validation = [(int(step), float(value)) for step, value in meta["validation"]]
    for name in NUMBERS:
        setattr(state, name, meta.get(name, getattr(state, name)))
    if state.recompute:
        start_recomputing(model)
    return state


def _match_layout(optimizer: Optimizer) -> None:
    """Give loaded state the strides of its parameters: fused optimizers walk memory, not indices."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
