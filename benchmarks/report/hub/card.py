"""The card of a trial: metadata and evaluation in the hub's format, results, pictures, protocol and environment."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from benchmarks.records.catalogue import METRICS, of_the_machine
from benchmarks.records.record import Measurement, RunRecord
from benchmarks.report import layout, notes, tables
from benchmarks.report.layout import DASH, in_markdown

CARD = "README.md"
TASK = {"type": "unconditional-image-generation", "name": "Unconditional Image Generation"}
"""Of the hub's names of tasks."""
HUB_METRICS = {"sample_fid": "fid", "inception_score": "is"}
"""Metrics that the hub knows under another name."""
ENVIRONMENT = (
    "device_name",
    "threads",
    "precision",
    "operations",
    "torch",
    "python",
    "suite_version",
    "commit",
    "date",
)


def card(record: RunRecord, license: str, pictures: Mapping[str, str]) -> str:
    """The card as markdown with YAML in front; `pictures` are files by title.

    What the front says of the evaluation is a task, a data set and a metric for each value, as
    huggingface.co/docs/hub/model-cards has it ("model-index").
    """
    known = ":" not in record.data  # else images of the user's own, from a path
    dataset = record.data if known else f"own images ({record.data.partition(':')[0]})"
    section = tables.section([dataclasses.replace(record, data=dataset)])
    compared = [notes.training_equality(section.rows), *notes.spread(section.rows)]  # of several rows
    return _template().render(
        license=license,
        task=TASK,
        tags=list(dict.fromkeys(("vaebench", "vae", record.model))),
        datasets=[record.data] if known else [],
        name=f"{record.row}-{record.data}" if known else record.row,
        dataset={"name": dataset, "type": record.data if known else record.data.partition(":")[0]},
        metrics=[_metadata(one) for one in _valued(record, machine=False)],
        label=record.label,
        summary=_summary(record),
        table=layout.markdown(_table(record), left=("Metric", "Unit", "Meaning")),
        pictures=pictures,
        protocol=[text for text in (*section.lead, *section.caption) if text not in compared],
        notes=record.notes,
        environment=layout.markdown(_environment(record), left=("Environment", "")),
    )


def _valued(record: RunRecord, *, machine: bool) -> list[Measurement]:
    """Measurements that have a value: of the machine, or of the model."""
    found = [one for one in record.measurements if one.value is not None]
    return [one for one in found if of_the_machine(one.metric) == machine]


def _metadata(one: Measurement) -> dict[str, Any]:
    """A value as the hub's metadata has it; what it cannot say otherwise is in `args`."""
    fields = {"unit": one.unit or None, "n": one.n, "low": one.low, "high": one.high, "interval": one.spread_kind}
    args = {name: value for name, value in fields.items() if value is not None}
    kind = HUB_METRICS.get(one.metric, one.metric)
    name = f"{one.metric} ({one.unit})" if one.unit else one.metric
    return {"type": kind, "value": one.value, "name": name, "args": args}


def _summary(record: RunRecord) -> str:
    """What was trained, on what, for how long."""
    latents = sum(one.channels * one.height * one.width for one in record.latent_groups)
    return (
        f"{record.label} ({record.model}), {record.parameters:,} parameters, {latents:,} latents in "
        f"{len(record.latent_groups)} groups, trained on {record.images_seen:,} images of {_of(record)} in "
        f"{record.training_seconds:,.0f} s, seed {record.seed}."
    )


def _of(record: RunRecord) -> str:
    return f"{record.data} (hash {record.data_hash[:8]})" if ":" not in record.data else f"hash {record.data_hash[:8]}"


def _table(record: RunRecord) -> pd.DataFrame:
    """A line a value: with its interval, n, unit and meaning."""
    rows = [
        {
            "Metric": f"{one.metric} {_arrow(one)}".strip(),
            "Value": f"{one.value:,.5g}",
            "Interval": _interval(one),
            "n": DASH if one.n is None else f"{one.n:,}",
            "Unit": in_markdown(one.unit),
            "Meaning": in_markdown(METRICS[one.metric].description if one.metric in METRICS else ""),
        }
        for one in (*_valued(record, machine=False), *_valued(record, machine=True))
    ]
    return pd.DataFrame(rows)


def _interval(one: Measurement) -> str:
    """The interval with its kind."""
    return DASH if one.low is None or one.high is None else f"{one.low:,.5g} to {one.high:,.5g} ({one.spread_kind})"


def _arrow(one: Measurement) -> str:
    return {True: "↑", False: "↓", None: ""}[one.higher_is_better]


def _environment(record: RunRecord) -> pd.DataFrame:
    """Machine and versions, a line each."""
    found = dataclasses.asdict(record.environment)
    lines = [(name.replace("_", " "), in_markdown(found[name])) for name in ENVIRONMENT]
    return pd.DataFrame(lines, columns=["Environment", ""])


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # markdown: text is escaped by the filter `text`, YAML by `yaml`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": in_markdown, "yaml": lambda value: json.dumps(value, ensure_ascii=False)}
    return environment.get_template("card.md")
