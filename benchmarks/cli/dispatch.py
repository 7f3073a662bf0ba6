"""Which module holds a verb; it is imported only when the verb is called."""

from __future__ import annotations

import argparse
import importlib

MODULES = {
    "run": "run",
    "trial": "trial",
    "tune": "tune",
    "report": "reports",
    "compare": "reports",
    "status": "reports",
    "merge": "reports",
    "throughput": "throughput",
    "evaluate": "checkpoints",
    "sample": "sample",
    "convert": "checkpoints",
    "encode": "latents.encode",
    "decode": "latents.decode",
    "reconstruct": "latents.variations",
    "interpolate": "latents.variations",
    "traverse": "latents.variations",
    "export": "hub.export",
    "push": "hub.push",
    "profile": "profile",
    "gpu": "gpu",
    "list": "info",
    "env": "info",
}
FUNCTIONS = {"list": "list_known"}


def call(verb: str, options: argparse.Namespace) -> int:
    """Run `verb` with parsed `options`; returns the exit code."""
    module = importlib.import_module(f"benchmarks.cli.{MODULES[verb]}")
    return getattr(module, FUNCTIONS.get(verb, verb))(options)
