"""Two rows, metric by metric: both values, their difference, its interval, and whether chance explains it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from benchmarks.base.errors import UserError
from benchmarks.records.catalogue import INFLUENCE
from benchmarks.records.record import Measurement
from benchmarks.records.uncertainty import Interval
from benchmarks.report import layout
from benchmarks.report.columns import COST, Column, all_specs, columns_of
from benchmarks.report.pictures.saved import read_arrays
from benchmarks.report.rows import (
    Quantity,
    Row,
    differ_in_beta,
    facts,
    half_width,
    quantity_of,
    reach,
    under_one_ruler,
)
from benchmarks.report.verdict.contenders import Contender, Pair

LEVEL = 0.95
WATCHED = ("torch", "threads", "device", "device_name", "precision", "suite_version", "commit")
COMMIT_DIGITS = 10
MACHINE = ("device", "device_name", "threads", "precision")
"""What a rate or a time is of, besides the model."""
FACTS = ("parameters", "latents", "macs", "training_images")  # counts: they have no interval
COSTS = tuple(spec.metric for spec in COST)
SETTINGS = ("n_reference", "reference_split", "preprocessing", "rounding", "prior_batches", "prior_batch_size", "batch")
"""Details of a measurement without which two values are not of one kind."""
Arrays = dict[int, dict[str, np.ndarray]]
"""Values of single images by seed and metric."""
ON_95 = ("bootstrap 95%", "jackknife 95%")


class Spread(NamedTuple):
    """Variance of a difference, degrees of freedom of that variance, and what it rests on."""

    variance: float
    freedom: float
    basis: str


@dataclass(frozen=True)
class Difference:
    """One metric of two rows: `change` is b - a, None where one is missing; `note` says why, or why it is not judged.

    `p` is the two-sided p-value of no difference, corrected for all that were judged by one call once `corrected` is
    done; None where the spread is not known.
    """

    column: Column
    a: float | None
    b: float | None
    interval: Interval | None = None
    p: float | None = None
    basis: str = ""
    note: str = ""
    judged: bool = False

    @property
    def change(self) -> float | None:
        """The value of b minus that of a, None where one is missing."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def beyond(self) -> bool:
        """Whether the metric is judged and chance does not explain the difference, at 5 % over all that are judged."""
        return self.judged and self.p is not None and self.p < 1 - LEVEL

    @property
    def better(self) -> int | None:
        """0 where a is better beyond chance, 1 where b is, else None."""
        if not self.beyond or not self.change:
            return None
        return int((self.change > 0) == (self.column.spec.better == "high"))


def differences(pair: Pair) -> list[Difference]:
    """The difference of every metric that one of the rows has, in the order of the tables; p-values not corrected.

    Raises:
        UserError: the rows were measured on different data.
    """
    rows = [one.row for one in pair]
    data = [row.records[0] for row in rows]
    if data[0].data_hash != data[1].data_hash:
        named = " and ".join(f"{row.label} on {r.data} ({r.data_hash[:8]})" for row, r in zip(rows, data, strict=True))
        raise UserError(f"compare: expected rows on the same data, got {named}; run them on one data set")
    ruled = [
        dataclasses.replace(one, row=row) for one, row in zip(pair, under_one_ruler(_unlike_labels(rows)), strict=True)
    ]
    arrays = [_arrays(one) for one in pair]
    found = [_difference(column, ruled, arrays) for column in columns_of([one.row for one in ruled], all_specs())]
    return [_not_twice(one, found) for one in found]


def corrected(found: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """The differences of all comparisons, p-values of those that are judged corrected for their number (Holm 1979)."""
    judged = sorted(
        (d.p, i, j) for i, one in enumerate(found) for j, d in enumerate(one) if d.judged and d.p is not None
    )
    result, highest = [list(one) for one in found], 0.0
    for rank, (p, i, j) in enumerate(judged):
        highest = max(highest, min(1.0, (len(judged) - rank) * p))
        result[i][j] = dataclasses.replace(result[i][j], p=highest)
    return result


def warnings(first: Row, second: Row) -> list[str]:
    """A line for every field of the environment in which the rows differ, and for records of code not committed."""
    lines = []
    for name in WATCHED:
        a, b = (_named(name, row) for row in (first, second))
        if a != b:
            lines.append(f"warning: {name} differs: {first.label} {a}, {second.label} {b}")
    return lines


def same_machine(rows: Sequence[Row]) -> str:
    """Why rates and times of the rows do not compare; empty where they do."""
    found = [name for name in MACHINE if len({_named(name, row) for row in rows}) > 1]
    return f"not compared: {layout.join_words(found)} of the rows differ" if found else ""


def _named(name: str, row: Row) -> str:
    """The values of a field of the environment over the row's records."""
    digits = COMMIT_DIGITS if name == "commit" else None
    return layout.join_words(str(getattr(record.environment, name))[:digits] for record in row.records)


def _unlike_labels(rows: Sequence[Row]) -> list[Row]:
    """The rows with labels of their own, by which likelihoods are kept apart."""
    if rows[0].label != rows[1].label:
        return list(rows)
    return [dataclasses.replace(row, label=f"{row.label} [{i}]") for i, row in enumerate(rows, start=1)]


def _difference(column: Column, pair: Sequence[Contender], arrays: Sequence[Arrays]) -> Difference:
    """The difference in one column."""
    rows = [one.row for one in pair]
    a, b = (row.get(column.quantity) for row in rows)
    if a is None or b is None or a.value is None or b.value is None:
        first, second = (None if m is None else m.value for m in (a, b))
        return Difference(column, first, second, note=_why(rows, (a, b)))
    if column.spec.metric in FACTS:
        return Difference(column, a.value, b.value)
    if note := _forbidden(column, rows, (a, b)):
        return Difference(column, a.value, b.value, note=note)
    if column.spec.metric in COSTS:
        return _of_cost(column, a, b)
    first, second, spread = _spread(column.quantity, rows, arrays)
    if spread is None:
        note = "no interval: one seed, measured before there were any" if column.spec.ranked else ""
        return Difference(column, a.value, b.value, note=note)
    trade = differ_in_beta(rows)
    note = "not judged: rows trained under different beta trade rate for distortion" if trade else ""
    judged = column.spec.ranked and column.spec.better is not None and not trade
    interval, p = _tested(second - first, spread)
    return Difference(column, first, second, interval, p, spread.basis, note, judged)


def _not_twice(one: Difference, found: Sequence[Difference]) -> Difference:
    """The difference, not judged where it is another one's in other units."""
    judged = {other.column.spec.metric for other in found if other.judged}
    if one.column.spec.metric != "bits_per_dim" or "elbo" not in judged:
        return one
    return dataclasses.replace(one, judged=False, note="not judged: the ELBO in other units")


def _tested(change: float, spread: Spread) -> tuple[Interval, float]:
    """The 95 % interval of the change and the p-value of none, by Student's t."""
    error = math.sqrt(spread.variance)
    if not error:
        return Interval(change, change), float(change == 0)
    reached = float(stdtrit(spread.freedom, (1 + LEVEL) / 2)) * error
    return Interval(change - reached, change + reached), 2 * float(stdtr(spread.freedom, -abs(change) / error))


def _of_cost(column: Column, a: Measurement, b: Measurement) -> Difference:
    """A rate, time or memory: the sum of both spreads bounds the change; it is told and not judged."""
    halves = [reach(m) for m in (a, b)]
    if halves[0] is None or halves[1] is None or a.value is None or b.value is None:
        return Difference(column, a.value, b.value)
    change, both = b.value - a.value, halves[0] + halves[1]
    return Difference(column, a.value, b.value, Interval(change - both, change + both), basis="sum of both spreads")


def _forbidden(column: Column, rows: Sequence[Row], found: Sequence[Measurement]) -> str:
    """Why two values are not of one kind; empty where they are."""
    metric, (a, b) = column.spec.metric, found
    if metric in COSTS:
        return same_machine(rows) or _unlike_details(a, b)
    if a.n != b.n and a.n and b.n:
        return f"not compared: measured on {a.n:,} and {b.n:,} images"
    if "extractor" in a.details and "pairing" not in a.details:  # on features, and not of reconstructions: of samples
        heat = [layout.join_words({f"{_temperature(r.config):g}" for r in row.records}) for row in rows]
        if heat[0] != heat[1]:
            return f"not compared: samples at temperature {heat[0]} and {heat[1]}"
    return _unlike_details(a, b)


def _temperature(config: dict) -> float:
    """The temperature that samples of a configuration are drawn at."""
    return float((config.get("evaluation") or {}).get("temperature", 1.0))


def _unlike_details(a: Measurement, b: Measurement) -> str:
    """Which settings of the measurement differ."""
    unlike = [name for name in SETTINGS if a.details.get(name) != b.details.get(name)]
    return f"not compared: {layout.join_words(unlike)} of the measurement differ" if unlike else ""


def _why(rows: Sequence[Row], found: Sequence[Measurement | None]) -> str:
    """The notes of the missing values; one that both rows share is said once."""
    notes = {row.label: m.note for row, m in zip(rows, found, strict=True) if m and m.note and m.value is None}
    if len(notes) > 1 and len(set(notes.values())) == 1:
        return next(iter(notes.values()))
    return "; ".join(f"{label}: {note}" for label, note in notes.items())


def _spread(quantity: Quantity, rows: Sequence[Row], arrays: Sequence[Arrays]) -> tuple[float, float, Spread | None]:
    """Both values and the spread of their difference, over seeds and over test images.

    Test images are paired. Seeds are where the rows are of one model and size, which begins with the same weights; the
    values are then of the seeds that both have. Seeds of other models are independent of each other.
    """
    a, b = (_by_seed(row, quantity) for row in rows)
    shared = a.keys() & b.keys()
    paired = len(shared) > 1 and _begin_alike(rows)
    if paired:
        a, b = ({seed: one for seed, one in found.items() if seed in shared} for found in (a, b))
    first, second = (np.array([_value(found[seed]) for seed in sorted(found)]) for found in (a, b))
    images = _over_images(quantity.metric, arrays, (a, b))
    if len(a) == len(b) == 1:
        spread = _of_one_seed(quantity.metric, (*a.values(), *b.values()), images, arrays)
    else:
        seeds = _paired_seeds(second - first) if paired else _unpaired_seeds(first, second)
        spread = seeds if images is None else _joined(seeds, images)
    return float(first.mean()), float(second.mean()), spread


def _begin_alike(rows: Sequence[Row]) -> bool:
    """Whether a seed means the same first weights in both rows."""
    return len({(row.records[0].model, row.records[0].parameters) for row in rows}) == 1


def _of_one_seed(
    metric: str, pair: Sequence[Measurement], images: Spread | None, arrays: Sequence[Arrays]
) -> Spread | None:
    """The spread of a change between two trials: the test images in pairs, and what else each value varies by."""
    errors = [_standard_error(m) for m in pair]
    if images is None:
        known = [error for error in errors if error is not None]
        return Spread(sum(e**2 for e in known), math.inf, "both intervals") if len(known) == 2 else None
    rest = 0.0
    for error, saved in zip(errors, arrays, strict=True):
        influences = next(iter(saved.values())).get(f"{metric}{INFLUENCE}")
        if error is not None and influences is not None:
            rest += max(0.0, error**2 - float(influences.var(ddof=1)) / len(influences))
    return Spread(images.variance + rest, images.freedom, images.basis)


def _paired_seeds(changes: np.ndarray) -> Spread:
    """The spread of the mean change over seeds (K,) that both rows have."""
    return Spread(float(changes.var(ddof=1)) / len(changes), len(changes) - 1, f"{len(changes)} seeds, paired")


def _unpaired_seeds(first: np.ndarray, second: np.ndarray) -> Spread:
    """The spread of a change between rows of own seeds (Welch 1947); a row of one takes the other's variance."""
    basis = f"{len(first)} and {len(second)} seeds"
    if min(len(first), len(second)) == 1:
        many = max(first, second, key=len)
        return Spread(float(many.var(ddof=1)) * (1 + 1 / len(many)), len(many) - 1, basis)
    a, b = (Spread(float(values.var(ddof=1)) / len(values), len(values) - 1, basis) for values in (first, second))
    return _joined(a, b)._replace(basis=basis)


def _joined(a: Spread, b: Spread) -> Spread:
    """The sum of two independent variances (degrees of freedom: Satterthwaite 1946)."""
    total = a.variance + b.variance
    freedom = total**2 / (a.variance**2 / a.freedom + b.variance**2 / b.freedom) if total else math.inf
    return Spread(total, freedom, f"{a.basis}; {b.basis}")


def _over_images(metric: str, arrays: Sequence[Arrays], seeds: Sequence[Iterable[int]]) -> Spread | None:
    """The spread of the change over test images, means over each row's seeds; None where not saved or unlike."""
    means = []
    for saved, chosen in zip(arrays, seeds, strict=True):
        values = [_of_metric(saved.get(seed, {}), metric) for seed in chosen]
        found = [one for one in values if one is not None]
        if len(found) < len(values) or len({len(one) for one in found}) != 1:
            return None
        means.append(np.mean(found, axis=0))
    if len(means[0]) != len(means[1]) or len(means[0]) < 2:
        return None
    change = means[1] - means[0]
    return Spread(float(change.var(ddof=1)) / len(change), len(change) - 1, f"{len(change):,} test images, paired")


def _of_metric(saved: dict[str, np.ndarray], metric: str) -> np.ndarray | None:
    """A trial's values of single images, or what each moves a value by that is of all together."""
    return saved.get(metric, saved.get(f"{metric}{INFLUENCE}"))


def _by_seed(row: Row, quantity: Quantity) -> dict[int, Measurement]:
    """The row's measurements of a quantity by seed."""
    found = {}
    for record in row.records:
        for one in [*facts(record), *record.measurements]:
            if quantity_of(one) == quantity and one.value is not None:
                found[record.seed] = one
    return found


def _value(found: Measurement) -> float:
    """A value that is known to be there."""
    assert found.value is not None
    return found.value


def _standard_error(found: Measurement) -> float | None:
    """The standard error over images, as recorded or from a 95 % interval."""
    error = found.details.get("standard_error")
    half = half_width(found) if found.spread_kind in ON_95 else None
    if isinstance(error, int | float):
        return float(error)
    return None if half is None else half / float(stdtrit(math.inf, (1 + LEVEL) / 2))


def _arrays(contender: Contender) -> Arrays:
    """Values of single images by seed and metric; empty where they are not saved."""
    seeds = {record.seed for record in contender.row.records}
    return {seed: _per_image(folder) for seed, folder in contender.folders.items() if seed in seeds}


def _per_image(folder: Path) -> dict[str, np.ndarray]:
    """A trial's arrays (N,) of single images.

    Raises:
        UserError: a file that holds anything else.
    """
    path = folder / "per_image.npz"
    if not path.exists():
        return {}
    arrays = read_arrays(path)
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            found = f"{values.dtype} {values.shape}"
            raise UserError(f"{path}: expected finite numbers (N,) under '{name}', got {found}; remove that file")
    return {name: values.astype(np.float64) for name, values in arrays.items()}
