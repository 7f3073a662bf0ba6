"""The verbs `list` and `env`: what there is, and where it would run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable

import torch

from benchmarks.config import read_suite, suite_names
from benchmarks.data import DATA_SETS
from benchmarks.environment import choose_device, collect
from benchmarks.metrics.catalogue import METRICS
from models.registry import MODELS


def list_known(options: argparse.Namespace) -> int:
    """Print what there is of one kind, a line each."""
    tables: dict[str, Callable[[], dict[str, str]]] = {
        "models": lambda: {name: entry.description for name, entry in MODELS.items()},
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


def env(options: argparse.Namespace) -> int:
    """Print the environment as JSON."""
    environment = collect(choose_device(options.device), torch.get_num_threads(), "float32")
    print(json.dumps(dataclasses.asdict(environment), indent=1))
    return 0
