"""Time and kernels as the page's template takes them: milliseconds an image, shares of a step, what was compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.records.record import Measurement
from benchmarks.report.layout import DASH, join_words
from benchmarks.report.profiles import Compiled, Kernels, Shares, Timed
from benchmarks.report.rows import Row
from benchmarks.report.speed import NAMES, significant
from benchmarks.report.web.cells import Cell, Heading, View

VERBS = ("train", "loop", "encode", "reconstruct", "sample", "iwae")
RATE = "_throughput"
LEAST_SHARE = 0.005
WORDS = NAMES | {"sample": "sampling", "iwae": "importance-weighted bound"}
NO_SHARES = (
    "The share of each kind of operation in a training step is not recorded. `python -m benchmarks throughput FOLDER "
    "... --what breakdown --json > OUT/throughput.json`, with folders of trials in the run's folder OUT, and `report "
    "OUT` add it."
)
NO_KERNELS = (
    "No profile of the kernels is recorded. `python -m benchmarks profile --json OUT/profile.json`, in the run's "
    "folder OUT, and `report OUT` add it."
)


@dataclass(frozen=True)
class Block:
    """A heading, what is said below it, and tables; `folded` is the line that stands for them, "" where they show."""

    title: str
    said: list[str]
    tables: list[View]
    folded: str = ""


def time_block(rows: Sequence[Row], shares: Mapping[str, Shares]) -> Block:
    """Milliseconds an image of whatever was timed, and the shares of a training step where they are known."""
    verbs = [verb for verb in VERBS if any(_value(row.first(f"{verb}{RATE}")) for row in rows)]
    kinds = _kinds(shares.values())
    headings = [Heading("Model"), *(_heading(verb) for verb in verbs)]
    headings += [
        Heading(f"{kind} (%)".capitalize(), f"share in the time of one training step: {kind}") for kind in kinds
    ]
    lines = [
        [
            Cell(row.label),
            *(_milliseconds(row.first(f"{verb}{RATE}")) for verb in verbs),
            *(_share(shares.get(row.label), kind) for kind in kinds),
        ]
        for row in rows
    ]
    said = ["Milliseconds an image: 1,000 over the rates of the table Cost."] if verbs else []
    if kinds:
        conditions = join_words(one.conditions for one in shares.values())
        said.append(
            f"Shares by kind of operation, of n = 1 training step under torch.profiler ({conditions}): it makes small "
            "operations look dearer than they are, and another step differs by some points. A fused cell is norm, "
            "activation and convolution in one."
        )
    else:
        said.append(NO_SHARES)
    tables = [View("Where the time goes", headings, lines, [], [])] if verbs or kinds else []
    return Block("Where the time goes", said, tables)


def _kinds(shares: Iterable[Shares]) -> list[str]:
    """The kinds of operation that take half a per cent of some step or more, in the order of the first."""
    found: dict[str, float] = {}
    for one in shares:
        for kind, share in one.by_kind.items():
            found[kind] = max(found.get(kind, 0.0), share)
    return [kind for kind, most in found.items() if most >= LEAST_SHARE]


def _value(rate: Measurement | None) -> float | None:
    """A rate that is known and can be divided by."""
    return None if rate is None else rate.value or None


def _heading(verb: str) -> Heading:
    """What stands above the milliseconds of a verb."""
    return Heading(f"{WORDS[verb].capitalize()} ↓ (ms)", f"time of one image in a batch: {WORDS[verb]}", "low")


def _milliseconds(rate: Measurement | None) -> Cell:
    """Time of an image, with the quartiles behind it."""
    value = _value(rate)
    if rate is None or value is None:
        return Cell(DASH, said="not timed" if rate is None else rate.note)
    said = f"{significant(1000 / rate.high)} to {significant(1000 / rate.low)}" if rate.low and rate.high else ""
    return Cell(significant(1000 / value), said=said)


def _share(shares: Shares | None, kind: str) -> Cell:
    """A share in per cent."""
    if shares is None:
        return Cell(DASH, said="not profiled")
    return Cell(f"{100 * shares.by_kind.get(kind, 0.0):.0f}")


def kernel_block(kernels: Kernels | None) -> Block:
    """The kernels as compiled, over targets, and as timed."""
    if kernels is None or not (kernels.compiled or kernels.timed):
        return Block("Kernels", [NO_KERNELS], [])
    targets = join_words(one.target for one in kernels.compiled)
    devices = join_words(one.device for one in kernels.timed)
    folded = "; ".join(
        [*([f"compiled for {targets}"] if targets else []), *([f"timed on {devices}"] if devices else [])]
    )
    said = [
        f"From {kernels.source}, made by `python -m benchmarks profile`. Compiled: a range over {targets or 'none'}; "
        "bytes of memory an element, beside the floor (every input read and output written once) and plain PyTorch. "
        f"Timed: median with the 20 % and 80 % quantiles, on {devices or 'no device'}."
    ]
    tables = [_compiled(kernels.compiled), _timed(kernels.timed)]
    return Block("Kernels", said, [table for table in tables if table.lines], folded)


def _compiled(found: Sequence[Compiled]) -> View:
    """A line for each kernel, direction and type, over targets."""
    cases: dict[tuple[str, str, str], list[Compiled]] = {}
    for one in found:
        cases.setdefault((one.kernel, one.direction, one.dtype), []).append(one)
    headings = ("Kernel", "Direction", "Type", "Registers", "Spills", "Instructions/element", "Bytes/element")
    lines = [
        [
            *case,
            _range(one.registers for one in same),
            _range(one.spills for one in same),
            _range(one.instructions_per_element for one in same),
            _range(one.bytes_per_element for one in same),
            _range(one.bytes_floor for one in same),
            _range(one.bytes_eager for one in same),
        ]
        for case, same in cases.items()
    ]
    return _view("Kernels as compiled", (*headings, "Floor (bytes)", "Plain PyTorch (bytes)"), lines)


def _timed(found: Sequence[Timed]) -> View:
    """A line for each timing."""
    headings = (
        "Kernel",
        "Shape",
        "Type",
        "Operations",
        "Median (us)",
        "GB/s",
        "Over eager (x)",
        "Over compiled (x)",
    )
    lines = [
        [
            one.kernel,
            "x".join(map(str, one.shape)),
            one.dtype,
            one.ops,
            f"{significant(one.p50_us)} [{significant(one.p20_us)}, {significant(one.p80_us)}]",
            *(_range([value]) for value in (one.gb_per_s, one.speedup_over_eager, one.speedup_over_compile)),
        ]
        for one in found
    ]
    return _view("Kernels as timed", headings, lines)


def _view(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> View:
    """A table of texts, without the columns that hold dashes alone."""
    kept = [place for place, _ in enumerate(headings) if any(line[place] != DASH for line in lines)]
    shown = [[Cell(line[place]) for place in kept] for line in lines]
    return View(title, [Heading(headings[place]) for place in kept], shown, [], [])


def _range(values: Iterable[float | None]) -> str:
    """One number, or the least and the largest of several."""
    found = [value for value in values if value is not None]
    ends = dict.fromkeys(significant(end(found)) for end in (min, max) if found)
    return " to ".join(ends) or DASH
