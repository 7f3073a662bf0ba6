"""The walls of the house, read from the imports of every file."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("kernels", "models", "benchmarks")
TRITON_FILES = {
    "kernels/gpu/gaussian.py",
    "kernels/gpu/mixture.py",
    "kernels/gpu/norm.py",
    "kernels/gpu/latent_plan.py",
    "kernels/readback/static_profile.py",
    "kernels/gpu/device.py",
    "benchmarks/profiling/proton.py",
}
FILES_AND_ARGUMENTS = ("argparse", "io", "json", "os", "pathlib", "pickle", "safetensors", "shutil", "tomllib")
NO_TORCH = {"benchmarks/records/record.py", "benchmarks/base/errors.py", "benchmarks/records/uncertainty.py"}


def files(floor):
    return sorted((ROOT / floor).rglob("*.py"))


def imported(path):
    """Names of all modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_under(module, prefix):
    return module == prefix or module.startswith(f"{prefix}.")


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_import_downwards_only(floor):
    above = FLOORS[FLOORS.index(floor) + 1 :]
    for path in files(floor):
        for module in imported(path):
            assert not any(is_under(module, upper) for upper in above), f"{path} imports {module}"


def model_units():
    """Each model by name: its file or its folder."""
    return {"models.autoencoder", "models.vae", "models.nvae"}


def test_a_model_imports_neither_another_model_nor_the_engine():
    for unit in model_units():
        place = ROOT / unit.replace(".", "/")
        for path in [place.with_suffix(".py")] if place.with_suffix(".py").exists() else sorted(place.rglob("*.py")):
            for module in imported(path):
                assert not is_under(module, "models.elbo"), f"{path} imports the engine"
                others = model_units() - {unit}
                assert not any(is_under(module, other) for other in others), f"{path} imports {module}"


def test_the_engine_imports_no_model():
    for module in imported(ROOT / "models/elbo.py"):
        assert not any(is_under(module, unit) for unit in model_units() | {"models.registry"})


def test_models_know_no_file_and_no_argument_parser():
    for path in files("models"):
        for module in imported(path):
            assert not any(is_under(module, name) for name in FILES_AND_ARGUMENTS), f"{path} imports {module}"


def test_triton_is_imported_in_triton_files_only():
    for floor in FLOORS:
        for path in files(floor):
            if any(is_under(module, "triton") for module in imported(path)):
                assert str(path.relative_to(ROOT)) in TRITON_FILES, f"{path} imports triton"


def test_records_and_reports_import_no_torch():
    checked = [
        path for path in files("benchmarks") if str(path.relative_to(ROOT)) in NO_TORCH or "report" in path.parts
    ]
    assert len(checked) > len(NO_TORCH)
    for path in checked:
        assert not any(is_under(module, "torch") for module in imported(path)), f"{path} imports torch"


def test_metrics_never_see_a_config():
    for path in files("benchmarks/metrics"):
        assert not any(is_under(module, "benchmarks.suites.config") for module in imported(path)), path


def test_no_file_shadows_a_module():
    known = set(sys.stdlib_module_names) | {"triton", "torch", "numpy", "pandas", "matplotlib", "safetensors"}
    for floor in FLOORS:
        for path in files(floor):
            assert path.stem not in known or path.stem == "profile", f"{path} shadows a module"


def test_packages_are_this_checkout():
    for name in FLOORS:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert Path(spec.origin).resolve().parent.parent == ROOT, f"another distribution provides '{name}'"


def test_no_global_random_state_is_set():
    """torch.manual_seed appears only where the state is given back."""
    for floor in FLOORS:
        for path in files(floor):
            if path.name != "streams.py":
                assert "torch.manual_seed" not in path.read_text(), path
