"""What the speed suite compares: its TOML file, what of it is chosen, and the comparisons that follow."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.base.checked import bounds
from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError, unknown
from benchmarks.speed.beside import ALONE, PRODUCT
from benchmarks.speed.throughput import BREAKDOWN, KNOWN, PLAIN_NAME
from benchmarks.speed.work import OURS
from models.fields import bounded, require_bounds

FOLDER = Path(__file__).parent
SHIPPED = {"speed": FOLDER / "speed.toml", "growth": FOLDER / "growth" / "growth.toml"}
OPERATIONS = "operations"
"""What stands in place of a suite file for single operations (`benchmarks.speed.operations`)."""
PYTHAE = "pythae"
OPPONENTS = (PLAIN_NAME, PYTHAE, ALONE, PRODUCT)


@dataclass(frozen=True)
class Aim:
    """What of a case is measured, as `throughput --what` names it, with the ratio it should reach.

    Where our kernels and torch use AVX-512, `avx512` is the goal, if there is one.
    """

    what: str
    goal: float
    stretch: float
    avx512: float | None = None

    def __post_init__(self) -> None:
        if self.what not in KNOWN or self.what == BREAKDOWN:
            raise unknown("measurement", self.what, [name for name in KNOWN if name != BREAKDOWN])


@dataclass(frozen=True)
class Case:
    """One model beside one other, at some batches and numbers of threads.

    Args:
        label: its name in the table.
        target: as `throughput` takes it; a TOML file is looked for beside the suite first.
        row: the row of a target that has several.
        aims: what is measured.
        batches, threads: every combination is a comparison of its own.
        vs: "baseline"; "pythae" for its training loop in an environment of its own; "alone" for the same model, which
            then is measured beside `neighbours` busy processes; "product" for the machine's matrix product, of whose
            GFLOP/s the training step's are a share.
        set: overrides of the target's configuration.
        draws: K of the importance-weighted bound.
        pythae: the configuration of `pythae_loop.py` to compare with.
        rounds, steps: of the comparison with pythae: processes in turns, training steps in each.
    """

    label: str
    target: str
    aims: tuple[Aim, ...]
    row: str = ""
    batches: tuple[int, ...] = bounded((64,), bounds.BATCH)
    threads: tuple[int, ...] = bounded((1,), bounds.THREADS)
    vs: str = PLAIN_NAME
    set: tuple[str, ...] = ()
    draws: int = bounded(1, bounds.DRAWS)
    pythae: str = ""
    rounds: int = bounded(5, bounds.BATCHES)
    steps: int = bounded(100, bounds.BATCHES)
    neighbours: int = bounded(1, bounds.JOBS)

    def __post_init__(self) -> None:
        if self.vs not in OPPONENTS:
            raise unknown("opponent", self.vs, OPPONENTS)
        require_bounds(self)
        for aim in self.aims:
            known = {ALONE: tuple(OURS), PRODUCT: ("train",)}.get(self.vs, KNOWN)
            if aim.what not in known:
                raise unknown(f"measurement against {self.vs}", aim.what, known)
        if not (self.aims and self.batches and self.threads):
            raise ValueError(f"case {self.label}: expected aims, batches and threads, got none of one")


@dataclass(frozen=True)
class Reference:
    """Images a second that the baseline should show on a like machine, if that is quiet, and whose they are."""

    label: str
    batch: int
    threads: int
    what: str
    rate: float
    source: str

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate: expected a value > 0, got {self.rate:g}")


@dataclass(frozen=True)
class SpeedSuite:
    """A suite file: its cases, rates known from elsewhere, and the seconds that each verb and variant is timed for."""

    title: str
    case: tuple[Case, ...]
    reference: tuple[Reference, ...] = ()
    seconds: float = bounded(2.0, bounds.SECONDS)


@dataclass(frozen=True)
class Choice:
    """What of a suite is run, and how; None leaves the suite's own."""

    models: tuple[str, ...] | None = None
    batches: Sequence[int] | None = None
    threads: Sequence[int] | None = None
    seconds: float | None = None
    device: str = "cpu"
    pythae: str | None = None
    compiler: bool = True
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One case at one batch and number of threads."""

    case: Case
    batch: int
    threads: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.case.label}, batch {self.batch}, threads {self.threads}, against {self.case.vs}"


def read_suite_table(source: str) -> tuple[Path, dict[str, Any]]:
    """The file of the suite of that name, or the TOML file given, and what it holds.

    Raises:
        UserError: unknown name, unreadable file, no TOML.
    """
    path = SHIPPED.get(source) or Path(source)
    if path.suffix != ".toml":
        raise unknown("speed suite", source, [*SHIPPED, OPERATIONS])
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read speed suite {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"speed suite {path}: expected TOML, got a syntax error: {error}") from error


def read_speed_suite(source: str) -> SpeedSuite:
    """The suite of that name, or of a TOML file.

    Raises:
        UserError: as `read_suite_table`; unknown keys or impossible values.
    """
    path, table = read_suite_table(source)
    suite = parse(SpeedSuite, table, path.stem)
    cases = tuple(dataclasses.replace(case, target=beside(path, case.target)) for case in suite.case)
    return dataclasses.replace(suite, case=cases)


def on_avx512(suite: SpeedSuite) -> SpeedSuite:
    """The suite with the goals of AVX-512."""

    def aimed(aim: Aim) -> Aim:
        return aim if aim.avx512 is None else dataclasses.replace(aim, goal=aim.avx512)

    cases = (dataclasses.replace(case, aims=tuple(map(aimed, case.aims))) for case in suite.case)
    return dataclasses.replace(suite, case=tuple(cases))


def beside(suite: Path, target: str) -> str:
    """The target, as a path if it is a file beside the suite."""
    path = suite.parent / target
    return str(path) if target.endswith(".toml") and path.exists() else target


def folder_of(source: str, choice: Choice, out: str | None) -> Path:
    """Where the results go: `out`, or a folder named after the suite."""
    return Path(out or f"results/local/{Path(source).stem}{'' if choice.compiler else '-no-compiler'}")


def comparisons(suite: SpeedSuite, choice: Choice) -> list[Comparison]:
    """The suite's comparisons, as far as they are chosen.

    Raises:
        UserError: an unknown label; or nothing is left.
    """
    labels = list(dict.fromkeys(case.label for case in suite.case))
    for name in choice.models or ():
        if name not in labels:
            raise unknown("model of the speed suite", name, labels)
    found = [
        Comparison(case, batch, threads)
        for case in suite.case
        if choice.models is None or case.label in choice.models
        for threads in case.threads
        if choice.threads is None or threads in choice.threads
        for batch in case.batches
        if choice.batches is None or batch in choice.batches
    ]
    if not found:
        raise UserError("--models, --batch and --threads leave nothing of the suite")
    return found
