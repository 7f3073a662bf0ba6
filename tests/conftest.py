"""Shapes in annotations are checked while the tests run (jaxtyping through beartype); they cost nothing in use."""

from jaxtyping import install_import_hook

CHECKED = ("benchmarks.data", "benchmarks.metrics", "models.elbo", "models.distributions")

install_import_hook(CHECKED, "beartype.beartype")
