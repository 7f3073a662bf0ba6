"""What every recorded version of Triton made of the kernels, `tests/data/kernel_figures.json`.

`PYTHONPATH=. python tests/helpers/kernel_figures.py` records the figures of the installed Triton, beside the others'.
"""

import json
from pathlib import Path

import triton

from kernels.readback.static_profile import static_profiles

FIGURES = Path(__file__).parents[1] / "data" / "kernel_figures.json"
CASE = ("kernel", "direction", "dtype", "target")
FIELDS = ("instructions_per_element", "load_bits", "store_bits", "shared_memory_bytes", "barriers")


def by_version() -> dict[str, list[dict]]:
    """All recorded rows by version of Triton, oldest first."""
    return json.loads(FIGURES.read_text())


def is_recorded() -> bool:
    """Whether the figures of the installed Triton are recorded, so that instructions may be compared."""
    return triton.__version__ in by_version()


def recorded_rows() -> list[dict]:
    """The rows of the installed Triton, or else those of the newest recorded one: every compiler keeps its widths."""
    versions = by_version()
    return versions.get(triton.__version__, list(versions.values())[-1])


def number(version: str) -> list[int]:
    """A version in the order of releases."""
    return [int(part) for part in version.split(".")]


def text(versions: dict[str, list[dict]]) -> str:
    """The file of these figures, a row a line."""
    parts = []
    for version in sorted(versions, key=number):
        rows = ",\n".join(f"  {json.dumps(row)}" for row in versions[version])
        parts.append(f' "{version}": [\n{rows}\n ]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def record() -> None:
    """Write the figures of every kernel, type and target."""
    rows = [{key: getattr(row, key) for key in CASE + FIELDS} for row in static_profiles()]
    FIGURES.write_text(text(by_version() | {triton.__version__: rows}))


if __name__ == "__main__":
    record()
