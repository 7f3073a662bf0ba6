"""What stands around a table: the caption that says how it was measured, the footnotes that say what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.records.catalogue import COLLAPSED_RATE
from benchmarks.records.record import LatentGroupInfo, Measurement, RunRecord
from benchmarks.report.columns import DISTANCES, Column, all_specs, empty, short_name, winner
from benchmarks.report.layout import join_words
from benchmarks.report.rows import Row, differ_in_beta, half_width, quantity_of

HIERARCHY_GROUPS = 4
HIERARCHY_RESOLUTIONS = 2
SMALL_N = 2000  # images below which a feature distance is flagged
EQUAL_SECONDS = 0.1  # relative range of training seconds that still counts as equal
THROUGHPUTS = ("train_throughput", "encode_throughput", "reconstruct_throughput", "sample_throughput")
CONDITIONS = {"batch": "batch", "threads": "threads", "precision": "precision", "load": "load average"}
BUSY = 1.5  # load average over cores above which rates are flagged
LIKELIHOODS = {
    "bernoulli": "Bernoulli, probability of pixels binarised by their brightness",
    "gaussian": "Gaussian (scale {scale}), density over pixels in 0-1",
    "logistic-mixture": "mixture of {mixtures} logistics, probability of {bits}-bit levels",
    "soft-clamped-normal": "normal with soft-clamped parameters, density over pixels in -1 to 1",
}
"""What each likelihood scores, by its name in a configuration."""
SPREADS = {
    "bootstrap 95%": "half the 95 % bootstrap interval over test images",
    "jackknife 95%": "half the 95 % interval over test images and samples, by the jackknife",
    "std over seeds": "one standard deviation over seeds",
    "IQR": "half the interquartile range over timed repeats",
    "std over subsets": "one standard deviation over random subsets",
    "standard error": "one standard error over test images",
}


def lead(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """The paragraphs that are read first: data, equality of training, who is best in which of the columns."""
    records = [record for row in rows for record in row.records]
    return [_what(records), training_equality(rows), *best(rows, columns)]


def best(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """The rows that win a column, and which; nothing where none does."""
    won: dict[str, list[str]] = {}
    for column in columns:
        if (index := winner(rows, column)) is not None:
            won.setdefault(rows[index].label, []).append(short_name(column.spec.metric))
    said = "; ".join(f"{label} in {join_words(names)}" for label, names in won.items())
    return [f"Best beyond the spread: {said}."] if said else []


def caption(rows: Sequence[Row]) -> list[str]:
    """The other paragraphs above the tables: likelihoods, spread, features, machine, software."""
    records = [record for row in rows for record in row.records]
    return [
        *likelihoods(rows),
        *spread(rows),
        *trade(rows),
        *features(rows),
        *prior_statistics(rows),
        _machine(records),
        *_throughput(rows),
    ]


def training_equality(rows: Sequence[Row]) -> str:
    """Whether the rows saw the same number of images or trained for the same time, or neither."""
    done = [r for row in rows for r in row.records if r.status in ("done", "trained")]
    images = sorted({r.images_seen for r in done})
    seconds = sorted(r.training_seconds for r in done)
    busy = [r.training_cpu_seconds for r in done if _of_processor(r)]
    processor = sorted(s for s in busy if s is not None)
    if not done:
        return "No row finished its training."
    if len(images) == 1:
        return f"Equal images: every row trained on {images[0]:,}; the seconds differ and are printed beside."
    if len(processor) == len(done):
        return _processor_time(processor, images)
    if _about_equal(seconds):
        return f"Equal seconds: every row trained for about {seconds[-1]:,.0f} s, on {_range(images)} images."
    return f"Neither equal images ({_range(images)}) nor equal seconds: compare rows with care."


def _processor_time(seconds: Sequence[float], images: Sequence[int]) -> str:
    """Whether rows under a budget of processor time took the same; `seconds` and `images` are sorted."""
    if _about_equal(seconds):
        return (
            f"Equal processor time: every row trained for about {seconds[-1]:,.0f} CPU-seconds, on {_range(images)} "
            "images; the seconds of the clock are printed beside."
        )
    return (
        f"Processor time was the budget and is not equal: rows took {seconds[0]:,.1f} to {seconds[-1]:,.1f} "
        f"CPU-seconds, on {_range(images)} images; compare rows with care."
    )


def _about_equal(seconds: Sequence[float]) -> bool:
    """Whether sorted durations span no more than `EQUAL_SECONDS` of the longest."""
    return seconds[-1] - seconds[0] <= EQUAL_SECONDS * seconds[-1]


def _of_processor(record: RunRecord) -> bool:
    """Whether the training had a budget of processor time."""
    return (record.config.get("training") or {}).get("cpu_seconds") is not None


def likelihoods(rows: Sequence[Row]) -> list[str]:
    """What log p(x) is of, and beta, for each likelihood in the table: values of two kinds cannot be compared."""
    labels: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        config = row.records[0].config
        if "likelihood" in config:
            kind = LIKELIHOODS.get(str(config["likelihood"]), "{likelihood}").format(**_likelihood_fields(config))
            beta = "" if row.beta is None else f", beta {row.beta:g}"
            labels.setdefault((kind, beta), []).append(row.label)
    said = "; ".join(f"{join_words(names)}: {kind}{beta}" for (kind, beta), names in labels.items())
    warning = " Values under different likelihoods are not comparable." if len({kind for kind, _ in labels}) > 1 else ""
    return [f"Likelihood: {said}.{warning}"] if labels else []


def _likelihood_fields(config: dict[str, Any]) -> dict[str, object]:
    """A likelihood's name and its settings, for `LIKELIHOODS`."""
    spec: dict[str, Any] = config.get("likelihood_spec") or {}
    return {"likelihood": config["likelihood"], "bits": 8, "mixtures": "?", "scale": "?", **spec}


def spread(rows: Sequence[Row]) -> list[str]:
    """What ± means, for each kind of spread in the table, and what bold means."""
    names: dict[str, list[str]] = {}
    for spec in (spec for spec in all_specs() if spec.spread):
        for measurement in (m for row in rows for m in row.all(spec.metric) if half_width(m)):
            names.setdefault(str(measurement.spread_kind), []).append(short_name(spec.metric))
    if not names:
        return []
    kinds = "; ".join(f"{SPREADS.get(kind, kind)} ({join_words(metrics)})" for kind, metrics in names.items())
    return [
        f"±: {kinds}. Bold: best of its column, and its interval over images or seeds overlaps no other row's; "
        "a value without such an interval is never bold."
    ]


def trade(rows: Sequence[Row]) -> list[str]:
    """That rows trained under different beta are not ranked, where there are any."""
    if not differ_in_beta(rows):
        return []
    return [
        "The rows differ in beta, the objective's factor on the rate: they trade rate for distortion, so that none is "
        "bold. ELBO and bound are unweighted in every row."
    ]


def features(rows: Sequence[Row]) -> list[str]:
    """What the feature distances are and what real images score, where any was measured."""
    found = [m for row in rows for metric in DISTANCES for m in row.all(metric) if m.value is not None]
    named = [quantity_of(m) for m in found]
    if not named:
        return []
    extractors = join_words(f"{q.variant} (weights {q.weights})" if q.weights else q.variant for q in named)
    floor = next((m for row in rows for m in row.all("fid_floor") if m.value is not None), None)
    count = f"{floor.n:,} " if floor is not None and floor.n else ""
    others, reference = "training", "the test split"
    if floor is not None and floor.details.get("reference_split") == "train":
        others, reference = "test", f"{floor.details.get('n_reference') or 0:,} training images"
    real = f"Last row, the floor of FID: {count}{others} images against {reference}." if floor else ""
    return [
        f"Features by {extractors}. FID: samples against {reference}; rFID: reconstructions against their "
        f"originals, paired, so that its floor is 0. {real}".strip()
    ]


def prior_statistics(rows: Sequence[Row]) -> list[str]:
    """What the distance with prior statistics is of, where any row has it."""
    found = [m for row in rows for m in row.all("sample_fid_prior_statistics") if m.value is not None]
    if not found:
        return []
    count, size = _values(found, "prior_batches"), _values(found, "prior_batch_size")
    return [
        "FID (prior BN): samples of the same latents, with batch-norm means and variances measured on "
        f"images drawn from the prior ({count} batches of {size}) in place of those of training."
    ]


def left_out(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Which of the columns are not shown, for no row has a value."""
    names = join_words(short_name(column.quantity.metric) for column in columns if empty(rows, column))
    return [f"no column, as no row has a value: {names}"] if names else []


def footnotes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """The lines under a table: why values are missing, what values mean, which distances are from few images."""
    missing: dict[str, list[tuple[str, str]]] = {}
    remarks: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for column in columns:
            measurement = row.get(column.quantity)
            if measurement is not None:
                notes = missing if measurement.value is None else remarks
                place = (row.label, short_name(column.quantity.metric))
                notes.setdefault(measurement.note, []).append(place)
    valued = [place for places in remarks.values() for place in places]
    lines = [_missing_line(note, places) for note, places in missing.items() if note]
    lines += [_remark_line(note, places, valued) for note, places in remarks.items() if note]
    return [*lines, *_small_samples(rows, columns)]


def row_notes(rows: Sequence[Row]) -> list[str]:
    """The lines about rows as a whole: failures, collapsed hierarchies, the record's own notes."""
    said: dict[str, list[str]] = {}
    for row in rows:
        texts = [text for record in row.records for text in (*_state(record), *record.notes)]
        if row.superseded:
            plural = "" if row.superseded == 1 else "s"
            texts.append(f"{row.superseded} older record{plural} of the same seed and configuration left out")
        for text in (*texts, *hierarchy_flags(row.latent_groups)):
            said.setdefault(text, []).append(row.label)
    return [f"{join_words(labels)}: {text}" for text, labels in said.items()]


def hierarchy_flags(groups: Sequence[LatentGroupInfo]) -> list[str]:
    """What keeps the latents from being a hierarchy, or a single group from being used; empty where all is well."""
    flags = []
    resolutions = {(g.height, g.width) for g in groups}
    if len(groups) > 1 and (len(groups) < HIERARCHY_GROUPS or len(resolutions) < HIERARCHY_RESOLUTIONS):
        flags.append(
            f"not counted as a hierarchy: {len(groups)} groups over {len(resolutions)} resolutions, "
            f"where one has at least {HIERARCHY_GROUPS} over {HIERARCHY_RESOLUTIONS}"
        )
    for index, group in enumerate(groups, start=1):
        if group.rate is not None and group.rate < COLLAPSED_RATE:
            place = f"latent group {index} of {len(groups)} ({group.height}x{group.width})"
            flags.append(f"collapsed: {place} carries {group.rate:.2g} nats, less than {COLLAPSED_RATE}")
    return flags


def _what(records: Sequence[RunRecord]) -> str:
    """Suite, data, number of test images, seeds."""
    first = records[0]
    metrics = (m for r in records for m in r.measurements if m.metric in ("elbo", "mse") and m.n)
    sizes = sorted({m.n for m in metrics if m.n})
    tested = f", {_range(sizes)} test images" if sizes else ""
    seeds = sorted({r.seed for r in records})
    said = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({join_words(map(str, seeds))})"
    note = f" Data: {first.data_note}." if ":" in first.data and first.data_note else ""
    return f"Suite {first.suite}, data {first.data} (hash {first.data_hash[:8]}){tested}, {said}.{note}"


def _machine(records: Sequence[RunRecord]) -> str:
    """Device, threads, precision, versions, commit and date; several values where the rows differ."""
    found = [r.environment for r in records]
    named = ((e.device, ", ".join(filter(None, [e.device_name, e.instruction_set]))) for e in found)
    devices = join_words(f"{device} ({name})" if name else device for device, name in named)
    threads = join_words(f"{e.threads} of {e.cores} cores" if e.device == "cpu" else f"{e.threads}" for e in found)
    commits = join_words(e.shown_commit for e in found)
    dates = sorted({e.date[:10] for e in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"Device {devices}, threads {threads}, precision {join_words(e.precision for e in found)}; "
        f"torch {join_words(e.torch for e in found)}, suite version {join_words(e.suite_version for e in found)}, "
        f"commit {commits}, {when}."
    )


def _throughput(rows: Sequence[Row]) -> list[str]:
    """Under which conditions the rates were measured."""
    rates = [m for row in rows for name in THROUGHPUTS for m in row.all(name) if m.value is not None]
    said = [f"{name} {_values(rates, key)}" for key, name in CONDITIONS.items() if _values(rates, key)]
    if not said:
        return []
    busy = max(m.details.get("load") or 0.0 for m in rates) > BUSY * rows[0].records[0].environment.cores
    flags = [
        " The machine was busy: rates are too low." if busy else "",
        " The conditions differ between rows." if any("," in _values(rates, k) for k in ("batch", "threads")) else "",
    ]
    return [f"Rates: median, {'; '.join(said)}.{''.join(flags)}"]


def _values(measurements: Sequence[Measurement], key: str) -> str:
    """The values of one detail, a range for numbers that were measured."""
    found = [m.details[key] for m in measurements if m.details.get(key) is not None]
    if found and all(isinstance(value, float) for value in found):
        return f"{min(found):.2g}" if min(found) == max(found) else f"{min(found):.2g} to {max(found):.2g}"
    return join_words(str(value) for value in found)


def _state(record: RunRecord) -> list[str]:
    """What went wrong in one cell."""
    said = []
    if record.status in ("failed", "interrupted"):
        reason = record.error.strip().splitlines()[-1] if record.error.strip() else "no reason recorded"
        said.append(f"{record.status} (seed {record.seed}) after {record.images_seen:,} images: {reason}")
    if record.status == "trained":
        said.append(f"trained (seed {record.seed}), {record.error or 'not evaluated yet'}")
    return said


def _missing_line(note: str, places: Sequence[tuple[str, str]]) -> str:
    """Why cells are dashes, with their rows and columns."""
    labels, names = zip(*places, strict=True)
    return f"{join_words(labels)}: {note} ({_in_order(names)})"


def _remark_line(note: str, places: Sequence[tuple[str, str]], valued: Sequence[tuple[str, str]]) -> str:
    """A note on values with their columns; the rows are named where others have values in these columns, too."""
    labels, names = zip(*places, strict=True)
    others = {label for label, name in valued if name in names} - set(labels)
    of = f" of {join_words(labels)}" if others else ""
    return f"{_in_order(names)}{of}: {note}"


def _in_order(names: Iterable[str]) -> str:
    """The names of columns in the order of the tables."""
    order = [short_name(spec.metric) for spec in all_specs()]
    return join_words(sorted(names, key=order.index))


def _small_samples(rows: Sequence[Row], columns: Sequence[Column]) -> Iterable[str]:
    """Lines where Frechet distances rest on few images, unless they say so themselves, or on different numbers."""
    found = [m for row in rows for c in columns if c.spec.metric in DISTANCES and (m := row.get(c.quantity))]
    sizes = sorted({m.n for m in found if m.value is not None and m.n})
    few = [m for m in found if m.value is not None and m.n and m.n < SMALL_N and not m.note and m.metric != "kid"]
    small = sorted({m.n for m in few if m.n})  # without KID, which has no bias
    if small:
        yield f"n = {_range(small)} < {SMALL_N:,} images: feature distances are biased upwards, compare equal n only"
    if len(sizes) > 1:
        yield f"feature distances of different n ({join_words(f'{n:,}' for n in sizes)}) are not ranked"


def _range(sizes: Sequence[int]) -> str:
    """One number, or the range of several."""
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
