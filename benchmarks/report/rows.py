"""Model rows: records of one model over seeds, merged into one measurement a quantity."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.base.errors import UserError
from benchmarks.records.catalogue import measurement
from benchmarks.records.record import LatentGroupInfo, Measurement, RunRecord
from benchmarks.records.uncertainty import over_seeds

LIKELIHOOD_METRICS = ("elbo", "bits_per_dim", "iwae_bound", "distortion")


@dataclass(frozen=True, order=True)
class Quantity:
    """What one column holds: a metric and the settings that are part of its name.

    `variant` is K of an importance-weighted bound, or the extractor of a feature distance; `weights` begins the
    sha256 of the extractor's weights. Values of different quantities are never in one column.
    """

    metric: str
    variant: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Row:
    """One model row: its records, one a seed, and what they measured together.

    `superseded` counts older records of the same seeds and configuration, which are left out.
    """

    label: str
    records: tuple[RunRecord, ...]
    measurements: dict[Quantity, Measurement]
    superseded: int = 0

    @property
    def name(self) -> str:
        """The row's key in its suite."""
        return self.records[0].row

    @property
    def beta(self) -> float | None:
        """The objective's factor on the rate in the row's training; None without latents, or where it is not known."""
        objective = self.records[0].config.get("objective", {})
        return objective.get("beta") if self.latent_groups else None

    @property
    def latent_groups(self) -> list[LatentGroupInfo]:
        """The latent groups of the row's model, coarse -> fine, with their rates averaged over seeds."""
        groups = self.records[0].latent_groups
        seeds = [r.latent_groups for r in self.records if len(r.latent_groups) == len(groups)]
        rates = [[rate for same in seeds if (rate := same[i].rate) is not None] for i in range(len(groups))]
        return [
            dataclasses.replace(group, rate=statistics.fmean(found) if found else None)
            for group, found in zip(groups, rates, strict=True)
        ]

    def get(self, quantity: Quantity) -> Measurement | None:
        """The measurement of `quantity`; where there is none, one of its metric that says why it has no value."""
        exact = self.measurements.get(quantity)
        return exact or next((m for m in self.all(quantity.metric) if m.value is None), None)

    def all(self, metric: str) -> list[Measurement]:
        """The measurements of `metric`, one a variant."""
        return [m for q, m in self.measurements.items() if q.metric == metric]

    def first(self, metric: str) -> Measurement | None:
        """The first measurement of `metric`, whatever its variant."""
        return next(iter(self.all(metric)), None)


def quantity_of(measurement: Measurement) -> Quantity:
    """The quantity that `measurement` is a value of."""
    details = measurement.details
    if measurement.metric == "iwae_bound":
        return Quantity("iwae_bound", str(details.get("k", "")))
    weights = str(details.get("weights_sha256") or "")[:8]
    return Quantity(measurement.metric, str(details.get("extractor") or ""), weights)


def gather(records: Iterable[RunRecord]) -> list[Row]:
    """The model rows of `records`, in the order of their first records.

    Records that differ in their seed alone make one row; other differences of the configuration make rows of
    their own, told apart by the config hash behind the label.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in completed(list(records)):
        groups.setdefault(_identity(record), []).append(record)
    labels = Counter(group[0].label for group in groups.values())
    return [
        merge(group, f"{group[0].label} ({group[0].config_hash[:6]})" if labels[group[0].label] > 1 else group[0].label)
        for group in groups.values()
    ]


def trials_of(row: Row, trials: Mapping[Path, RunRecord]) -> dict[Path, RunRecord]:
    """The trials among `trials` that the row's records are of, in the row's order."""
    return trials_by_row([row], trials)[0]


def trials_by_row(rows: Sequence[Row], trials: Mapping[Path, RunRecord]) -> list[dict[Path, RunRecord]]:
    """`trials_of` each of the rows.

    A row's records have their configurations completed and perhaps their data's hash (`gather`, `with_known_data`).
    """
    alike: dict[tuple[object, ...], list[tuple[Path, RunRecord]]] = {}
    for folder, record in trials.items():
        alike.setdefault(_key(record), []).append((folder, record))
    return [
        {
            folder: record
            for own in row.records
            for folder, record in alike.get(_key(own), [])
            if _as_found(record) == _as_found(own)
        }
        for row in rows
    ]


def _key(record: RunRecord) -> tuple[object, ...]:
    """What two records of one trial share, and few others do."""
    return record.row, record.seed, record.config_hash, record.environment.date


def _as_found(record: RunRecord) -> RunRecord:
    """The record without what a row may have completed."""
    return dataclasses.replace(record, config={}, data_hash="")


def with_known_data(records: Iterable[RunRecord]) -> list[RunRecord]:
    """`records`, where a trial that failed before it read its data takes the hash of its neighbours on that data."""
    found = list(records)
    hashes = {(r.suite, r.data): r.data_hash for r in found if r.data_hash}
    return [r if r.data_hash else dataclasses.replace(r, data_hash=hashes.get((r.suite, r.data), "")) for r in found]


def merge(records: list[RunRecord], label: str) -> Row:
    """The row of `records`, which differ in their seed; only finished ones count where there are any."""
    latest = _latest_per_seed(records)
    usable = [r for r in latest if r.status in ("done", "trained")] or latest
    found: dict[Quantity, list[Measurement]] = {}
    for record in usable:
        for one in [*facts(record), *record.measurements]:
            found.setdefault(quantity_of(one), []).append(one)
    measurements = {q: pooled(same) for q, same in found.items()}
    return Row(label, tuple(latest), measurements, superseded=len(records) - len(latest))


def facts(record: RunRecord) -> list[Measurement]:
    """Size and cost of the trial as measurements, so that all columns are made in one way."""
    latents = sum(g.channels * g.height * g.width for g in record.latent_groups) or None
    code = "" if latents else "a code without noise, no latents"
    return [
        measurement("parameters", record.parameters),
        measurement("latents", latents, note=code),
        measurement("macs", record.macs_per_image),
        measurement("training_images", record.images_seen),
        measurement("training_seconds", record.training_seconds),
        measurement("training_cpu_seconds", record.training_cpu_seconds),
    ]


def pooled(same: list[Measurement]) -> Measurement:
    """One measurement for several seeds: their mean, low and high at one standard deviation around it.

    A single value keeps its own spread.
    """
    valued = [m for m in same if m.value is not None]
    values = [m.value for m in valued if m.value is not None]
    if len(valued) < 2:
        return (valued or same)[0]
    mean, std = over_seeds(values)
    std = std or 0.0
    note = "; ".join(dict.fromkeys(m.note for m in valued if m.note))
    return dataclasses.replace(
        valued[0], value=mean, low=mean - std, high=mean + std, spread_kind="std over seeds", note=note
    )


def likelihoods(row: Row) -> set[str]:
    """The names of the likelihoods under which the row's ELBO was measured; empty without an ELBO."""
    measured = (record.get("elbo") for record in row.records)
    return {str(m.details.get("likelihood", "not stated")) for m in measured if m is not None and m.value is not None}


def under_one_ruler(rows: list[Row]) -> list[Row]:
    """`rows`, with the likelihood metrics emptied where the rows do not share one likelihood."""
    by_row = {row.label: sorted(likelihoods(row)) for row in rows}
    if len(set().union(*by_row.values())) < 2:
        return rows
    used = "; ".join(f"{label}: {' and '.join(names)}" for label, names in by_row.items() if names)
    return [_without_likelihood(row, f"likelihoods differ, so values do not compare ({used})") for row in rows]


def differ_in_beta(rows: Iterable[Row]) -> bool:
    """Whether the rows are points of a trade between rate and distortion, so that none of them is best."""
    return len({row.beta for row in rows} - {None}) > 1


def half_width(measurement: Measurement) -> float | None:
    """Half the width of the measurement's spread, None where it has none."""
    if measurement.low is None or measurement.high is None:
        return None
    half = (measurement.high - measurement.low) / 2
    return half if math.isfinite(half) else None


def reach(measurement: Measurement) -> float | None:
    """Half the width of an interval that another measurement may be held against; None where there is none.

    The spread over subsets of one set of samples says nothing about another set.
    """
    return None if measurement.spread_kind == "std over subsets" else half_width(measurement)


def _without_likelihood(row: Row, note: str) -> Row:
    """`row` with dashes for the likelihood metrics it has a value of."""
    emptied = {
        q: dataclasses.replace(m, value=None, low=None, high=None, note=note)
        for q, m in row.measurements.items()
        if q.metric in LIKELIHOOD_METRICS and m.value is not None
    }
    return dataclasses.replace(row, measurements=row.measurements | emptied)


def _identity(record: RunRecord) -> str:
    """Text that is equal for records of one row that differ in their seed alone."""
    config = json.dumps(without_seed(record.config), sort_keys=True, default=str)
    return "\n".join([record.row, record.label, record.data_hash, record.environment.device, config])


def completed(records: list[RunRecord]) -> list[RunRecord]:
    """`records`, where fields that older ones lack are at their defaults; as they are where none lacks any."""
    shapes: dict[object, set[object]] = {}
    for record in records:
        shapes.setdefault((record.model, record.config.get("likelihood")), set()).add(_names(record.config))
    if all(len(found) == 1 for found in shapes.values()):
        return records
    from benchmarks.suites.config import to_dict, trial_from_dict  # imports torch: slow

    completed = []
    for record in records:
        try:
            config = to_dict(trial_from_dict(record.config))
        except UserError:  # of a plugin, or of a version that cannot be read
            config = record.config
        completed.append(dataclasses.replace(record, config=config))
    return completed


def _names(config: Any) -> object:
    """The keys of a configuration, at every level."""
    return tuple((key, _names(config[key])) for key in sorted(config)) if isinstance(config, dict) else None


def without_seed(config: Any) -> Any:
    """`config` without its seeds, at every level."""
    if not isinstance(config, dict):
        return config
    return {key: without_seed(value) for key, value in config.items() if key not in ("seed", "seeds")}


def _latest_per_seed(records: list[RunRecord]) -> list[RunRecord]:
    """The newest record of each seed, by seed."""
    newest = {record.seed: record for record in sorted(records, key=lambda r: r.environment.date)}
    return [newest[seed] for seed in sorted(newest)]
