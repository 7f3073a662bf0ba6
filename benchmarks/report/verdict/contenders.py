"""What the words of `compare` name: rows of a run, whole runs, single records, and all of these in a commit."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.base.errors import UserError, unknown
from benchmarks.records.record import RECORD, RUN, RunRecord
from benchmarks.report.page import read_trials
from benchmarks.report.rows import Row, gather, trials_by_row, trials_of, with_known_data

BASE = "base"
ROOTS = (Path(), Path("results/local"), Path("results"))
"""Where a run's folder is looked for."""
ALIAS = re.compile(r"([A-Za-z_]\w*)=(.+)")
FORMS = "a row of --out, OUT/ROW of the run OUT, a run's folder or suite, a trial's folder, or COMMIT: before a path"


@dataclass(frozen=True)
class Contender:
    """A row to be compared: what conditions call it, and the trial folder of each of its seeds."""

    names: tuple[str, ...]
    row: Row
    folders: dict[int, Path]

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.row.label


Pair = tuple[Contender, Contender]


@dataclass(frozen=True)
class _Named:
    """What one word named: its rows, with its alias, and whether it was a whole run."""

    word: str
    alias: str
    found: list[Contender]
    is_run: bool


def pairs(words: Sequence[str], out: Path, workplace: Commits) -> list[Pair]:
    """Base and other of each comparison: the first row with every other, or of several runs the rows of one name.

    Raises:
        UserError: a word that names nothing or several rows, nothing to compare.
    """
    runs = Runs()
    named = [_named(word, out, workplace, runs) for word in words]
    if len(named) > 1 and all(one.is_run for one in named):
        return _by_row(named)
    rows = [contender for one in named for contender in one.found]
    if len(rows) < 2:
        raise UserError(f"compare: expected two rows or more, got {' '.join(words)}; name another: {FORMS}")
    first, *others = _told_apart(rows, [one.word for one in named for _ in one.found])
    base = dataclasses.replace(first, names=(BASE, *first.names))
    return [(base, other) for other in others]


class Runs:
    """The trials and rows of runs by folder, each run read once, however many words name it."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[dict[Path, RunRecord], list[Row]]] = {}

    def of(self, folder: Path) -> tuple[dict[Path, RunRecord], list[Row]]:
        """Those of the run in `folder`; raises UserError as `read_trials`."""
        if folder not in self._read:
            trials = read_trials(folder)
            self._read[folder] = trials, gather(with_known_data(trials.values()))
        return self._read[folder]


class Commits(AbstractContextManager["Commits"]):
    """Folders of commits, taken out of the repository for as long as the block lasts."""

    def __enter__(self) -> Commits:
        self._folder = TemporaryDirectory(prefix="vaebench-")
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def folder(self, commit: str, path: Path) -> Path | None:
        """Where `path`, or the run that holds the row `path`, lies as of `commit`; None without either."""
        place = Path(self._folder.name) / re.sub(r"\W", "_", commit)
        for held in (path, path.parent):
            call = ["git", "archive", "--format=tar", commit, "--", str(held)]
            try:
                packed = subprocess.run(call, capture_output=True, check=False)
            except OSError:  # no git here
                return None
            if packed.returncode == 0:
                with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                    archive.extractall(place, filter="data")
                return place / path
        return None


def find_row(rows: Sequence[Row], name: str) -> Row:
    """The row of that key or label, upper and lower case alike.

    Raises:
        UserError: none, with the nearest name, or several.
    """
    found = _rows_named(rows, name)
    if not found:
        raise unknown("row", name, {row.name for row in rows})
    if len(found) > 1:
        labels = ", ".join(f"'{row.label}'" for row in found)
        raise UserError(f"compare: expected one row of the name '{name}', found {labels}; give one of these labels")
    return found[0]


def identifier(name: str) -> str:
    """The name as conditions spell it: `residual-vae` is `residual_vae`."""
    text = re.sub(r"\W", "_", name)
    return f"_{text}" if text[:1].isdigit() else text


def _named(word: str, out: Path, workplace: Commits, runs: Runs) -> _Named:
    """What a word names, its alias taken off."""
    match = ALIAS.fullmatch(word)
    alias, token = (match[1], match[2]) if match else ("", word)
    if "/" not in token and _is_run(out):
        trials, rows = runs.of(out)
        if _rows_named(rows, token):
            return _Named(word, alias, [_contender(find_row(rows, token), trials, alias)], False)
    commit, colon, path = token.partition(":")
    roots = [root / token for root in ROOTS]
    if colon and not any(root.exists() for root in roots):
        place = workplace.folder(commit, Path(path))
        if place is None:
            raise UserError(f"compare: expected a commit and a path in it, got '{token}'; see git log -- {path}")
        roots = [place]
    for place in roots:
        found = _at(place, alias, runs)
        if found:
            return _Named(word, alias, found, not (place / RECORD).exists() and _is_run(place))
    raise _names_nothing(token, out, runs)


def _names_nothing(token: str, out: Path, runs: Runs) -> UserError:
    """The error for a word that names nothing."""
    if _is_run(out):
        known = {row.name for row in runs.of(out)[1]}
        return UserError(f"{unknown('row', token, known)}; or give {FORMS}")
    return UserError(f"compare: expected {FORMS}, got '{token}'; there is no run in {out}")


def _at(place: Path, alias: str, runs: Runs) -> list[Contender]:
    """The rows at a path: of a trial, of a run, or the row that its last part names in the run above."""
    if (place / RECORD).exists():
        found = runs.of(place.parent)[0]
        trials = {place: found[place]} if place in found else _single(place)
        return [_contender(gather(trials.values())[0], trials, alias)]
    if _is_run(place):
        trials, rows = runs.of(place)
        folders = trials_by_row(rows, trials)
        alias = alias if len(rows) == 1 else ""
        return [_contender(row, own, alias) for row, own in zip(rows, folders, strict=True)]
    if _is_run(place.parent):
        trials, rows = runs.of(place.parent)
        return [_contender(find_row(rows, place.name), trials, alias)]
    return []


def _single(folder: Path) -> dict[Path, RunRecord]:
    """The record of a trial that is not of its run's latest list."""
    from benchmarks.records.record import load_record

    try:
        return {folder: load_record(folder)}
    except (ValueError, OSError) as error:
        raise UserError(f"{error}; remove or repair that file") from error


def _contender(row: Row, trials: Mapping[Path, RunRecord], alias: str) -> Contender:
    """The row with the folders of its seeds, which are among `trials`, known by its alias or its key."""
    folders = {record.seed: path for path, record in trials_of(row, trials).items()}
    return Contender((alias or identifier(row.name),), row, folders)


def _rows_named(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of that key or label."""
    return [row for row in rows if name.lower() in (row.name.lower(), row.label.lower())]


def _is_run(folder: Path) -> bool:
    """Whether the folder is of a run: it lists trials, or holds some."""
    return folder.is_dir() and ((folder / RUN).exists() or any(folder.glob(f"*/{RECORD}")))


def _by_row(named: Sequence[_Named]) -> list[Pair]:
    """The rows of the first run with those of the same key in each other run."""
    base, *others = named
    found: list[Pair] = []
    for other in others:
        rows = {contender.row.name: contender for contender in other.found}
        for first in base.found:
            if first.row.name in rows:
                second = rows[first.row.name]
                a, b = _told_apart([first, second], [base.word, other.word], always=True)
                found.append((_of_run(a, base.alias or BASE, BASE), _of_run(b, other.alias or _stem(other.word))))
    if not found:
        names = " and ".join(", ".join(sorted({one.row.name for one in run.found})) for run in named[:2])
        raise UserError(f"compare: expected runs with a row of the same name, got {names}; name rows as OUT/ROW")
    return found


def _stem(word: str) -> str:
    """The last part of a run's path as an identifier."""
    return identifier(Path(word.rpartition(":")[2]).name)


def _of_run(contender: Contender, *runs: str) -> Contender:
    """The contender as conditions call it where whole runs are compared: RUN.ROW."""
    names = tuple(f"{run}.{name}" for run in dict.fromkeys(runs) for name in contender.names)
    return dataclasses.replace(contender, names=names)


def _told_apart(found: Sequence[Contender], words: Sequence[str], always: bool = False) -> list[Contender]:
    """The contenders, those of one label told apart by the words that named them."""
    labels = [one.label for one in found]
    return [
        dataclasses.replace(one, row=dataclasses.replace(one.row, label=f"{one.label} ({word})"))
        if (always or labels.count(one.label) > 1) and len(set(words)) > 1
        else one
        for one, word in zip(found, words, strict=True)
    ]
