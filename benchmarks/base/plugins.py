"""What a user adds: modules that put models, data sets, extractors or metrics into the registries when imported."""

from __future__ import annotations

import importlib
import sys

from benchmarks.base.errors import UserError

OWN = ("kernels", "models", "benchmarks")
"""Our packages."""


def import_plugin(module: str) -> None:
    """Import a module that adds to the registries; the current folder is searched too.

    Raises:
        UserError: it cannot be imported.
    """
    for package in OWN:  # before the current folder can hide one of them
        importlib.import_module(package)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the module does when it runs
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UserError(f"--plugin {module}: expected a module that can be imported: {what}") from error
