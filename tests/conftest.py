"""Shapes in annotations are checked while the tests run (jaxtyping through beartype); they cost nothing in use.

Images of folders are not kept in the user's cache, but in tests of that.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

CHECKED = ("benchmarks.data", "benchmarks.metrics", "models.elbo", "models.distributions")
LONG = (
    "kernels/gpu/test_interpreted.py",
    "benchmarks/trials/test_run.py",
    "benchmarks/trials/test_endings.py",
    "benchmarks/speed/test_suite.py",
    "benchmarks/trials/test_kills.py",
    "benchmarks/report/test_browser.py",
    "benchmarks/trials/test_ranks.py",
    "benchmarks/training/test_compiled.py",
)
"""Files that take longest, the longest first: begun last, one would keep a worker of `pytest -n` alone."""

install_import_hook(CHECKED, "beartype.beartype")
os.environ.setdefault("VAEBENCH_CACHE", "off")


def pytest_collection_modifyitems(items):
    """Begin with the long files; the others follow in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))
