"""Whether the tensors of a file are the weights of a model: asked of what the file says before any of it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

SHOWN_KEYS = 3
SPARE = 8
"""Parameters that a model may register, some more than once, for each tensor of its file."""


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Hold names, shapes and kinds of numbers of `state` against a model's own; both may be on the meta device.

    Raises:
        ValueError: they differ; names the first of them.
    """
    both = {key: value for key, value in state.items() if key in own}
    _raise_where(
        missing=(key for key in own if key not in state),
        unexpected=(key for key in state if key not in own),
        of_another_shape=(
            f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
            for key, value in both.items()
            if value.shape != own[key].shape
        ),
        of_another_type=(
            f"{key} {_kind(value)} for {_kind(own[key])}"
            for key, value in both.items()
            if _kind(value) != _kind(own[key])
        ),
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into `model`.

    Raises:
        ValueError: names, shapes or kinds of numbers differ, values are NaN or infinite; names the first of them.
    """
    check_fit(model.state_dict(), state)
    _raise_where(without_values=(key for key, value in state.items() if value.is_meta))
    model.load_state_dict(state)
    loaded = model.state_dict()  # after the conversion: what is finite in float64 need not be so in float32
    _raise_where(with_NaN_or_infinite_values=(key for key in state if not torch.isfinite(loaded[key]).all()))


def require_sizes(config: Any, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a size in a model's configuration is larger than all values of its weights together."""
    values = sum(value.numel() for value in state.values())
    for name, size in dataclasses.asdict(config).items():
        numbers = [item for item in (size if isinstance(size, (tuple, list)) else [size]) if isinstance(item, int)]
        if sum(map(abs, numbers)) > values + SPARE:
            raise ValueError(f"the stored configuration has {name} of more than the {values:,} values of the file")


def skeleton(build: Callable[[], nn.Module], tensors: int) -> dict[str, Tensor]:
    """The state of the model that `build` makes on the meta device, where it has about as many tensors as its file.

    Raises:
        RuntimeError: it has many more; said as soon as they are, whatever sizes a configuration claims.
    """
    with _at_most(SPARE * (tensors + SPARE), tensors):
        return dict(build().state_dict())


@contextmanager
def _at_most(registrations: int, tensors: int) -> Iterator[None]:
    """Let modules register no more parameters and buffers than so many."""
    left = iter(range(registrations))

    def count(*_: object) -> None:
        if next(left, None) is None:
            raise RuntimeError(f"the stored configuration is of more than the {tensors:,} tensors of the file")

    handles = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(tensor: Tensor) -> str:
    """What numbers a tensor holds, whatever their precision."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "sparse or quantized numbers"
    if tensor.is_complex():
        return "complex numbers"
    if tensor.is_floating_point():
        return "floating point"
    return "truth values" if tensor.dtype == torch.bool else "whole numbers"


def _raise_where(**problems: Iterable[str]) -> None:
    """Raise ValueError where there are problems: 'missing: first keys, ...; unexpected: ...'."""
    shown = {name.replace("_", " "): list(islice(keys, SHOWN_KEYS + 1)) for name, keys in problems.items()}
    found = [f"{name}: {_listed(first)}" for name, first in shown.items() if first]
    if found:
        raise ValueError(f"weights do not fit the model: {'; '.join(found)}")


def _listed(first: list[str]) -> str:
    """'first keys, ...'."""
    return ", ".join([*first[:SHOWN_KEYS], *(["..."] if len(first) > SHOWN_KEYS else [])])
