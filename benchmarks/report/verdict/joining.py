"""Runs of several machines as one: what may stand in one table is copied, what may not is refused with its reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.base.checked.typed import one_of
from benchmarks.base.errors import UserError
from benchmarks.base.files import made_whole, require_new
from benchmarks.records.catalogue import of_the_machine
from benchmarks.records.record import RunRecord, save_run
from benchmarks.report.page import read_trials
from benchmarks.report.rows import completed, gather, with_known_data, without_seed
from benchmarks.report.verdict.differences import MACHINE, WATCHED, same_machine
from models.fields import shown

SOFTWARE = tuple(name for name in WATCHED if name not in MACHINE)
"""Fields of the environment that can change any number: runs that differ in one are joined where that is allowed."""
HIDDEN = ".*"
"""Files of claims, locks and jobs, which are not copied."""


@dataclass(frozen=True)
class Trial:
    """A trial with the run that it is of."""

    run: Path
    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        """Row and seed."""
        return f"{self.record.row} seed {self.record.seed} on {self.record.data}"


def join(runs: Sequence[Path], out: Path, allowed: Collection[str] = ()) -> list[str]:
    """Copy the trials of the runs into `out`, as one run in the order of the first; returns what a reader should know.

    `allowed` are fields of `SOFTWARE` in which the runs may differ.

    Raises:
        UserError: no run, runs that do not compare, or an `out` that holds anything.
    """
    for name in allowed:
        one_of("field", name, SOFTWARE)
    trials = [trial for run in {run.resolve(): run for run in runs}.values() for trial in _trials(run)]
    require_new(out)
    require_comparable(trials, allowed)
    chosen = _once_each(trials)
    with made_whole(out) as part:
        for trial in chosen:
            shutil.copytree(trial.folder, part / trial.folder.name, ignore=shutil.ignore_patterns(HIDDEN))
        save_run(part, [trial.folder.name for trial in chosen])
    rates = same_machine(gather(trial.record for trial in chosen))
    return [f"note: rates, times and memory are {rates}: read them within a machine"] if rates else []


def require_comparable(trials: Sequence[Trial], allowed: Collection[str]) -> None:
    """Raise UserError where trials of several runs may not stand in one table, with the first reason."""
    for found in _by(trials, lambda r: (r.suite, r.data)):
        if pair := _unlike([trial for trial in found if trial.record.data_hash], lambda r: r.data_hash):
            said = " and ".join(f"{one.run} {one.record.data_hash[:8]}" for one in pair)
            raise _refusal(f"the same images of {pair[0].record.data}", f"{said} (hashes)", "run both on one data set")
    for name in SOFTWARE:
        pair = _unlike(trials, lambda r, name=name: getattr(r.environment, name))
        if pair and name not in allowed:
            said = " and ".join(f"{one.run} {getattr(one.record.environment, name)}" for one in pair)
            raise _refusal(f"one {name}", said, f"--allow {name} joins them all the same")
    for found in _by(trials, lambda r: (r.suite, r.data, r.row)):
        if pair := _unlike(found, _training):
            raise _refusal(f"one training of {pair[0].record.row}", _difference(pair), "leave one of the two out")


def _trials(run: Path) -> list[Trial]:
    """The trials of a run, with data and configurations as far as they are known."""
    found = read_trials(run)
    records = completed(with_known_data(found.values()))
    return [Trial(run, folder, record) for folder, record in zip(found, records, strict=True)]


def _by(trials: Iterable[Trial], key: Callable[[RunRecord], object]) -> list[list[Trial]]:
    """The trials in groups of one key."""
    groups: dict[object, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial.record), []).append(trial)
    return list(groups.values())


def _unlike(trials: Sequence[Trial], value: Callable[[RunRecord], object]) -> tuple[Trial, Trial] | None:
    """Two trials of different runs that differ in a value; None without."""
    first: dict[Path, Trial] = {}
    for trial in trials:
        first.setdefault(trial.run, trial)
    pairs = ((a, b) for a in first.values() for b in trials if a.run != b.run and value(a.record) != value(b.record))
    return next(pairs, None)


def _training(record: RunRecord) -> dict[str, object]:
    """What trials of a row share that differ in their seed alone: values by dotted key."""
    return dict(_flat(without_seed(record.config), "")) | {"environment.device": record.environment.device}


def _flat(value: Any, name: str) -> Iterator[tuple[str, object]]:
    """The values within nested tables by dotted key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _difference(pair: tuple[Trial, Trial]) -> str:
    """The first key in which two trainings differ."""
    a, b = (_training(trial.record) for trial in pair)
    key = next(key for key in [*a, *b] if a.get(key) != b.get(key))
    return " and ".join(f"{key} {shown(one.get(key))} in {trial.run}" for one, trial in zip((a, b), pair, strict=True))


def _once_each(trials: Sequence[Trial]) -> list[Trial]:
    """A trial for each row and seed: one that is done before others, the first of equal ones.

    Raises:
        UserError: two are done and differ.
    """
    chosen = list[Trial]()
    for found in _by(trials, lambda r: (r.suite, r.data, r.row, r.seed)):
        done = [trial for trial in found if trial.record.status == "done"]
        if pair := _unlike(done, _values):
            said = f"others in {pair[0].run} than in {pair[1].run}"
            raise _refusal(f"one result of {pair[0].name}", said, "leave one of the two out")
        runs = {trial.run for trial in found}
        keep = [trial for trial in found if trial.run == (done or found)[0].run] if len(runs) > 1 else found
        chosen += keep
    return chosen


def _values(record: RunRecord) -> list[tuple[str, float | None, object]]:
    """What was measured of a trial's weights."""
    found = [m for m in record.measurements if not of_the_machine(m.metric)]
    return sorted((m.metric, m.value, str(m.details.get("extractor", m.details.get("k", "")))) for m in found)


def _refusal(expected: str, got: str, todo: str) -> UserError:
    return UserError(f"merge: expected {expected}, got {got}; {todo}")
