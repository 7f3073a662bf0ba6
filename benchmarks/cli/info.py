"""The verbs `list` and `env`: what there is, and where it would run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable

import torch

from benchmarks.data import DATA_SETS
from benchmarks.machine.environment import choose_device, collect
from benchmarks.records.catalogue import METRICS
from benchmarks.suites.config import read_suite, suite_names
from benchmarks.training.cost import parameter_count
from benchmarks.training.memory import estimate_memory
from kernels.reference.backend import REFERENCE
from models.presets import Preset
from models.registry import MODELS, build, presets

LARGE = 30_000_000
"""Parameters from which on the memory estimate of a preset takes many seconds."""


def list_known(options: argparse.Namespace) -> int:
    """Print what there is of one kind, a line each."""
    tables: dict[str, Callable[[], dict[str, str]]] = {
        "models": lambda: _models(options.memory),
        "datasets": lambda: {name: source.description for name, source in DATA_SETS.items()},
        "metrics": lambda: {name: metric.description for name, metric in METRICS.items()},
        "suites": lambda: {name: read_suite(name)[1].get("title", "") for name in suite_names()},
    }
    table = tables[options.what]()
    if options.json:
        print(json.dumps(table, indent=1))
        return 0
    width = max(map(len, table))
    for name, text in table.items():
        print(f"{name:{width}}  {text}")
    return 0


def _models(memory: bool) -> dict[str, str]:
    """Models and their presets with what they are; `memory`: estimate that of large presets too."""
    described = {name: _describe_preset(preset, memory) for name, preset in presets().items()}
    return {name: entry.description for name, entry in MODELS.items()} | described


def _describe_preset(preset: Preset, memory: bool) -> str:
    """Image, parameters and memory of a preset, built on the meta device."""
    image = preset.image
    with torch.device("meta"):
        model = build(preset.model, preset.config, image, preset.likelihood, REFERENCE)
    parameters = parameter_count(model)
    sides = f"{image.channels}x{image.height}x{image.width}"
    text = f"preset of {preset.model} for {sides} images, {parameters:,} parameters"
    if parameters >= LARGE and not memory:
        return text
    estimate = estimate_memory(model)
    fixed, each = estimate.training(0) / 2**20, estimate.per_image / 2**20
    return f"{text}, training in about {fixed:.1f} MiB + {each:.1f} MiB an image (float32)"


def env(options: argparse.Namespace) -> int:
    """Print the environment as JSON."""
    environment = collect(choose_device(options.device), torch.get_num_threads(), "float32")
    print(json.dumps(dataclasses.asdict(environment), indent=1))
    return 0
