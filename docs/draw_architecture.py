"""Draws docs/architecture.svg from the imports of today: python docs/draw_architecture.py.

Folders are boxes, and so are files that lie directly in a floor; an arrow says that one imports another. A room stands
above all that it imports. Left out, so that the picture can be read: arrows that others imply, and those from floor to
floor, which all lead from benchmarks/ to models/ and kernels/ and from models/ to kernels/.
"""

from __future__ import annotations

import ast
import io
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
FLOORS = {"benchmarks": "#dbe8f6", "models": "#e2f0d9", "kernels": "#fbe5d6"}
WIDTH, GAP, HEIGHT, STEP = 1.5, 0.2, 0.5, 1.0
"""Of a box in inches, between boxes of a row, and from one row to the next."""

Arrows = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Files of the three floors by dotted name."""
    paths = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def room_of(module: str) -> str:
    """The room that a module lies in: a folder of a floor with all that is in it, or a file directly in a floor."""
    return ".".join(module.split(".")[:2])


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the floors that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value)  # a name handed to importlib
    return found & known.keys()


def room_arrows() -> Arrows:
    """Room -> rooms that its files import."""
    known, arrows = modules(), defaultdict(set)
    for module, path in known.items():
        here = room_of(module)
        arrows[here] |= {room_of(other) for other in imports(path, known)} - {here}
    return {folder: arrows[folder] for folder in sorted(arrows) if arrows[folder] or _is_imported(folder, arrows)}


def _is_imported(folder: str, arrows: Arrows) -> bool:
    return any(folder in others for others in arrows.values())


def rows_of(arrows: Arrows) -> dict[str, int]:
    """Row of each folder, 0 at the bottom: one above the highest folder that it imports.

    Raises:
        ValueError: folders import each other in a circle.
    """
    rows: dict[str, int] = {}
    while len(rows) < len(arrows):
        ready = [folder for folder, below in arrows.items() if folder not in rows and below <= rows.keys()]
        if not ready:
            raise ValueError(f"expected no circle among folders, got one in {sorted(arrows.keys() - rows.keys())}")
        for folder in ready:
            rows[folder] = 1 + max((rows[other] for other in arrows[folder]), default=-1)
    return rows


def direct(arrows: Arrows) -> Arrows:
    """The arrows that no longer path implies."""
    reach: Arrows = {}
    for folder in sorted(arrows, key=rows_of(arrows).__getitem__):
        reach[folder] = arrows[folder].union(*(reach[other] for other in arrows[folder]))
    return {
        folder: {one for one in below if not any(one in reach[other] for other in below - {one})}
        for folder, below in arrows.items()
    }


def within(floor: str, arrows: Arrows) -> Arrows:
    """The arrows among the rooms of one floor."""
    rooms = [room for room in arrows if room.partition(".")[0] == floor]
    return {room: {other for other in arrows[room] if other in rooms} for room in rooms}


def places_of(arrows: Arrows) -> dict[str, tuple[float, float]]:
    """Middle of each room's box, rows from 0 at the bottom, a room as near as can be below those that import it."""
    rows, places = rows_of(arrows), dict[str, tuple[float, float]]()
    for row in range(max(rows.values()), -1, -1):
        members = sorted(
            (room for room in rows if rows[room] == row), key=lambda room: (_above(room, arrows, places), room)
        )
        for index, room in enumerate(members):
            places[room] = (index - (len(members) - 1) / 2) * (WIDTH + GAP), row * STEP
    return places


def _above(room: str, arrows: Arrows, places: dict[str, tuple[float, float]]) -> float:
    """Mean place, from left to right, of what imports a room."""
    over = [places[other][0] for other, below in direct(arrows).items() if room in below]
    return sum(over) / len(over) if over else 0.0


def draw(arrows: Arrows) -> str:
    """The picture as SVG text, the floors side by side; the same for the same arrows."""
    floors = {floor: within(floor, arrows) for floor in FLOORS}
    places = {floor: places_of(rooms) for floor, rooms in floors.items()}
    halves = {floor: max(x for x, _ in found.values()) + (WIDTH + 3 * GAP) / 2 for floor, found in places.items()}
    top = max(y for found in places.values() for _, y in found.values()) + STEP
    figure = Figure(figsize=(2 * sum(halves.values()), top + STEP))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 2 * sum(halves.values())), ylim=(-STEP, top))
    axes.axis("off")
    left = 0.0
    for floor, half in halves.items():
        shifted = {room: (x + left + half, y) for room, (x, y) in places[floor].items()}
        _draw_floor(axes, floor, floors[floor], shifted)
        axes.text(left + half, -0.7 * STEP, f"{floor}/", ha="center", va="center", size=12, weight="bold")
        left += 2 * half
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "vaebench", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Description": describe(arrows)})
    return text.getvalue()


def _draw_floor(axes: Axes, floor: str, arrows: Arrows, places: dict[str, tuple[float, float]]) -> None:
    for room, below in direct(arrows).items():
        for other in sorted(below):
            axes.add_patch(_arrow(places[room], places[other]))
    for room, (x, y) in places.items():
        axes.add_patch(_box(x, y, FLOORS[floor]))
        axes.text(x, y, room.removeprefix(f"{floor}."), ha="center", va="center", size=9)


def describe(arrows: Arrows) -> str:
    """All arrows as text, kept in the picture's metadata."""
    return "; ".join(f"{folder} -> {', '.join(sorted(below))}" for folder, below in sorted(arrows.items()) if below)


def _box(x: float, y: float, colour: str) -> FancyBboxPatch:
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    return FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02", facecolor=colour, edgecolor="#555555")


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> FancyArrowPatch:
    start, end = (above[0], above[1] - HEIGHT / 2), (below[0], below[1] + HEIGHT / 2)
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="#888888", linewidth=0.8)


if __name__ == "__main__":
    PICTURE.write_text(draw(room_arrows()))
