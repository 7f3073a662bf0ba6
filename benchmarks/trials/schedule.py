"""Runs a suite: every trial in a process of its own, then throughput, then the report."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.base.errors import INTERRUPTED, UserError
from benchmarks.data import DataSet, load
from benchmarks.machine.environment import choose_device
from benchmarks.records.record import (
    RECORD,
    LatentGroupInfo,
    Measurement,
    RunRecord,
    load_record,
    save_record,
    save_run,
)
from benchmarks.storage.weights import build_model, read_config, record_head, write_config
from benchmarks.suites.config import Suite, TrialConfig
from benchmarks.training.cost import macs_per_image, parameter_count, training_memory
from benchmarks.training.loop import planned_steps, seconds_per_step
from kernels.backends import describe

TIMED = "train,encode,reconstruct,sample"
"""What the table shows of a trial's speed."""

LOG = "log.txt"
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, where it goes, and what is known of it before it runs."""

    trial: TrialConfig
    folder: Path
    parameters: int
    macs_per_image: int
    latents: tuple[LatentGroupInfo, ...]

    @property
    def name(self) -> str:
        """Row and seed, for messages."""
        return f"{self.trial.row} seed {self.trial.seed}"

    @property
    def record(self) -> RunRecord | None:
        """The trial's record, if an earlier run left one.

        Raises:
            UserError: a record that cannot be read.
        """
        try:
            return load_record(self.folder) if (self.folder / RECORD).exists() else None
        except ValueError as error:
            raise UserError(f"{error}; move that folder away to run the trial again") from error


@dataclass(frozen=True)
class Plan:
    """A suite made ready: its data is loaded, its models can be built, its folders are named."""

    suite: Suite
    data: DataSet
    trials: list[PlannedTrial]
    out: Path
    plugins: tuple[str, ...] = ()

    @property
    def plugin_flags(self) -> list[str]:
        """Command-line flags that hand the plugins on to a trial's process."""
        return [flag for plugin in self.plugins for flag in ("--plugin", plugin)]


@dataclass
class Outcome:
    """How a run ended."""

    failed: list[str] = field(default_factory=list)
    user_error: bool = False
    interrupted: bool = False


def plan(suite: Suite, out: Path, plugins: tuple[str, ...] = ()) -> Plan:
    """The suite's plan; raises UserError for whatever would stop it later."""
    data = load(suite.data)
    trials = []
    for trial in suite.trials:
        versions = f"torch {torch.__version__}, operations {describe(trial.device)}"
        model = build_model(trial, data.image, torch.device("cpu"))
        folder = out / f"{trial.row}-seed{trial.seed}-{trial.identity(data.content_hash, versions)}"
        latents = tuple(LatentGroupInfo(s.channels, s.height, s.width) for s in model.latent_shapes)
        macs = macs_per_image(model, data.image)
        trials.append(PlannedTrial(trial, folder, parameter_count(model), macs, latents))
    return Plan(suite, data, trials, out, plugins)


def estimated_seconds(planned: PlannedTrial, data: DataSet) -> float:
    """Training seconds expected of a trial, from a few measured steps on this machine now."""
    config = planned.trial.training
    if config.seconds is not None:
        return config.seconds
    threads = torch.get_num_threads()
    torch.set_num_threads(planned.trial.threads)
    try:
        model = build_model(planned.trial, data.image, choose_device(planned.trial.device))
        return seconds_per_step(model, planned.trial, data) * planned_steps(config, len(data.train))
    finally:
        torch.set_num_threads(threads)


def estimated_memory(planned: PlannedTrial, data: DataSet) -> float:
    """MiB that a training step of the trial needs, by `training_memory`."""
    model = build_model(planned.trial, data.image, torch.device("meta"))
    return training_memory(model, planned.trial.training) / 2**20


def prepare_folder(out: Path) -> None:
    """Create `out`, or say in one line why it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out}: expected a folder that can be written: {error.strerror}") from error


def default_jobs(suite: Suite) -> int:
    """Trials at a time: as many as the cores hold at the suite's threads on a CPU, one on a GPU."""
    if any(trial.device != "cpu" for trial in suite.trials):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(trial.threads for trial in suite.trials))


def execute(plan: Plan, jobs: int) -> Outcome:
    """Run all unfinished trials, `jobs` at a time, then measure throughput trial by trial on the quiet machine."""
    save_run(plan.out, [planned.folder.name for planned in plan.trials])
    todo = [p for p in plan.trials if (record := p.record) is None or record.status != "done"]
    todo.sort(key=lambda p: -p.macs_per_image * p.trial.training.images)
    for planned in todo:
        write_config(planned.trial, planned.folder)
    outcome = Outcome()
    with Bars() as bars:
        _run_jobs(todo, jobs, plan.plugin_flags, bars, outcome)
        if not outcome.interrupted:
            _measure_throughput(plan, bars, outcome)
    return outcome


def _run_jobs(todo: list[PlannedTrial], jobs: int, flags: list[str], bars: Bars, outcome: Outcome) -> None:
    """Keep up to `jobs` children going until all are done or the user interrupts."""
    waiting, running = list(todo), list[Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Child(waiting.pop(0), flags, bars))
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                _settle(child, outcome)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        outcome.interrupted = True
        print("stopping: each trial saves its state (give it a moment)", file=sys.stderr)
        for child in running:
            child.process.send_signal(signal.SIGINT)
        for child in running:
            child.process.wait()
            _settle(child, outcome)


def _settle(child: Child, outcome: Outcome) -> None:
    """Note how a child ended; a failed trial leaves a record that says so."""
    code = child.finish()
    if code in (0, INTERRUPTED):
        return
    reason = child.last_error() or f"exit code {code}"
    outcome.failed.append(f"{child.planned.name}: {reason} (log: {child.planned.folder / LOG})")
    outcome.user_error |= code == 2
    save_record(_failed_record(child.planned, reason), child.planned.folder)


def _failed_record(planned: PlannedTrial, reason: str) -> RunRecord:
    """The trial's record as far as it came, marked as failed."""
    trial, record = planned.trial, planned.record
    if record is not None:
        return dataclasses.replace(record, status="failed", error=reason)
    return RunRecord(
        **record_head(trial, planned.folder),
        data_hash="",
        status="failed",
        parameters=planned.parameters,
        macs_per_image=planned.macs_per_image,
        latent_groups=list(planned.latents),
        images_seen=0,
        steps=0,
        training_seconds=0.0,
        error=reason,
    )


class Child:
    """A trial's process: its progress goes to a bar, its messages to the trial's log."""

    def __init__(self, planned: PlannedTrial, flags: list[str], bars: Bars) -> None:
        self.planned = planned
        self.log = (planned.folder / LOG).open("w")
        environment = {**os.environ, "OMP_NUM_THREADS": str(planned.trial.threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "trial", str(planned.folder), *flags],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(bars,), daemon=True)
        self.reader.start()

    def _read(self, bars: Bars) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            bars.update(self.planned.name, event["phase"], event["done"], event["total"])

    def finish(self) -> int:
        """Wait for the reader, close the log; returns the exit code."""
        self.reader.join(timeout=5)
        self.log.close()
        return self.process.wait()

    def last_error(self) -> str:
        """The last line the trial wrote to its log."""
        lines = (self.planned.folder / LOG).read_text().strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else ""


class Bars:
    """Progress on stderr: one bar a phase of a trial on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.bars: dict[str, tqdm] = {}
        self.printed: dict[str, int] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exc: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def update(self, name: str, phase: str, done: int, total: int) -> None:
        """Show that `name` has done `done` of `total` in `phase`."""
        key = f"{name}: {phase}"
        with self.lock:
            if self.live:
                self._draw(key, done, total)
            elif (quarter := 4 * done // max(1, total)) > self.printed.get(key, 0):
                self.printed[key] = quarter
                print(f"{key} {100 * done // total} %", file=sys.stderr, flush=True)

    def _draw(self, key: str, done: int, total: int) -> None:
        if key not in self.bars:
            self.bars[key] = tqdm(desc=key, total=total, file=sys.stderr, dynamic_ncols=True, leave=False)
        self.bars[key].update(done - self.bars[key].n)
        if done >= total:
            self.bars.pop(key).close()


def _measure_throughput(plan: Plan, bars: Bars, outcome: Outcome) -> None:
    """Add throughput to every finished record that lacks it, one process at a time."""
    done = [p for p in plan.trials if (r := p.record) is not None and r.status == "done"]
    for index, planned in enumerate(done):
        record = planned.record
        assert record is not None
        if record.get("train_throughput") is None:
            try:
                save_record(record.with_measurements(throughput_of(planned.folder, plan.plugin_flags)), planned.folder)
            except UserError as error:
                outcome.failed.append(f"{planned.name}: throughput: {error}")
            except KeyboardInterrupt:
                outcome.interrupted = True
                return
        bars.update("all", "throughput", index + 1, len(done))


def throughput_of(checkpoint: Path, flags: list[str]) -> list[Measurement]:
    """Throughput of a checkpoint, measured in a fresh process.

    Raises:
        UserError: the process failed; carries its last line.
    """
    trial = read_config(checkpoint) if checkpoint.is_dir() else None
    threads = {"OMP_NUM_THREADS": str(trial.threads)} if trial else {}
    command = [sys.executable, "-m", "benchmarks", "throughput", str(checkpoint), "--json", "--what", TIMED, *flags]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise UserError(lines[-1].removeprefix("error: "))
    return [Measurement(**row) for row in json.loads(result.stdout)]


def plan_rows(
    plan: Plan, estimate: Callable[[PlannedTrial, DataSet], float] = estimated_seconds
) -> list[dict[str, object]]:
    """Rows of `--dry-run`: one a trial, with counts and an estimate of training time and memory."""
    rows: list[dict[str, object]] = []
    for planned in plan.trials:
        record = planned.record
        done = record is not None and record.status == "done"
        steps = None if planned.trial.training.seconds else planned_steps(planned.trial.training, len(plan.data.train))
        rows.append(
            {
                "row": planned.trial.row,
                "seed": planned.trial.seed,
                "model": planned.trial.model,
                "parameters": planned.parameters,
                "latents": sum(g.channels * g.height * g.width for g in planned.latents),
                "macs_per_image": planned.macs_per_image,
                "steps": steps,
                "images": None if steps is None else steps * planned.trial.training.batch_size,
                "estimated_training_seconds": 0.0 if done else estimate(planned, plan.data),
                "estimated_memory_mib": round(estimated_memory(planned, plan.data), 1),
                "status": "done" if done else "to run",
                "folder": planned.folder.name,
                "config": dataclasses.asdict(planned.trial),
            }
        )
    return rows
