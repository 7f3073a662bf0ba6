"""The walls of the house, read from the imports of every file."""

import ast
import html
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("kernels", "models", "benchmarks")
MOST_FILES = 13
"""Python files of a folder, its `__init__.py` included."""
TRITON_FILES = {
    "kernels/gpu/gaussian.py",
    "kernels/gpu/mixture.py",
    "kernels/gpu/norm.py",
    "kernels/gpu/latent_plan.py",
    "kernels/readback/static_profile.py",
    "kernels/gpu/depthwise/kernels.py",
    "kernels/gpu/device.py",
    "benchmarks/profiling/plain_triton.py",
    "benchmarks/profiling/proton.py",
}
FILES_AND_ARGUMENTS = ("argparse", "io", "json", "os", "pathlib", "pickle", "safetensors", "shutil", "tomllib")
NO_TORCH = {"benchmarks/records/record.py", "benchmarks/base/errors.py", "benchmarks/records/uncertainty.py"}


@pytest.fixture(scope="module")
def drawing():
    """The script that draws the house, which reads its arrows."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    return {"models.vanilla.autoencoder", "models.vanilla.vae", "models.nvae", "models.vdvae"}


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
        assert not any(is_under(module, "benchmarks.suites") for module in imported(path)), path


STAGES = (
    ("benchmarks.__main__",),
    ("benchmarks.cli",),
    ("benchmarks.trials", "benchmarks.gpu"),
    ("benchmarks.speed",),
    ("benchmarks.evaluation", "benchmarks.training"),
    ("benchmarks.storage", "benchmarks.profiling"),
    ("benchmarks.metrics", "benchmarks.machine"),
    ("benchmarks.report",),
    ("benchmarks.data", "benchmarks.suites", "benchmarks.records"),
    ("benchmarks.base",),
    ("models.registry",),
    ("models.nvae", "models.vanilla", "models.vdvae", "models.elbo", "models.latents"),
    ("models.presets", "models.layers"),
    ("models.likelihoods",),
    ("models.output",),
    ("models.distributions", "models.fields"),
    ("kernels.readback",),
    ("kernels.backends",),
    ("kernels.gpu", "kernels.cpu"),
    ("kernels.reference",),
    ("kernels.ops",),
    ("kernels.cell_form", "kernels.interpreter"),
)
"""Rooms from the top to the bottom; one imports those of later lines only."""


def test_rooms_import_downwards_only(drawing):
    arrows = drawing.room_arrows()
    line = {room: index for index, rooms in enumerate(STAGES) for room in rooms}
    assert set(line) == set(arrows)
    for room, below in arrows.items():
        assert all(line[room] < line[other] for other in below), f"{room} imports {sorted(below)}"


def test_no_files_import_each_other_in_a_circle(drawing):
    known = drawing.modules()
    assert drawing.rows_of({name: drawing.imports(path, known) - {name} for name, path in known.items()})


def test_a_circle_is_found(drawing):
    with pytest.raises(ValueError, match="circle"):
        drawing.rows_of({"a": {"b"}, "b": {"a"}, "c": {"a"}})


def test_the_picture_of_the_house_is_of_today(drawing):
    """Its text holds all arrows; the drawing itself differs with the versions of matplotlib."""
    written = html.unescape(drawing.PICTURE.read_text())
    assert drawing.describe(drawing.room_arrows()) in written


def test_no_c_files_include_or_call_each_other_in_a_circle(drawing):
    """A file leans on those whose functions it calls or whose header it includes."""
    sources = sorted((ROOT / "kernels/cpu/source").glob("*.[ch]"))
    texts = {path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S) for path in sources}
    defined = {
        function: name
        for name, text in texts.items()
        if name.endswith(".c")
        for function in re.findall(r"^(?!static)[\w *]+?\b(\w+)\([^;{]*\)\s*\{", text, re.M)
    }
    assert len(defined) > 30
    arrows = {name: set(re.findall(r'#include "([\w.]+)"', text)) for name, text in texts.items()}
    for name, text in texts.items():
        if name.endswith(".c"):
            arrows[name] |= {home for function, home in defined.items() if re.search(rf"\b{function}\(", text)} - {name}
    assert drawing.rows_of(arrows)


def test_lists_of_names_hold_what_exists():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["per-file-ignores"]
    paths = [*TRITON_FILES, *NO_TORCH, *(name for name in settings if "*" not in name)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    checked = ast.literal_eval(
        re.search(r"^CHECKED = (\(.*?\))$", (ROOT / "tests/conftest.py").read_text(), re.M | re.S)[1]
    )
    names = [*model_units(), *checked]
    assert [name for name in names if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("floor", FLOORS)
def test_folders_are_small_and_say_what_lives_in_them(floor):
    for package in (path.parent for path in files(floor) if path.name == "__init__.py"):
        assert len(list(package.glob("*.py"))) <= MOST_FILES, package
        said = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        assert len(said) > 40, package


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
