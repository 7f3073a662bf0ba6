"""The verdict of a comparison in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records.record import RunRecord
from benchmarks.report import layout
from benchmarks.report.columns import short_name
from benchmarks.report.notes import training_equality
from benchmarks.report.rows import Row
from benchmarks.report.verdict.contenders import Pair
from benchmarks.report.verdict.differences import Difference, same_machine

ALIKE = 1.05
"""Ratio of speeds below which no difference is told."""


def verdict(pair: Pair, found: Sequence[Difference]) -> str:
    """Who is better on how many metrics, the rest named, then the speed of training and what was equal."""
    judged = [d for d in found if d.judged]
    won: list[list[str]] = [[name_of(d) for d in judged if d.better == side] for side in (0, 1)]
    open_ = [name_of(d) for d in judged if d.better is None]
    lead = 0 if len(won[0]) > len(won[1]) else 1
    better, other = pair[lead], pair[1 - lead]
    said = _score(better.label, other.label, won[lead], won[1 - lead], open_)
    return "; ".join([said, *_speed(better.row, other.row)]) + f", {_equality([one.row for one in pair])}."


def name_of(difference: Difference) -> str:
    """The metric's name in a sentence."""
    return short_name(difference.column.spec.metric)


def _score(better: str, other: str, won: Sequence[str], lost: Sequence[str], undecided: Sequence[str]) -> str:
    """How many metrics each side has, by name."""
    count = len(won) + len(lost) + len(undecided)
    if not count:
        return f"No metric of {better} and {other} can be judged"
    if not won:
        return f"{better} and {other} differ on none of {count} metrics beyond chance"
    said = f"{better} is better than {other} on {len(won)} of {count} metrics ({layout.join_words(won)})"
    said += f", worse on {len(lost)} ({layout.join_words(lost)})" if lost else ""
    return said + (f", undecided on {len(undecided)} ({layout.join_words(undecided)})" if undecided else "")


def _speed(better: Row, other: Row) -> list[str]:
    """How fast the better row trains, beside the other: by the rates that were measured, else by its training."""
    if same_machine((better, other)):
        return []
    rates = [_rate(row) for row in (better, other)]
    if rates[0] is None or rates[1] is None:
        return []
    ratio = rates[0] / rates[1]
    if max(ratio, 1 / ratio) < ALIKE:
        return ["as fast to train"]
    return [f"{ratio:.1f}x faster to train" if ratio > 1 else f"{1 / ratio:.1f}x slower to train"]


def _rate(row: Row) -> float | None:
    """Training images a second: measured on its own, or over the whole training."""
    measured = row.first("train_throughput")
    if measured is not None and measured.value:
        return measured.value
    seconds = sum(record.training_seconds for record in row.records)
    return sum(record.images_seen for record in row.records) / seconds if seconds else None


def _equality(rows: Sequence[Row]) -> str:
    """What the two rows' trainings have in common."""
    said = training_equality(rows)
    for start in ("Equal images", "Equal seconds", "Equal processor time"):
        if said.startswith(start):
            return f"at {start.lower()}"
    seen = [layout.join_words(f"{record.images_seen:,}" for record in _finished(row)) or "no" for row in rows]
    return f"at unequal training ({seen[0]} and {seen[1]} images)"


def _finished(row: Row) -> list[RunRecord]:
    """The records of trainings that ended as they should."""
    return [record for record in row.records if record.status in ("done", "trained")]
