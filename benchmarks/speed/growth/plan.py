"""What the growth suite measures: its TOML file, what of it is chosen, and the points that follow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from benchmarks.base.checked import bounds
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError, unknown
from benchmarks.speed.growth.verbs import METRICS, MODELS
from benchmarks.speed.plan import beside, read_suite_table
from models.fields import Bounds, bounded, require_bounds

CURVE = "curve"
"""The key of a suite file by which it is one of growth."""
BATCH, SIDE, DRAWS, N = "batch", "side", "draws", "n"
KNOWN_AXES = (BATCH, SIDE, DRAWS, N)
"""Axes that are fields of a point; any other is a setting with `PLACE` in it."""
PLACE = "{}"
EXTRACTION, BOUND = "features", "iwae"
"""What alone heeds the side of images that are scored, and K."""
VALUES = Bounds(1, 1_000_000)
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Curve:
    """What is measured of one target while one thing grows.

    Args:
        axis: what grows: batch, side (of a square image, in pixels), draws (K), n (images of a distance), or a word for
            what `set` sets.
        target: as `throughput` takes it; of a metric of features, an extractor.
        what: verbs of a model, or metrics of features.
        values: of the axis, growing.
        row: the row of a target that has several.
        label: its name for `--models`; the axis unless given.
        set: overrides of the target's configuration, with {} where the value goes.
        batch, side, draws, n: where they are not the axis; 0 leaves the target's own.
        rounds: calls that are timed at least.
    """

    axis: str
    target: str
    what: tuple[str, ...]
    values: tuple[int, ...] = bounded((), VALUES)
    row: str = ""
    label: str = ""
    set: tuple[str, ...] = ()
    batch: int = bounded(0, bounds.or_zero(bounds.BATCH))
    side: int = bounded(0, bounds.or_zero(VALUES))
    draws: int = bounded(1, bounds.DRAWS)
    n: int = bounded(1000, bounds.SAMPLES)
    rounds: int = bounded(LEAST_ROUNDS, VALUES)

    def __post_init__(self) -> None:
        require_bounds(self)
        if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values: expected two or more that grow, got {list(self.values)}")
        if not self.what:
            raise ValueError(f"what: expected some of {', '.join((*MODELS, *METRICS))}, got none")
        known = METRICS if self.of_features else (*MODELS, *METRICS)
        for name in self.what:
            if name not in known:
                raise unknown("measurement", name, known)
        self._require_heeded()

    def _require_heeded(self) -> None:
        """Raise ValueError where something is set, or grows, that changes nothing of what is measured."""
        if self.of_features and (self.row or self.set or self.batch):
            raise ValueError(f"expected no row, set or batch beside {', '.join(METRICS)}")
        heeded = self.heeded
        if self.axis in KNOWN_AXES and self.axis not in heeded:
            raise ValueError(f"axis '{self.axis}' changes nothing of {', '.join(self.what)}: {', '.join(heeded)} do")
        if self.axis not in KNOWN_AXES and not any(PLACE in one for one in self.set):
            raise ValueError(
                f"axis '{self.axis}': expected one of {', '.join(heeded)}, or an assignment in set with {PLACE} in the "
                "value's place"
            )

    @property
    def heeded(self) -> tuple[str, ...]:
        """The axes that change something of all that is measured."""
        if self.of_features:
            return N, *((SIDE,) if set(self.what) == {EXTRACTION} else ())
        return BATCH, SIDE, *((DRAWS,) if set(self.what) == {BOUND} else ())

    @property
    def name(self) -> str:
        """What `--models` calls it."""
        return self.label or self.axis

    @property
    def of_features(self) -> bool:
        """Whether its target is an extractor."""
        return any(name in METRICS for name in self.what)


@dataclass(frozen=True)
class GrowthSuite:
    """A suite file: its curves, the seconds that each point is timed for, and the threads."""

    title: str
    curve: tuple[Curve, ...]
    seconds: float = bounded(1.0, bounds.SECONDS)
    threads: int = bounded(1, bounds.THREADS)


@dataclass(frozen=True)
class Point:
    """One value of one curve and one thing that is measured: all that another process needs.

    `side` and a missing batch are the target's own where 0; `n` is of metrics alone.
    """

    curve: str
    axis: str
    value: int
    what: str
    target: str
    row: str
    overrides: list[str]
    side: int
    draws: int
    n: int
    device: str
    threads: int
    seconds: float
    rounds: int
    plugins: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.curve}: {self.what} at {self.axis} {self.value:,}"


@dataclass(frozen=True)
class Choice:
    """What of a suite is run, and how; None leaves the suite's own."""

    curves: tuple[str, ...] | None = None
    seconds: float | None = None
    threads: int | None = None
    device: str = "cpu"
    plugins: tuple[str, ...] = ()


def is_growth_suite(source: str) -> bool:
    """Whether the suite of that name, or of that file, has curves; raises UserError as `read_suite_table`."""
    return CURVE in read_suite_table(source)[1]


def read_growth_suite(source: str) -> GrowthSuite:
    """The suite of that name, or of a TOML file.

    Raises:
        UserError: as `read_suite_table`; unknown keys or impossible values.
    """
    path, table = read_suite_table(source)
    suite = parse(GrowthSuite, table, path.stem)
    curves = tuple(dataclasses.replace(curve, target=beside(path, curve.target)) for curve in suite.curve)
    return dataclasses.replace(suite, curve=curves)


def points(suite: GrowthSuite, choice: Choice) -> list[Point]:
    """The suite's points in the order of its curves, as far as they are chosen.

    Raises:
        UserError: an unknown name of a curve, or one curve twice.
    """
    names = list(dict.fromkeys(curve.name for curve in suite.curve))
    for name in choice.curves or ():
        if name not in names:
            raise unknown("curve of the growth suite", name, names)
    chosen = [curve for curve in suite.curve if choice.curves is None or curve.name in choice.curves]
    found = [point for curve in chosen for point in _points_of(curve, suite, choice)]
    places = [(point.curve, point.what, point.target, point.row, point.value) for point in found]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"curve {place[0]}: {place[1]} of {place[2]} stands there twice; give one a label")
    return found


def _points_of(curve: Curve, suite: GrowthSuite, choice: Choice) -> list[Point]:
    """The points of one curve, what by what."""
    return [_point(curve, what, value, suite, choice) for what in curve.what for value in curve.values]


def _point(curve: Curve, what: str, value: int, suite: GrowthSuite, choice: Choice) -> Point:
    """The point of a curve at one value."""
    grown = dataclasses.replace(curve, **({curve.axis: value} if curve.axis in KNOWN_AXES else {}))
    batch = [f"training.batch_size={grown.batch}"] if grown.batch and not curve.of_features else []
    return Point(
        curve=curve.name,
        axis=curve.axis,
        value=value,
        what=what,
        target=curve.target,
        row=curve.row,
        overrides=[*(one.replace(PLACE, str(value)) for one in curve.set), *batch],
        side=grown.side,
        draws=grown.draws,
        n=grown.n,
        device=choice.device,
        threads=choice.threads or suite.threads,
        seconds=choice.seconds or suite.seconds,
        rounds=curve.rounds,
        plugins=list(choice.plugins),
    )
