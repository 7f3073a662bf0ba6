"""Shapes in annotations are checked while the tests run (jaxtyping through beartype); they cost nothing in use.

Images of folders are not kept in the user's cache, but in tests of that.
"""

import os

from jaxtyping import install_import_hook

CHECKED = ("benchmarks.data", "benchmarks.metrics", "models.elbo", "models.distributions")

install_import_hook(CHECKED, "beartype.beartype")
os.environ.setdefault("VAEBENCH_CACHE", "off")
