"""`--set A.B=C` on a suite: applied, and refused where it would change nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.base.errors import UserError
from benchmarks.suites.config import set_path
from benchmarks.suites.presets import with_preset

LENGTHS = ("cpu_seconds", "seconds", "epochs", "images")
"""Fields that say how long a training is; the first that is given counts."""


def apply_overrides(table: dict[str, Any], assignments: Sequence[str], rows: Sequence[str] | None) -> None:
    """Put the assignments into a raw suite table; `rows` are those that will be run, None for all.

    A row's own table goes over the suite's. A setting that so reaches no row is an error; one that misses some is said
    on stderr.

    Raises:
        UserError: an assignment that is none, or that no row would heed.
    """
    for assignment in assignments:
        set_path(table, assignment)
    models = table.get("models")
    if not isinstance(models, dict) or not all(isinstance(row, dict) for row in models.values()):
        return  # said by `build_suite`
    chosen = [row for row in models if rows is None or row in rows]
    for assignment in assignments:
        path = assignment.partition("=")[0].strip().split(".")
        if path[0] == "models" and len(path) > 2 and path[1] in models and path[1] not in chosen:
            raise UserError(f"--set {assignment}: row '{path[1]}' is not run (--models {','.join(chosen)})")
        deaf = {row: over for row in chosen if (over := _overruled_by(path, with_preset(models[row]), table, row))}
        if deaf and len(deaf) == len(chosen):
            raise UserError(f"--set {assignment} changes nothing: {_own(deaf)}; set that instead")
        if deaf:
            print(f"note: --set {assignment} leaves rows as they are: {_own(deaf)}", file=sys.stderr)


def _own(deaf: dict[str, str]) -> str:
    """What overrules a setting, row by row."""
    return ", ".join(f"'{row}' has {over}" for row, over in deaf.items())


def _overruled_by(path: Sequence[str], row: dict[str, Any], table: dict[str, Any], name: str) -> str:
    """What a row has in place of the setting at `path`; empty where it heeds it."""
    head, key = path[0], path[1] if len(path) > 1 else ""
    if head == "likelihood" and "likelihood" in row:
        return f"models.{name}.likelihood"
    own = row.get(head)
    if head in ("training", "objective") and isinstance(own, dict) and key in own:
        return f"models.{name}.{head}.{key}"
    if head == "models" and path[1] == name:
        head, key = (path[2], path[3]) if len(path) > 3 else ("", "")
    return _longer_word(key, row, table) if head == "training" and key in LENGTHS else ""


def _longer_word(key: str, row: dict[str, Any], table: dict[str, Any]) -> str:
    """The field that says how long a row is trained in place of `key`; empty where `key` counts."""
    given: dict[str, Any] = {**_table(table.get("training")), **_table(row.get("training"))}
    return next((f"training.{field}" for field in LENGTHS[: LENGTHS.index(key)] if given.get(field) is not None), "")


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
