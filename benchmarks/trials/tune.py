"""Learning rates and warm-ups of the KL tried for every row of a suite, scored on the validation split (verb `tune`).

Every row gets the same trials; one without a prior has no KL to warm up, so that only its rates differ. The log
(results/tuning/SUITE.csv) is appended trial by trial and a trial that stands in it is not run again. The test split is
never touched.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from benchmarks.base.children import OUT_OF_MEMORY
from benchmarks.base.errors import UserError
from benchmarks.base.plugins import import_plugin
from benchmarks.data import DataSet, load
from benchmarks.evaluation.checks import check
from benchmarks.machine.environment import choose_device, collect
from benchmarks.machine.process import flush_subnormals
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import Suite, TrialConfig
from benchmarks.training.cost import macs_per_image
from benchmarks.training.loop import train

TimedLine = tuple[dict[str, object], float]
"""A line of the log, and the seconds that its trial took."""
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
WARMUPS = (0.1, 0.3)
COLUMNS: tuple[str, ...] = (
    "suite", "row", "seed", "images", "batch_size", "optimizer", "learning_rate", "kl_warmup", "validation_elbo",
    "unit", "skipped", "training_seconds", "data_hash", "device", "threads", "torch", "commit", "dirty", "date",
)  # fmt: skip


def score_trial(trial: TrialConfig, data: DataSet) -> dict[str, object]:
    """One line of the log: the trial trained from scratch, scored on the validation split after its last step.

    The score is the ELBO of one draw in nats per image; for models without a prior, log p(x given code). It is empty
    for a training that was given up.
    """
    model = build_model(trial, data.image, choose_device(trial.device))
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, trial, data, Path(folder), lambda done, total, phase: None, lambda: False)
    environment = collect(choose_device(trial.device), trial.threads, trial.training.precision)
    validation = next(curve for curve in result.curves if curve.name == "validation elbo")
    score = validation.values[-1] if result.finished else None
    return {
        "suite": trial.suite,
        "row": trial.row,
        "seed": trial.seed,
        "images": result.images,
        "batch_size": trial.training.batch_size,
        "optimizer": trial.training.optimizer,
        "learning_rate": trial.training.learning_rate,
        "kl_warmup": trial.objective.kl_warmup,
        "validation_elbo": "" if score is None else round(score, 4),
        "unit": validation.unit,
        "skipped": result.skipped,
        "training_seconds": round(result.seconds, 1),
        "data_hash": data.content_hash[:12],
        **{key: getattr(environment, key) for key in COLUMNS if hasattr(environment, key)},
    }


def known_trials(log: Path) -> set[tuple[str, float, float]]:
    """(row, learning rate, warm-up of the KL) of the trials in the log.

    Raises:
        UserError: a log without these columns.
    """
    if _is_new(log):
        return set()
    with log.open(newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise UserError(f"{log}: expected the columns {', '.join(COLUMNS)}; give another --log, or move it away")
        try:
            return {(line["row"], float(line["learning_rate"]), float(line["kl_warmup"])) for line in lines}
        except (TypeError, ValueError) as error:
            raise UserError(f"{log}, line {lines.line_num}: expected a trial, got {error}; repair that line") from error


def _is_new(log: Path) -> bool:
    """Whether nothing stands in the log."""
    return not log.exists() or log.stat().st_size == 0


def append(log: Path, *lines: dict[str, object]) -> None:
    """Add lines to the log, with a head if it is new."""
    log.parent.mkdir(parents=True, exist_ok=True)
    new = _is_new(log)
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines)


def tune(suite: Suite, log: Path, jobs: int = 1, modules: Sequence[str] = ()) -> None:
    """Run the trials that the log lacks, `jobs` at a time, the dearest first; each is logged as it ends.

    Args:
        suite: whose rows are tuned.
        log: CSV file, created or continued.
        jobs: processes, each on its trial's own threads; 1 runs the trials in this process, in the rows' order.
        modules: plug-ins that the processes import.
    """
    data = _load_once(suite.data)
    check(suite.trials, data)
    known, todo = known_trials(log), []
    for trial in suite.trials:
        model = build_model(trial, data.image, torch.device("meta"))
        cost = macs_per_image(model, data.image) if jobs > 1 else 0
        for rate, warmup in settings(trial, model.has_prior):
            if (trial.row, rate, warmup) not in known:
                known_rate = {"learning_rate": rate, "back_offs": 0}  # none that a return has halved
                training = dataclasses.replace(trial.training, **known_rate, validations=1)
                objective = dataclasses.replace(trial.objective, kl_warmup=warmup)
                todo.append((cost, dataclasses.replace(trial, training=training, objective=objective)))
    todo.sort(key=lambda pair: -pair[0])
    trials = [trial for _, trial in todo]
    if trials:
        append(log)  # who cannot write it learns so before a trial is trained
    with contextlib.closing(_side_by_side(trials, jobs, modules) if jobs > 1 else _one_by_one(trials)) as lines:
        for line, seconds in lines:
            append(log, line)
            found = f"{line['validation_elbo'] or 'given up'} ({seconds:.0f} s)"
            rate, warmup = line["learning_rate"], line["kl_warmup"]
            print(f"{line['row']} rate {rate:g} warm-up {warmup:g}: {found}", file=sys.stderr)


def _one_by_one(trials: Iterable[TrialConfig]) -> Generator[TimedLine, None, None]:
    """The trials' lines, made in this process."""
    yield from map(timed_trial, trials)


def _side_by_side(trials: Iterable[TrialConfig], jobs: int, modules: Sequence[str]) -> Generator[TimedLine, None, None]:
    """The trials' lines as they come from processes of their own, which end with this generator.

    Raises:
        UserError: a process was killed.
    """
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, fresh, initializer=_prepare, initargs=(modules,))
    try:
        for one in as_completed([pool.submit(timed_trial, trial) for trial in trials]):
            yield one.result()
    except BrokenProcessPool as error:
        raise UserError(f"a trial's process was {OUT_OF_MEMORY}; the log goes on where it stopped") from error
    finally:  # after an interrupt nobody wants to wait for trials
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def _prepare(modules: Sequence[str]) -> None:
    """What a process does before its first trial; an interrupt is the parent's to handle, with which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for module in modules:
        import_plugin(module)


def _end_with_parent() -> None:
    """End this process when its parent has ended, however that happened."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def timed_trial(trial: TrialConfig) -> TimedLine:
    """A trial's line of the log, and the seconds it took; the data are read once a process."""
    start = time.perf_counter()
    flush_subnormals()
    torch.set_num_threads(trial.threads)
    return score_trial(trial, _load_once(trial.data)), time.perf_counter() - start


_load_once = functools.cache(load)


def settings(trial: TrialConfig, has_prior: bool) -> list[tuple[float, float]]:
    """(learning rate, warm-up of the KL) of a row's trials."""
    warmups = WARMUPS if has_prior else (trial.objective.kl_warmup,)
    return [(rate, warmup) for warmup in warmups for rate in LEARNING_RATES]
