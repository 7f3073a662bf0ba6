"""How far the trials of a run are, read from its folder alone, whoever works on them. Imports no torch."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.base.errors import UserError, printable
from benchmarks.records.record import RECORD, RUN, RunRecord, listed, load_record
from benchmarks.trials.claims import Owner, owner_of, worker_of
from benchmarks.trials.executors.note import note_of

Kind = Literal["done", "running", "waiting", "failed"]
KINDS: tuple[Kind, ...] = ("done", "running", "waiting", "failed")
NAME = re.compile(r"(?P<row>.+)-seed(?P<seed>\d+)-[0-9a-f]{12}")
"""Of a trial's folder."""
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True)
class TrialStatus:
    """A trial of a run: what it is at, and in `said` where and since when, what it waits for, or why it failed.

    `left` are the seconds that the phase of a running trial still takes, where that is known.
    """

    folder: str
    row: str
    seed: int | None
    kind: Kind
    said: str
    left: float | None = None


def status_of(out: Path) -> list[TrialStatus]:
    """The trials of the latest run in `out`, in table order.

    Raises:
        UserError: no run there, or a file that cannot be read.
    """
    try:
        names = listed(out) if (out / RUN).exists() else [path.parent.name for path in sorted(out.glob(f"*/{RECORD}"))]
        found = [_status(out / name) for name in names]
    except (ValueError, OSError) as error:
        raise UserError(f"{error}; remove or repair that file") from error
    if not found:
        raise UserError(
            f"status: expected the folder of a run, got {out}, which holds none; start one with --out {out}"
        )
    return found


def shown(trials: Sequence[TrialStatus]) -> str:
    """The trials as text: a line that counts, and a line each, those of a kind together."""
    counts = Counter(trial.kind for trial in trials)
    lines = [f"{len(trials)} trials: {', '.join(f'{counts[kind]} {kind}' for kind in KINDS)}"]
    width = max(len(_title(trial)) for trial in trials)
    for kind in KINDS:
        lines += [f"{kind:8}{_title(trial):{width}}  {trial.said}".rstrip() for trial in trials if trial.kind == kind]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there is one: "2.5 h"."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{seconds / size:.0f} {unit}" if seconds / size >= 10 else f"{seconds / size:.1f} {unit}"


def _title(trial: TrialStatus) -> str:
    return trial.row if trial.seed is None else f"{trial.row} seed {trial.seed}"


def _status(folder: Path) -> TrialStatus:
    """The status of the trial in a folder, which may be missing yet."""
    record = load_record(folder) if (folder / RECORD).exists() else None
    named = NAME.fullmatch(folder.name)
    row = named["row"] if named else folder.name
    seed = int(named["seed"]) if named else None
    worker = worker_of(folder)
    if worker is not None:
        return TrialStatus(folder.name, row, seed, "running", _running(worker), worker.left)
    if record is not None and record.status == "done" and not record.error:
        date = record.environment.date[:16].replace("T", " ")
        return TrialStatus(folder.name, row, seed, "done", f"{date}, {duration(record.training_seconds)} of training")
    note = note_of(folder)
    failed = (note.failed if note is not None else "") or (record.error if record is not None else "")
    if failed:
        return TrialStatus(folder.name, row, seed, "failed", printable(" ".join(failed.split())))
    return TrialStatus(folder.name, row, seed, "waiting", printable(_waiting(folder, record)))


def _running(owner: Owner) -> str:
    """Where, since when, how far, and how long the phase still takes."""
    parts = [str(owner)]
    if owner.since is not None:
        began = datetime.datetime.fromtimestamp(owner.since, datetime.UTC)
        parts.append(f"since {began:%Y-%m-%d %H:%M} UTC")
    if owner.phase:
        parts.append(f"{owner.phase} {owner.done:,} of {owner.total:,}")
    if owner.left is not None:
        parts.append(f"about {duration(owner.left)} left of that")
    return printable(", ".join(parts))


def _waiting(folder: Path, record: RunRecord | None) -> str:
    """What is left to do, and who has the trial in a queue or had it."""
    note, gone = note_of(folder), owner_of(folder)
    parts = [f"continues at {record.images_seen:,} images"] if record is not None and record.images_seen else []
    parts += ["to be evaluated"] if record is not None and record.status == "trained" else []
    parts += [f"handed over: {note}"] if note is not None else []
    parts += [f"{gone} has gone"] if gone is not None else []
    return ", ".join(parts)
