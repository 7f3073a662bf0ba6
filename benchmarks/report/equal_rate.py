"""Rows at equal rate: what another model reaches in mean squared error or distortion at a row's own rate.

A model buys a lower error with a higher rate, so that two rows of different rates say little about each other. A
family, one model trained under several beta, says what its model gives for any rate in between.

A family is read from the rows' recorded configurations: rows that are equal in model, architecture, data, likelihood
and all of training and objective but beta, the learning rate and the KL's warm-up (the last two are tuned for each
row). No key of a suite names it: a forgotten or wrong name would draw a line through points that have none, and older
records would have no family. Rows of another latent size are another family: two sizes under two beta may have one rate
and two errors, and a line through both would jump between them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.records.record import Measurement
from benchmarks.report.columns import Column, Spec, columns_of, text_table
from benchmarks.report.rows import Quantity, Row, half_width

RATE = Spec("rate", "Rate", ranked=False)
READ = (Spec("mse", "MSE"), Spec("distortion", "Distortion", given="low"))
"""What is read at equal rate."""
NAMES = ("suite", "row", "label", "seed", "evaluation", "threads")
"""Fields of a configuration that leave the trained model as it is, or only its rounding."""
TUNED = ("beta", "learning_rate", "kl_warmup")
"""Fields of training and objective in which the rows of a family may differ; the last two are what `tune` tries."""
BETA = re.compile(r"[\s,;(]*(?:β|beta)\s*=?\s*[\d.]+\)?\s*$", re.IGNORECASE)
"""The end of a label that says beta."""


@dataclass(frozen=True)
class Family:
    """Rows of one model and architecture under at least two beta, in the order of beta."""

    name: str
    rows: tuple[Row, ...]

    def owns(self, row: Row) -> bool:
        """Whether `row` is one of the family's."""
        return any(row is own for own in self.rows)

    def curve(self, metric: str) -> list[tuple[float, Measurement]]:
        """Rate in nats per image and measurement of `metric`, in the order of rate; rows without both are left out."""
        found = []
        for row in self.rows:
            rate, value = row.first("rate"), row.first(metric)
            if rate and value and rate.value is not None and value.value is not None:
                found.append((rate.value, value))
        return sorted(found, key=lambda point: point[0])

    def at(self, rate: float, metric: str) -> Measurement | None:
        """`metric` at `rate` nats per image, on the straight line between the family's neighbouring rates.

        None outside the family's rates: nothing is extrapolated. Its spread is that of the neighbours in the same
        proportion, which is the widest that theirs allow.
        """
        curve = self.curve(metric)
        rates = [r for r, _ in curve]
        if len(set(rates)) < 2 or not rates[0] <= rate <= rates[-1]:
            return None
        value = float(np.interp(rate, rates, [m.value or 0.0 for _, m in curve]))
        halves = [half_width(m) for _, m in curve]
        known = [half for half in halves if half is not None]
        half = float(np.interp(rate, rates, known)) if len(known) == len(halves) else None
        low, high = (None, None) if half is None else (value - half, value + half)
        return dataclasses.replace(curve[0][1], value=value, low=low, high=high)


def families(rows: Sequence[Row]) -> list[Family]:
    """The families among `rows`, in the order of their first rows; their names differ."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.beta is not None:
            groups.setdefault(_kind(row), []).append(row)
    swept = [sorted(group, key=_beta) for group in groups.values() if len({row.beta for row in group}) > 1]
    names = [_name(group, swept) for group in swept]
    return [
        Family(f"{name} ({group[0].records[0].config_hash[:6]})" if names.count(name) > 1 else name, tuple(group))
        for name, group in zip(names, swept, strict=True)
    ]


def tables_at_equal_rate(rows: Sequence[Row]) -> list[tuple[str, pd.DataFrame]]:
    """Title and text of a table for each of `READ`; none without a family and a row that is not of it.

    A row's rate and value, and for each family the value that it has at that rate.
    """
    found = []
    for spec in READ:
        curves = [family for family in families(rows) if len({rate for rate, _ in family.curve(spec.metric)}) > 1]
        rated = [row for row in rows if _has(row, "rate") and _has(row, spec.metric)]
        if any(not family.owns(row) for row in rated for family in curves):
            shown = [_beside(row, curves, spec.metric) for row in rated]
            columns = [*columns_of(shown, (RATE, spec)), *_family_columns(shown, curves, spec)]
            found.append((f"{spec.name} at equal rate", text_table(shown, columns)))
    return found


def notes_at_equal_rate(rows: Sequence[Row]) -> list[str]:
    """How the tables at equal rate are read, and which rows and rates each family has."""
    ranges = []
    for family in families(rows):
        rates = [rate for rate, _ in family.curve("mse") or family.curve("distortion")]
        if len(set(rates)) > 1:
            betas = ", ".join(f"{beta:g}" for beta in dict.fromkeys(_beta(row) for row in family.rows))
            ranges.append(f"{family.name}: {rates[0]:.1f} to {rates[-1]:.1f} nats over beta {betas}")
    return [
        "a column with a model's name: what that model has at the row's rate, on straight lines between its own "
        "rates; where its curve is convex, it does at least as well",
        f"a dash: the row's rate is outside the model's range, and nothing is extrapolated ({'; '.join(ranges)}), or "
        "the row is one of its own",
    ]


def _kind(row: Row) -> str:
    """Text that is equal for the rows of one family."""
    record = row.records[0]
    config = {key: value for key, value in record.config.items() if key not in NAMES}
    for part in ("objective", "training"):
        config[part] = _without_tuned(config.get(part))
    return json.dumps([record.model, record.data_hash, record.environment.device, config], sort_keys=True, default=str)


def _without_tuned(table: Any) -> Any:
    """A table of a configuration without what differs in a family."""
    return {k: v for k, v in table.items() if k not in TUNED} if isinstance(table, dict) else table


def _name(group: Sequence[Row], swept: Sequence[Sequence[Row]]) -> str:
    """The label that the rows share but for beta; else the model's name, with both ends' labels if it has several."""
    labels = {BETA.sub("", row.label) for row in group}
    if len(labels) == 1 and all(labels):
        return labels.pop()
    model = group[0].records[0].model
    alone = sum(other[0].records[0].model == model for other in swept) == 1
    return model if alone else f"{group[0].label} to {group[-1].label}"


def _beta(row: Row) -> float:
    return row.beta or 0.0


def _has(row: Row, metric: str) -> bool:
    """Whether the row has a value of `metric`."""
    return any(m.value is not None for m in row.all(metric))


def _at_rate(metric: str, family: Family) -> Quantity:
    """Under what a row holds the family's value at its rate."""
    return Quantity(f"{metric} at equal rate", family.name)


def _beside(row: Row, curves: Sequence[Family], metric: str) -> Row:
    """`row` with the values that the other families have at its rate."""
    rate = next(m.value for m in row.all("rate") if m.value is not None)
    found = dict(row.measurements)
    for family in curves:
        value = None if family.owns(row) else family.at(rate, metric)
        if value is not None:
            found[_at_rate(metric, family)] = value
    return dataclasses.replace(row, measurements=found)


def _family_columns(rows: Sequence[Row], curves: Sequence[Family], spec: Spec) -> list[Column]:
    """A column for each family, headed by its name with the metric's arrow and unit."""
    own = columns_of(rows, (spec,))[0]
    unranked = dataclasses.replace(spec, ranked=False)
    return [
        Column(unranked, _at_rate(spec.metric, family), own.heading.replace(spec.name, family.name, 1))
        for family in curves
    ]
