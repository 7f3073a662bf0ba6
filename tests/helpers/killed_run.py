"""Kills a tiny trial at random moments, again and again, and compares what comes of it with one that was left alone.

    PYTHONPATH=.:tests/helpers python -m killed_run --kills 40 --seed 1 --report

The trial and its report run in a fork of this process, which has imported everything, so that a kill costs no start.
State and finished parts are written at every step and batch. Prints, a line a kill, the moment, what it hit and the
last phase that was heard of; exits with 1 where the record's values, the weights' hash or the table differ, or where a
file is left that no run of its own leaves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.metrics import extractors, sample_quality  # noqa: F401  (so that a fork need not)
from benchmarks.records.record import load_record, save_run
from benchmarks.report.page import build_report
from benchmarks.report.pictures import charts, figures  # noqa: F401
from benchmarks.storage import parts
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import TrialConfig, build_suite
from benchmarks.trials import trial as trials
from benchmarks.trials.claims import claim

FOLDER = "nvae-seed0-0123456789ab"
PHASES = ("start", "train", "likelihood", "reconstruction", "samples", "report")
OF_THE_MACHINE = ("peak_memory",)
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


def tiny(folder: Path) -> TrialConfig:
    """The trial, on noise of the size of MNIST."""
    rng = np.random.default_rng(0)
    sizes = {"train": 64, "validation": 20, "test": 40}
    images: Any = {name: rng.integers(0, 256, (n, 28, 28), np.uint8) for name, n in sizes.items()}
    np.savez(folder / "data.npz", **images)
    table = {"data": f"npz:{folder / 'data.npz'}", "likelihood": {"name": "bernoulli"}, "models": {"nvae": MODEL}}
    return build_suite("killed", table | {"training": TRAINING, "evaluation": EVALUATION}).trials[0]


def work(out: Path, config: TrialConfig, report: bool) -> None:
    """What a run does with its one trial, from the claim to the record, or to tables and figures."""
    held = claim(out / FOLDER, print)
    assert held is not None
    write_config(config, out / FOLDER)
    save_run(out, [FOLDER])
    trials.PROGRESS_SECONDS, parts.KEPT_SECONDS = 0.0, -1.0
    record = out / FOLDER / "record.json"
    if record.exists() and load_record(out / FOLDER).status == "done":
        trials.tidy(out / FOLDER)
    else:
        trials.run_trial(out / FOLDER)
    held.release()
    if report:
        trials.Reporter()(0, 1, "report")
        build_report(out)


def forked(call: Callable[[], None], log: Path) -> int:
    """The process id of a fork that calls `call`, its output in `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
        os.dup2(1, 2)
        call()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def phase(log: Path) -> str:
    """The last phase that the log tells of."""
    found = "start"
    for line in log.read_text().splitlines():
        try:
            found = json.loads(line)["phase"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def result(out: Path) -> dict[str, Any]:
    """What must not depend on kills: values, curves, weights and table; and the names of all files."""
    record = load_record(out / FOLDER)
    assert record.status == "done", record
    weights = (out / FOLDER / "weights.safetensors").read_bytes()
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    with np.load(out / FOLDER / "per_image.npz") as arrays:
        images = {name: arrays[name].tolist() for name in arrays.files}
    return {
        "values": [m for m in record.measurements if m.metric not in OF_THE_MACHINE],
        "curves": record.curves,
        "groups": record.latent_groups,
        "steps": (record.steps, record.images_seen, record.skipped_steps, record.notes),
        "weights": hashlib.sha256(weights).hexdigest(),
        "images": images,
        "files": files,
    }


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [name for name in expected if found[name] != expected[name]]


def main() -> int:
    """Kill, continue, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="tables and figures as well")
    options = parser.parse_args()
    memory = Path("/dev/shm")  # a kill does not ask what the disk has, and the disk is slow
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        return killed(folder, options.kills, options.seed, options.report)


def killed(folder: Path, kills: int, seed: int, report: bool) -> int:
    """The exit code after so many kills."""
    config, log, rng = tiny(folder), folder / "log", random.Random(seed)
    whole, started = folder / "whole", time.monotonic()
    if os.waitstatus_to_exitcode(os.waitpid(forked(lambda: work(whole, config, report), log), 0)[1]):
        print(log.read_text())
        return 1
    seconds = time.monotonic() - started
    expected, bad, done, runs = result(whole), 0, 0, 0
    hit = dict.fromkeys(PHASES, 0)
    print(f"seed {seed}: a trial takes {seconds:.2f} s, weights {expected['weights'][:16]}", flush=True)
    while done < kills or (folder / f"run{runs}").exists():
        out, moment = folder / f"run{runs}", rng.uniform(0, 1.1 * seconds)
        pid = forked(lambda out=out: work(out, config, report), log)
        if done < kills and not _ends_within(pid, moment):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            done, where = done + 1, phase(log)
            hit[where] += 1
            print(f"kill {done} in run {runs} at {moment:.2f} s: {where}", flush=True)
            continue
        if done >= kills:
            _ends_within(pid, 60 + 20 * seconds)
        found = differing(result(out), expected)
        bad += bool(found)
        print(f"run {runs} came to its end: {'differs in ' + ', '.join(found) if found else 'the same'}", flush=True)
        runs += 1
    print(f"{done} kills ({', '.join(f'{name} {n}' for name, n in hit.items())}), {runs} runs, {bad} differ")
    return int(bool(bad))


def _ends_within(pid: int, seconds: float) -> bool:
    """Whether the process ends by itself in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


if __name__ == "__main__":
    sys.exit(main())
