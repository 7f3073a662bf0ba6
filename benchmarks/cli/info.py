"""The verbs `list` and `env`: what there is, and where it would run.

Torch is imported only where an answer needs it. The answer of `list models` is kept in models.json, which
`python -m benchmarks.cli.info` writes anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.base.files import write_text_atomically

if TYPE_CHECKING:
    from models.presets import Preset

MODELS_FILE = Path(__file__).with_name("models.json")


def list_known(options: argparse.Namespace) -> int:
    """Print what there is of one kind, a line each."""
    tables: dict[str, Callable[[], dict[str, str]]] = {
        "models": lambda: _models(options),
        "datasets": _data_sets,
        "metrics": _metrics,
        "suites": _suites,
    }
    table = tables[options.what]()
    if options.json:
        print(json.dumps(table, indent=1))
        return 0
    width = max(map(len, table))
    for name, text in table.items():
        print(f"{name:{width}}  {text}")
    return 0


def _models(options: argparse.Namespace) -> dict[str, str]:
    """Models and presets: as kept, unless plugins add some or their memory is asked for."""
    if options.memory or options.plugin:
        return described_models(options.memory)
    return json.loads(MODELS_FILE.read_text())


def described_models(memory: bool = False) -> dict[str, str]:
    """Models and their presets with what they are; `memory`: with that of each preset's training, which takes long."""
    from models.registry import MODELS, presets

    described = {name: _describe_preset(preset, memory) for name, preset in presets().items()}
    return {name: entry.description for name, entry in MODELS.items()} | described


def _describe_preset(preset: Preset, memory: bool) -> str:
    """Image and parameters of a preset; with `memory`, what its training needs."""
    image = preset.image
    text = f"preset of {preset.model} for {image.channels}x{image.height}x{image.width} images"
    if preset.parameters is not None:
        text += f", {preset.parameters:,} parameters"
    return f"{text}, {_training_memory(preset)}" if memory else text


def _training_memory(preset: Preset) -> str:
    """Memory of a preset's training step, from the model on the meta device."""
    import torch

    from benchmarks.training.memory import estimate_memory
    from kernels.reference.backend import REFERENCE
    from models.registry import build

    with torch.device("meta"):
        model = build(preset.model, preset.config, preset.image, preset.likelihood, REFERENCE)
    estimate = estimate_memory(model)
    fixed, each = estimate.training(0) / 2**20, estimate.per_image / 2**20
    return f"training in about {fixed:.1f} MiB + {each:.1f} MiB an image (float32)"


def _data_sets() -> dict[str, str]:
    from benchmarks.data import DATA_SETS

    return {name: source.description for name, source in DATA_SETS.items()}


def _metrics() -> dict[str, str]:
    from benchmarks.records.catalogue import METRICS

    return {name: metric.description for name, metric in METRICS.items()}


def _suites() -> dict[str, str]:
    from benchmarks.suites.config import read_suite, suite_names

    return {name: read_suite(name)[1].get("title", "") for name in suite_names()}


def env(options: argparse.Namespace) -> int:
    """Print the environment as JSON."""
    import torch

    from benchmarks.machine.environment import choose_device, collect, note_missing_kernels

    device = choose_device(options.device)
    note_missing_kernels(device)
    environment = collect(device, torch.get_num_threads(), "float32")
    print(json.dumps(dataclasses.asdict(environment), indent=1))
    return 0


if __name__ == "__main__":
    write_text_atomically(MODELS_FILE, json.dumps(described_models(), indent=1) + "\n")
