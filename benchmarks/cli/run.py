"""The verb `run`: a suite from plan to table."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.base.checked import bounds
from benchmarks.base.checked.arguments import real
from benchmarks.base.checked.names import as_component
from benchmarks.base.errors import FAILED, INTERRUPTED, UserError
from benchmarks.base.signals import on_stop
from benchmarks.cli.checkpoints import inception_fields, say_what_was_read
from benchmarks.data.registry import data_names
from benchmarks.machine.environment import (
    bfloat16_by_default,
    choose_device,
    device_elsewhere,
    note_missing_kernels,
)
from benchmarks.machine.launcher import Launch, launch
from benchmarks.records.record import load_records, run_folders
from benchmarks.suites.config import Suite, build_suite, read_suite, table_at, with_overrides
from benchmarks.suites.overrides import apply_overrides
from benchmarks.trials.claims import listed_run
from benchmarks.trials.executors import paper
from benchmarks.trials.executors.choice import LOCAL, Wanted, executor_of
from benchmarks.trials.processes import Outcome, default_jobs, prepare_folder
from benchmarks.trials.schedule import Plan, plan, schedule_rows
from benchmarks.trials.watching.display import SaidLines
from benchmarks.trials.watching.progress import progress
from benchmarks.trials.watching.trackers import trackers
from benchmarks.trials.watching.tracking import Tracking
from models.registry import MODELS

NO_BUDGET = {"seconds": None, "cpu_seconds": None}
"""Training fields that count before epochs and images."""
BUDGETS = {"seconds": bounds.SECONDS, "cpu_seconds": bounds.SECONDS, "images": bounds.IMAGES}
"""What --budget may be counted in."""


def suite_of(options: argparse.Namespace) -> Suite:
    """The suite that `run`'s options ask for."""
    name, table = read_suite(options.suite)
    rows = list(options.models) if options.models else None
    apply_overrides(table, options.set, rows)
    for key in ("data", "seeds"):
        if getattr(options, key) is not None:
            table[key] = getattr(options, key)
    if options.inception_weights is not None:
        table["evaluation"] = {**table_at(table, "evaluation"), **inception_fields(options.inception_weights)}
    device = choose_device(options.device) if options.executor == "local" else device_elsewhere(options.device)
    if bfloat16_by_default(device):
        _prefer_bfloat16(table)
    without = _set_latent_size(table, options.latent_size) if options.latent_size is not None else []
    suite = build_suite(name, table, rows)
    if without:
        print(f"--latent-size leaves {', '.join(without)} as they are (see latent_channels)", file=sys.stderr)
    suite = with_overrides(suite, device=str(device), threads=options.threads, training=_length(options))
    _refuse_processor_time_on_a_gpu(suite)
    return suite


def _refuse_processor_time_on_a_gpu(suite: Suite) -> None:
    if any(trial.training.cpu_seconds is not None and trial.device.startswith("cuda") for trial in suite.trials):
        raise UserError("cpu_seconds: expected --device cpu, got a GPU, whose work the processor's time leaves out")


def _prefer_bfloat16(table: dict[str, Any]) -> None:
    """Train in bfloat16 what does not give its own precision."""
    table["training"] = {"precision": "bfloat16", **table_at(table, "training")}


def _set_latent_size(table: dict[str, Any], size: int) -> list[str]:
    """Set `latent_size` in every row whose model has that field; returns the rows that have none."""
    without = []
    for row in table_at(table, "models"):
        fields = table_at(table["models"], row)
        entry = MODELS.get(str(fields.get("name", row)))
        if entry is not None and "latent_size" in {f.name for f in dataclasses.fields(entry.config)}:
            fields["latent_size"] = size
        else:
            without.append(row)
    return without


def _length(options: argparse.Namespace) -> dict[str, Any]:
    """Training fields set by --epochs and --budget."""
    if options.epochs is not None and options.budget is not None:
        raise UserError("--epochs and --budget both set the training length; give one of them")
    if options.epochs is not None:
        return NO_BUDGET | {"epochs": options.epochs}
    if options.budget is None:
        return {}
    key, _, text = options.budget.partition("=")
    if key not in BUDGETS:
        raise UserError(f"--budget: expected seconds=N, cpu_seconds=N or images=N, got '{options.budget}'")
    try:
        value = real(BUDGETS[key])(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--budget {key}: {error}") from error
    if key == "images":
        return NO_BUDGET | {"images": int(value), "epochs": None}
    return NO_BUDGET | {key: value}


def ranks_of(wanted: int | None, started: Launch, suite: Suite) -> int:
    """Processes that train one model together: as many as are `wanted`, or as torchrun started.

    Raises:
        UserError: both, and they differ; or a batch that holds no image for each.
    """
    if wanted is not None and started.count not in (1, wanted):
        raise UserError(f"--ranks {wanted}: torchrun has started {started.count}; give one of the two")
    ranks = wanted or started.count
    batch = min(trial.training.batch_size for trial in suite.trials)
    if batch < ranks:
        raise UserError(f"training.batch_size: expected an image at least for each of {ranks} ranks, got {batch}")
    if ranks > 1 and not torch.distributed.is_available():
        raise UserError(f"--ranks {ranks}: torch {torch.__version__} was built without torch.distributed; use 1")
    return ranks


def run(options: argparse.Namespace) -> int:
    """Train, score and report a suite; the table is the last thing on stdout.

    Of several processes of torchrun the first does so, and starts those of a trial itself; the others have no part.
    """
    started = launch()
    if started.index > 0:
        return 0
    stderr = sys.stderr or io.StringIO()  # None where it was closed from the start
    said = contextlib.redirect_stderr(SaidLines(stderr)) if options.log == "json" else contextlib.nullcontext()
    with said:
        return _run(options, started, stderr)


def _run(options: argparse.Namespace, started: Launch, stderr: TextIO) -> int:
    """What `run` does, its progress on the stream of that name; returns the highest exit code of its data sets."""
    parts, codes = _by_data(options), list[int]()
    if options.dry_run and options.executor != LOCAL:
        return _on_paper(parts, started)
    for part in parts:
        codes.append(_run_on_one(part, started, stderr))
        if codes[-1] == INTERRUPTED:
            break
    return max(codes)


def _by_data(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The options for each data set of --data; of several each has a folder of its own in --out."""
    found = data_names(options.data or "")
    if len(found) < 2:
        return [options]
    out = Path(options.out or f"results/local/{read_suite(options.suite)[0]}")
    return [
        argparse.Namespace(**(vars(options) | {"data": name, "out": str(out / as_component(name))})) for name in found
    ]


def _planned(options: argparse.Namespace, started: Launch, *, to_run: bool) -> tuple[Plan, Wanted]:
    """The plan of one data set and the executor that is wanted for it."""
    suite = suite_of(options)
    ranks = ranks_of(options.ranks, started, suite)
    wanted = _wanted(options, ranks)
    out = Path(options.out or f"results/local/{suite.name}")
    return plan(suite, out, tuple(options.plugin), to_run=to_run), wanted


def _on_paper(parts: Sequence[argparse.Namespace], started: Launch) -> int:
    """Print what the plans of all data sets take on a cluster."""
    found = list[paper.PaperPlan]()
    for part in parts:
        planned, wanted = _planned(part, started, to_run=False)
        _say_what_is_missing(planned)
        found.append(paper.paper_plan(planned, wanted))
    as_json = json.dumps([dataclasses.asdict(one) for one in found], indent=1)
    print(as_json if parts[0].json else paper.shown(found))
    return 0


def _run_on_one(options: argparse.Namespace, started: Launch, stderr: TextIO) -> int:
    """What `run` does on one data set."""
    if options.dry_run:
        planned, wanted = _planned(options, started, to_run=False)
        return _dry_run(planned, options.json, wanted.ranks)
    asked = trackers(options.tensorboard, options.track)
    planned, wanted = _planned(options, started, to_run=True)
    suite, out = planned.suite, planned.out
    with contextlib.redirect_stdout(sys.stderr):
        executor = executor_of(wanted, out)
    prepare_folder(out)
    say_what_was_read(planned.data.name, planned.data.note)
    if wanted.name == LOCAL:
        note_missing_kernels(choose_device(suite.trials[0].device))
    if hint := _graph_hint(planned):
        print(hint, file=sys.stderr)
    on_stop(_interrupt)
    with listed_run(out, [one.folder.name for one in planned.trials]):
        display = progress(planned, executor.at_once(planned), options.log, stderr)
        with contextlib.redirect_stdout(sys.stderr):  # packages that track print, and stdout is the table's
            outcome = executor.execute(planned, [*(Tracking(one, planned) for one in asked), display])
        _print_result(out, options.json, pages=not outcome.interrupted)  # who is asked to leave draws no figures
    return _exit_code(outcome)


def _wanted(options: argparse.Namespace, ranks: int) -> Wanted:
    """The executor that the options ask for.

    Raises:
        UserError: it knows nothing of what is asked.
    """
    wanted = Wanted(options.executor, options.jobs, ranks, options.hours, tuple(options.request))
    wanted.check()
    if wanted.name != LOCAL and (options.tensorboard or options.track):
        raise UserError(
            f"--tensorboard, --track: expected with --executor local, got {wanted.name}, whose trials report twice a "
            "minute; leave it out"
        )
    return wanted


def _graph_hint(planned: Plan) -> str:
    """What trains faster on a GPU, if anything that is still to be trained there launches its kernels one by one."""
    slow = [one.trial.row for one in planned.trials if one.work == "train" and one.trial.training.compile == "off"]
    if not slow or planned.suite.trials[0].device == "cpu":
        return ""
    return (
        f"note: {', '.join(dict.fromkeys(slow))}: steps are launched kernel by kernel, for which a GPU waits; "
        "--set training.compile=graph replays them as CUDA graphs"
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _print_result(out: Path, as_json: bool, pages: bool) -> None:
    if not run_folders(out):  # interrupted before the first trial had anything to say
        return
    from benchmarks.cli.reports import shown, write_report  # imports pandas, which trials need not wait for

    if not as_json:
        write_report(out, shown, pages)
        return
    write_report(out, pages=pages)
    print(json.dumps([dataclasses.asdict(record) for record in load_records(out)], indent=1))


def _exit_code(outcome: Outcome) -> int:
    for line in outcome.failed:
        print(f"error: {line}", file=sys.stderr)
    if outcome.interrupted:
        print("interrupted: what is done is in the table; the same command continues", file=sys.stderr)
        return INTERRUPTED
    if outcome.failed:
        return 2 if outcome.user_error else FAILED
    return 0


def _say_what_is_missing(planned: Plan) -> None:
    say_what_was_read(planned.data.name, planned.data.note)
    for line in planned.refused:
        print(f"refused: {line}", file=sys.stderr)
    for line in planned.missing:
        print(f"missing, without it no row is trained: {line}", file=sys.stderr)


def _dry_run(planned: Plan, as_json: bool, ranks: int) -> int:
    _say_what_is_missing(planned)
    rows = schedule_rows(planned)
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return 0
    print(f"{planned.suite.title}: {planned.data.name}, {len(planned.data.train):,} training images, out {planned.out}")
    width = max(14, *(len(row.row) for row in rows))
    for row in rows:
        print(
            f"  {row.row:{width}} seed {row.seed}  {row.parameters:>11,} parameters  {row.latents:>7,} latents  "
            f"{row.macs_per_image / 1e6:8.1f} M MACs/image  about {row.estimated_training_seconds:6.0f} s training  "
            f"{row.estimated_memory_mib:>8,.0f} MiB  {row.status}"
        )
    total = sum(row.estimated_training_seconds for row in rows)
    jobs = default_jobs(planned.suite, ranks)
    print(f"about {total / jobs:.0f} s of training with {jobs} trials at a time; evaluation and throughput come on top")
    return 0
