"""The verb `throughput`: how fast a model is, alone, beside another, or in the whole speed suite."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.base.errors import UserError, unknown
from benchmarks.base.files import write_text_atomically
from benchmarks.machine import instructions
from benchmarks.machine.environment import choose_device, note_missing_kernels
from benchmarks.machine.process import keep_freed_memory
from benchmarks.records.record import Measurement
from benchmarks.report.speed import measurements_csv, measurements_text
from benchmarks.speed import plan, suite
from benchmarks.speed import throughput as timing
from benchmarks.speed.beside import NEIGHBOURED, PRODUCT, kept_rows, product_rows
from benchmarks.speed.clock import Watch
from benchmarks.speed.scaling.table import ScalingRow, scaling_csv, scaling_markdown
from benchmarks.speed.scaling.together import Request, timed_steps
from benchmarks.speed.scaling.traffic import ALONE, traffic
from benchmarks.speed.spread import Spread, spread
from benchmarks.speed.target import Target, resolve
from benchmarks.speed.throughput import OURS_NAME, PLAIN_NAME, USUAL, Settings, Variant
from benchmarks.speed.work import job_of, verbs_of
from benchmarks.storage.weights import write_config
from benchmarks.trials import start
from kernels.cpu import library

SUITE_ONLY = ("out", "pythae", "no_compiler", "most")
MODELS_ONLY = (
    "neighbours",
    "ranks",
    "link",
    "hparams",
    "set",
    "vs",
    "vs_set",
    "trace",
    "iwae",
    "what",
    "precision",
    "compile",
)
TRAIN, NETWORK = "train", "network"
"""What of several processes is measured: a training step, the bytes that they send."""
NOT_OF_OPERATIONS = ("pythae", "no_compiler", *(name for name in MODELS_ONLY if name != "compile"))
NO_GROWTH = ("batch", "pythae", "no_compiler", "most")
NOT_SCALED = ("neighbours", "vs", "vs_set", "trace", "iwae", "compile", "hparams")
NOT_BESIDE = ("vs_set", "trace")
SECONDS = 0.8


def throughput(options: argparse.Namespace) -> int:
    """Time models, operations, or all of the speed suite."""
    if not instructions.in_force(options.instructions):
        return instructions.under(options.instructions, options.words)
    if options.suite == plan.OPERATIONS:
        return _operations(options)
    if options.suite:
        _refuse(options, MODELS_ONLY, "does not go with --suite: say it in a suite file")
        return _suite(options)
    _refuse(options, SUITE_ONLY, "goes with --suite")
    if options.ranks:
        return _scaling(options)
    if options.link:
        raise UserError("--link goes with --ranks")
    if options.neighbours or options.vs == PRODUCT:
        _refuse(options, NOT_BESIDE, "does not go with --neighbours and --vs product")
    planned = _plan(options)
    note_missing_kernels(_device(options, planned[0][0]))
    keep_freed_memory()
    rows = [row for one in planned for row in _measured(options, *one)]
    if options.csv is not None:
        write_text_atomically(Path(options.csv), measurements_csv(rows))
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return 0


def _refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raise UserError where one of these options is given."""
    for name in names:
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} {why}")


def _operations(options: argparse.Namespace) -> int:
    """Time single operations side by side; their table is the last thing on stdout."""
    from benchmarks.speed.operations import measured as operations  # torch's compiler: a second that most verbs spare
    from benchmarks.speed.operations.table import operations_csv, operations_json, operations_markdown

    where = f"does not go with --suite {plan.OPERATIONS}"
    _refuse(options, NOT_OF_OPERATIONS, where)
    if options.compile == "graph":
        raise UserError(f"--compile graph {where}: expected on or off")
    if options.device not in (None, "auto", "cpu"):
        raise UserError(f"--device {options.device} {where}, which is about a CPU; profile times the kernels of a GPU")
    names = (*options.target, *(options.models or ()))
    planned = operations.Plan(
        targets=names or operations.TARGETS,
        batches=options.batch or (None,),
        threads=options.threads or (1,),
        seconds=options.seconds or SECONDS,
        most=options.most or operations.MOST,
        compiled=options.compile == "on",
    )
    table = operations.measure(planned, Path(options.out or f"results/local/{plan.OPERATIONS}"))
    if options.csv is not None:
        write_text_atomically(Path(options.csv), operations_csv(table))
    print(operations_json(table) if options.json else operations_markdown(table))
    return 0


def _suite(options: argparse.Namespace) -> int:
    """Run the speed suite, or one of growth; its table is the last thing on stdout."""
    from benchmarks.speed.growth.plan import is_growth_suite  # metrics of features: a second that a model spares

    if options.target:
        raise UserError(f"--suite takes its models from its file, got '{options.target[0]}' as well")
    if is_growth_suite(options.suite):
        return _growth(options)
    _refuse(options, ("most",), f"goes with --suite {plan.OPERATIONS}")
    choice = plan.Choice(
        models=options.models,
        batches=options.batch,
        threads=options.threads,
        seconds=options.seconds,
        device=choose_device(options.device or "auto").type,
        pythae=options.pythae,
        compiler=not options.no_compiler,
        plugins=tuple(options.plugin),
    )
    done = suite.run(plan.read_speed_suite(options.suite), choice, plan.folder_of(options.suite, choice, options.out))
    if options.csv is not None:
        write_text_atomically(Path(options.csv), done.csv)
    print(done.json if options.json else done.markdown)
    return _ended(done.failed)


def _growth(options: argparse.Namespace) -> int:
    """Run a growth suite; its table is the last thing on stdout."""
    from benchmarks.speed.growth import plan as growth_plan
    from benchmarks.speed.growth import suite as growth_suite
    from benchmarks.speed.growth.table import growth_csv, growth_json, growth_markdown

    _refuse(options, NO_GROWTH, "does not go with a suite of growth: leave it out")
    if options.threads and len(options.threads) > 1:
        raise UserError(f"--threads: expected one number for a suite of growth, got {len(options.threads)}")
    choice = growth_plan.Choice(
        curves=options.models,
        seconds=options.seconds,
        threads=options.threads[0] if options.threads else None,
        device=choose_device(options.device or "auto").type,
        plugins=tuple(options.plugin),
    )
    out = plan.folder_of(options.suite, plan.Choice(), options.out)
    done = growth_suite.run(growth_plan.read_growth_suite(options.suite), choice, out)
    if options.csv is not None:
        write_text_atomically(Path(options.csv), growth_csv(done.table))
    print(growth_json(done.table) if options.json else growth_markdown(done.table))
    return _ended(done.failed)


def _ended(failed: Sequence[str]) -> int:
    """Say what failed; the exit code."""
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


def _scaling(options: argparse.Namespace) -> int:
    """Time trainings of several processes, and count what they send; the table is the last thing on stdout."""
    what = options.what or (TRAIN, NETWORK)
    for name in what:
        if name not in (TRAIN, NETWORK):
            raise unknown("name of --what beside --ranks", name, (TRAIN, NETWORK))
    for name in NOT_SCALED:
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} does not go with --ranks")
    rows = [row for one in _plan(options) for row in _scaled(options, *one, timed=TRAIN in what)]
    if options.csv is not None:
        write_text_atomically(Path(options.csv), scaling_csv(rows))
    print(json.dumps([row.flat() for row in rows], indent=1) if options.json else scaling_markdown(rows))
    return 0


def _scaled(
    options: argparse.Namespace, target: Target, batch: int | None, threads: int | None, *, timed: bool
) -> list[ScalingRow]:
    """A row for each number of processes that train the target."""
    ours = target.overridden(_shared_settings(options, batch))
    together, device = ours.trial.training.batch_size, _device(options, target)
    seconds, threads = options.seconds or SECONDS, threads or target.trial.threads
    request = Request(ours.source, ours.row, list(ours.overrides), device.type, threads, seconds, list(options.plugin))
    rows, alone, shared = list[ScalingRow](), None, traffic(ours.trial, ours.image)
    for ranks in options.ranks:
        if together < ranks:
            raise UserError(f"--ranks {ranks}: expected an image at least for each, got a batch of {together}")
        if timed and device.type == "cuda" and ranks > torch.cuda.device_count():
            raise UserError(f"--ranks {ranks}: expected a GPU for each, found {torch.cuda.device_count()}")
        watch = Watch()
        steps = timed_steps(request, ranks) if timed else None
        others = watch.stop().other_cpu if timed else None
        rate = spread([together / one for one in steps.wall]) if steps else None
        of_cpu = together / steps.cpu if steps else None
        alone = rate.median if rate and ranks == 1 else alone
        speedup = rate.median / alone if rate and alone else None
        crossing, link = shared if ranks > 1 else ALONE, options.link * 1e9 if options.link else None
        rows.append(
            ScalingRow(ours.name, ranks, together, threads, device.type, rate, speedup, crossing, link, of_cpu, others)
        )
    return rows


def _plan(options: argparse.Namespace) -> list[tuple[Target, int | None, int | None]]:
    """What is measured one after another: target, batch, threads."""
    if not options.target:
        raise UserError("throughput: expected a run folder, weights, a suite or a preset, or --suite speed; got none")
    targets = [target for name in options.target for target in resolve(name, options.models, options.hparams)]
    batches: tuple[int | None, ...] = options.batch or (None,)
    threads: tuple[int | None, ...] = options.threads or (None,)
    planned = list(itertools.product(targets, batches, threads))
    if options.trace and len(planned) > 1:
        raise UserError(f"--trace writes one file: expected one model, batch and threads, got {len(planned)}")
    return planned


def _device(options: argparse.Namespace, target: Target) -> torch.device:
    """Where the target runs: as told, else as a run folder was trained, else on a GPU if there is one."""
    return choose_device(options.device or (target.trial.device if Path(target.source).is_dir() else "auto"))


def _measured(options: argparse.Namespace, target: Target, batch: int | None, threads: int | None) -> list[Measurement]:
    """The measurements of one target with what it is compared with; printed unless JSON is asked for."""
    torch.set_num_threads(threads or target.trial.threads)
    settings = Settings(
        device=_device(options, target),
        what=options.what or _usual(options, target),
        seconds=options.seconds or SECONDS,
        draws=options.iwae or target.trial.evaluation.iwae_samples,
        trace=Path(options.trace) if options.trace else None,
        plugins=tuple(options.plugin),
    )
    rows = _rows(options, target, batch, settings)
    if timing.START in settings.what:
        rows += [
            row for one in _variants(options, target, batch) if not one.plain for row in _start_rows(one, settings)
        ]
    if not options.json:
        print(measurements_text(rows), flush=True)
    return rows


def _rows(options: argparse.Namespace, target: Target, batch: int | None, settings: Settings) -> list[Measurement]:
    """Rates beside busy processes, beside the machine's matrix product, or of one or two variants."""
    if not (options.neighbours or options.vs == PRODUCT):
        return timing.measure(_variants(options, target, batch), settings)
    ours = Variant(OURS_NAME, target.overridden(_shared_settings(options, batch)))
    if options.neighbours:
        return kept_rows(ours, settings, options.neighbours)
    return product_rows(ours, settings)


def _start_rows(variant: Variant, settings: Settings) -> list[Measurement]:
    """Seconds from `run` to the first training step and of its stages, in fresh processes; of a compilation apart."""
    trial, threads = dataclasses.replace(variant.target.trial, device=settings.device.type), torch.get_num_threads()
    if not trial.data:
        raise UserError(f"--what start: expected a row of a suite, which has a data set, got {variant.target.name}")
    job = job_of(variant.target, settings.device)
    details = {**timing.describe_variant(variant, job, settings), "state": start.WARM}
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        write_config(dataclasses.replace(trial, threads=threads), Path(folder))
        found = [start.started(Path(folder), threads, list(settings.plugins)) for _ in range(start.ROUNDS + 1)][1:]
    details |= dataclasses.asdict(watch.stop())
    together = [{stage: one[start.RUN][stage] + one[start.TRIAL][stage] for stage in start.STAGES} for one in found]
    values = {"start": [sum(one.values()) for one in together]}
    values |= {f"start_{stage.replace(' ', '_')}": [one[stage] for one in together] for stage in start.STAGES}
    rows = [_seconds_row(name, spread(seconds), details) for name, seconds in values.items()]
    if settings.device.type == "cpu" and (once := library.seconds_to_build()) is not None:
        rows.append(Measurement("start_compilation", once, "s, once a machine", False, 1, details=details))
    return rows


def _seconds_row(name: str, found: Spread, details: dict[str, Any]) -> Measurement:
    """Seconds with their interquartile range."""
    return Measurement(name, found.median, "s", False, found.n, found.low, found.high, "IQR", details=details)


def _usual(options: argparse.Namespace, target: Target) -> tuple[str, ...]:
    """What is measured unless `--what` says it: the usual, the bound if K is given, and what the baseline can do."""
    if options.neighbours:
        return NEIGHBOURED
    names = [*USUAL, *(["iwae"] if options.iwae else [])]
    if options.vs == PLAIN_NAME:
        names += [name for name in verbs_of(target.trial, plain=True) if name != "iwae"]
    return tuple(dict.fromkeys(names))


def _variants(options: argparse.Namespace, target: Target, batch: int | None) -> list[Variant]:
    """The target under the command's overrides, and what it is compared with."""
    shared = _shared_settings(options, batch)
    ours = target.overridden(shared)
    if options.vs == PLAIN_NAME:
        return [Variant(OURS_NAME, ours), Variant(PLAIN_NAME, ours.overridden(options.vs_set), plain=True)]
    if not (options.vs or options.vs_set):
        return [Variant(OURS_NAME, ours)]
    other = _counterpart(options.vs, target).overridden(shared) if options.vs else ours
    name = " ".join([*([other.name] if options.vs else []), *options.vs_set])
    again = f"{name} again" if name == ours.name else name  # the same model twice: how large noise is
    return [Variant(ours.name, ours), Variant(again, other.overridden(options.vs_set))]


def _shared_settings(options: argparse.Namespace, batch: int | None) -> list[str]:
    """The command's overrides of every variant."""
    return [
        *options.set,
        *([f"training.batch_size={batch}"] if batch else []),
        *([f"training.precision={options.precision}"] if options.precision else []),
        *([f"training.compile={options.compile}"] if options.compile else []),
    ]


def _counterpart(name: str, target: Target) -> Target:
    """The model that `--vs name` means: the only one, or the row named as the target's.

    Raises:
        UserError: several rows, none of them of that name.
    """
    found = resolve(name)
    same = [one for one in found if one.row == target.row]
    if len(found) > 1 and len(same) != 1:
        raise UserError(f"--vs {name}: expected one model, got the rows {', '.join(str(one.row) for one in found)}")
    return found[0] if len(found) == 1 else same[0]
