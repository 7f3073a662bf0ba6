"""Kills a tiny trial in every phase, again and again, and compares what comes of it with one that was left alone.

    PYTHONPATH=.:tests/helpers python -m killed_run --kills 40 --seed 1 --report

From the claim of the trial to its figures all runs in a fork of this process, which has imported everything, so that a
kill costs no start. State and finished parts are written at every step and batch. A kill is aimed at the phase that was
hit least so far, at a random moment within one of its entries (`watched_phases`): the kernel ends the fork there.
Prints, a line a kill, its aim and what it hit; exits with 1 where the values of the record, the hash of the weights or
the images differ, or where a file is left that no run of its own leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from watched_phases import ELSEWHERE, NAMES, Moment, Watch

from benchmarks.cli.parser import run_command
from benchmarks.metrics import extractors, sample_quality  # noqa: F401  (so that a fork need not)
from benchmarks.records.catalogue import of_the_machine
from benchmarks.records.record import Measurement, load_record, save_run
from benchmarks.report import page
from benchmarks.report.pictures import charts, figures  # noqa: F401
from benchmarks.speed import clock
from benchmarks.storage import parts
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import Suite, build_suite
from benchmarks.trials import processes
from benchmarks.trials import trial as trials
from benchmarks.trials.claims import claim
from benchmarks.trials.schedule import plan
from benchmarks.trials.watching.events import Watchers
from kernels.cpu import library

TRAINING = {
    "images": 96,
    "batch_size": 8,
    "validations": 3,
    "ema": 0.9,
    "ema_batches": 2,
    "checkpoint_seconds": 1e-9,
    "learning_rate": 1e-2,
}
EVALUATION = {"iwae_samples": 3, "batch_size": 10, "extractor": "mnist-cnn-v1", "prior_batches": 1}
MODEL = {"groups_fine_to_coarse": [1, 1], "latent_channels": 2, "channels_encoder": 4, "channels_decoder": 4}


def tiny(folder: Path) -> Suite:
    """A suite of one trial, on noise of the size of MNIST."""
    rng = np.random.default_rng(0)
    sizes = {"train": 64, "validation": 20, "test": 40}
    images: Any = {name: rng.integers(0, 256, (n, 28, 28), np.uint8) for name, n in sizes.items()}
    np.savez(folder / "data.npz", **images)
    table = {"data": f"npz:{folder / 'data.npz'}", "likelihood": {"name": "bernoulli"}, "models": {"nvae": MODEL}}
    return build_suite("killed", table | {"training": TRAINING, "evaluation": EVALUATION})


def timed(checkpoint: Path, flags: list[str]) -> list[Measurement]:
    """The throughput of a checkpoint, measured briefly and in this process."""
    words = ["throughput", str(checkpoint), "--json", "--what", processes.TIMED, "--seconds", "0.001", *flags]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run_command(words)
    return [Measurement(**row) for row in json.loads(said.getvalue())]


def work(suite: Suite, out: Path, report: bool) -> None:
    """What a run does with its one trial, from the plan to the record and its throughput, and to tables and figures."""
    os.environ["XDG_CACHE_HOME"] = str(out.with_name(f"{out.name}-cache"))
    trials.PROGRESS_SECONDS, parts.KEPT_SECONDS = 0.0, -1.0
    planned = plan(suite, out)
    (one,) = planned.trials
    held = claim(one.folder, print)
    assert held is not None
    save_run(out, [one.folder.name])
    if one.work in processes.TO_RUN:
        write_config(one.trial, one.folder)
        trials.run_trial(one.folder)
    elif trials.is_untidy(one.folder):
        trials.tidy(one.folder)
    held.release()
    outcome = processes.Outcome()
    processes._measure_throughput(planned, Watchers(), outcome)
    assert not outcome.failed, outcome.failed
    if report:
        page.build_report(out)


def forked(call: Callable[[], None], log: Path) -> int:
    """How a fork that calls `call` ends, as `waitpid` has it; its output is in `log`."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
        os.dup2(1, 2)
        call()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def result(out: Path) -> dict[str, Any]:
    """What must not depend on kills: values, curves, weights and images; and the names of all files."""
    (folder,) = out.glob("*-seed0-*")
    record = load_record(folder)
    assert record.status == "done", record
    weights = (folder / "weights.safetensors").read_bytes()
    with np.load(folder / "per_image.npz") as arrays:
        images = {name: arrays[name].tolist() for name in arrays.files}
    return {
        "values": {m.metric: None if of_the_machine(m.metric) else m for m in record.measurements},
        "curves": record.curves,
        "groups": record.latent_groups,
        "steps": (record.steps, record.images_seen, record.skipped_steps, record.notes),
        "weights": hashlib.sha256(weights).hexdigest(),
        "images": images,
        "files": {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()},
    }


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [name for name in expected if found[name] != expected[name]]


class Kills:
    """Runs of one suite in `folder`, and what the kills among them hit."""

    def __init__(self, folder: Path, seed: int, report: bool) -> None:
        self.folder, self.report, self.rng, self.watch = folder, report, random.Random(seed), Watch()
        self.suite, self.log = tiny(folder), folder / "log"
        self.hit = {name: 0 for name in NAMES if report or name != "report"}
        start = time.monotonic()
        assert self.ended(folder / "whole", None) == 0, self.log.read_text()
        self.usual = {name: (self.watch.entries(name), self.watch.seconds(name)) for name in self.hit}
        self.usual[ELSEWHERE] = (1, time.monotonic() - start)
        self.expected = result(folder / "whole")

    def ended(self, out: Path, moment: Moment | None) -> int:
        """How a run into `out` ends that is killed at `moment`, if it comes to that."""

        def call() -> None:
            self.watch.begin()
            work(self.suite, out, self.report)

        self.watch.reset(moment)
        return forked(call, self.log)

    def aim(self) -> Moment:
        """A random moment in the phase that was hit least."""
        phase = min(self.hit, key=lambda name: (self.hit[name], self.rng.random()))
        entries, seconds = self.usual[phase]
        return Moment(phase, self.rng.randint(1, entries), self.rng.uniform(0, seconds))


def killed(folder: Path, kills: int, seed: int, report: bool) -> int:
    """The exit code after so many kills."""
    library.load()  # once for all forks
    processes.throughput_of = timed
    clock.MIN_ROUNDS = 2  # nothing is concluded from the clock
    runs = Kills(folder, seed, report)
    print(f"seed {seed}: a trial takes {runs.usual[ELSEWHERE][1]:.2f} s, weights {runs.expected['weights'][:16]}")
    bad, done, ended = 0, 0, 0
    while done < kills or (folder / f"run{ended}").exists():
        out, moment = folder / f"run{ended}", runs.aim() if done < kills else None
        status = runs.ended(out, moment)
        if moment is not None and os.WIFSIGNALED(status):
            done, where = done + 1, runs.watch.current
            runs.hit[where] += 1
            aimed = f"{1000 * moment.seconds:.2f} ms into {moment.phase} {moment.entry}"
            print(f"kill {done} in run {ended}, {aimed}: {where}", flush=True)
            continue
        found = differing(result(out), runs.expected) if status == 0 else [runs.log.read_text()]
        bad += bool(found)
        print(f"run {ended} came to its end: {'differs in ' + ', '.join(found) if found else 'the same'}", flush=True)
        ended += 1
    print(f"{done} kills ({', '.join(f'{name} {n}' for name, n in runs.hit.items())}), {ended} runs, {bad} differ")
    return int(bool(bad))


def main() -> int:
    """Kill, continue, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="tables and figures as well")
    options = parser.parse_args()
    memory = Path("/dev/shm")  # a kill does not ask what the disk has, and the disk is slow
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        return killed(Path(name), options.kills, options.seed, options.report)


if __name__ == "__main__":
    sys.exit(main())
