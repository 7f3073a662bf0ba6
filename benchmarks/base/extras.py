"""Packages that only an option needs: imported when that is used."""

from __future__ import annotations

import importlib
from types import ModuleType

from benchmarks.base.errors import UserError, first_line


def needed(module: str, what: str, extra: str) -> ModuleType:
    """The module that `what` needs, of a package in an extra of this one's.

    Raises:
        UserError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0] if module != "torch.utils.tensorboard" else "tensorboard"
        raise UserError(
            f"{what}: expected the package {package}, got '{first_line(error)}'; pip install -e '.[{extra}]'"
        ) from error
