"""Runs the steps in processes of their own, each within its limit, and writes the summary after each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.base.children import environment, last_words
from benchmarks.base.files import write_text_atomically
from benchmarks.gpu import findings, summary
from benchmarks.gpu.schedule import Step, groups, limit_of
from benchmarks.gpu.summary import Outcome, Run
from benchmarks.gpu.worker import Request

POLL_SECONDS = 0.1
MOST_STARTS = 12
"""Of one step: behind every case that ended its process another one goes on."""
LOG_LINES = 4
"""Of what a process printed last, kept where it ended by itself."""


class Child:
    """A step that runs, until its limit (seconds since the epoch)."""

    def __init__(self, step: Step, run: Run, until: float) -> None:
        self.step, self.run, self.until = step, run, until
        self.started, self.starts, self.crashed, self.stopped = time.time(), 0, "", ""
        self.path, self.log = run.out / f"{step.name}.json", run.out / f"{step.name}.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        request = Request(self.step.module, str(self.path), self.run.device, self.until)
        command = [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(dataclasses.asdict(request))]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(None), start_new_session=True
            )

    def goes_on(self) -> bool:
        """Look after the process: end it at its limit, go on behind a case that hung or ended it."""
        code = self.process.poll()
        if code is None:
            return self._in_time()
        self.kill()  # what it started and left behind
        if code == 0 or findings.read(self.path).get("finished"):
            return False
        if code == findings.BROKEN:  # the case has its row, and said why
            return self._start_again("left the GPU without an answer")
        return self._continue(f"ended its process: {last_words('', code)}{self._end_of_log()}")

    def _in_time(self) -> bool:
        """Whether neither the step nor its case has been going on for too long."""
        if time.time() > self.until:
            self.kill()
            self.stopped = f"killed at the step's limit, after {time.time() - self.started:.0f} s"
            self._settle_case(None, self.stopped)
            return False
        most, running = self.step.case_seconds, findings.read(self.path).get("running")
        if most is None or not running or time.time() - running["since"] < most:
            return True
        self.kill()
        return self._continue(f"hung: no end after {most:g} s")

    def _continue(self, why: str) -> bool:
        """Write down what the running case did, and start the rest anew if there is time."""
        if not self._settle_case(False, why):
            self.crashed = why
            return False
        return self._start_again(why)

    def _start_again(self, why: str) -> bool:
        """Whether there is time for the cases behind the one that ended the process; starts them."""
        if self.starts >= MOST_STARTS or self.until - time.time() < self.step.least:
            self.stopped = f"not started again behind a case that {why.splitlines()[0]}"
            return False
        self.process = self._start()
        return True

    def _settle_case(self, passed: bool | None, why: str) -> bool:
        """Give the case that was running its row; whether there was one."""
        found = findings.read(self.path)
        running = found.get("running")
        if not running:
            return False
        seconds = round(time.time() - running["since"], 3)
        found["rows"].append({"case": running["case"], "passed": passed, "message": why, "seconds": seconds})
        found["running"] = None
        write_text_atomically(self.path, json.dumps(found, indent=1) + "\n")
        return True

    def _end_of_log(self) -> str:
        """The last lines that the process printed, each on a line of its own."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            return "".join(f"\n{line[: findings.LINE]}" for line in lines)
        return ""

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def outcome(self) -> Outcome:
        """How it went."""
        seconds, limit = time.time() - self.started, self.until - self.started
        return summary.outcome_of(
            self.step.name, findings.read(self.path), seconds, limit, self.crashed or self.stopped, bool(self.crashed)
        )


def run_steps(steps: Sequence[Step], out: Path, device: str, minutes: float) -> Run:
    """Run `steps` within `minutes`; each one's findings lie in `out`, with a summary of all.

    Neighbours that time nothing run at the same time on a GPU. A group whose share of the time is below what it needs
    is left out. On Ctrl-C and SIGTERM what runs is ended and the summary
    written.
    """
    run = Run(out, device, minutes, time.time())
    for step in steps:  # of an earlier call
        for kind in ("json", "log"):
            (out / f"{step.name}.{kind}").unlink(missing_ok=True)
    run.write()
    waiting = groups(steps, together=device != "cpu")
    try:
        with _ended_in_order():
            while waiting:
                limit = limit_of(waiting, run.left())
                _run_group(waiting.pop(0), run, limit)
                run.write()
    except KeyboardInterrupt:
        run.interrupted = True
        run.outcomes += [summary.left_out(step.name, "interrupted") for step in steps if not run.has(step.name)]
    run.seconds = time.time() - run.started
    run.write()
    return run


def _run_group(group: Sequence[Step], run: Run, limit: float) -> None:
    """Run steps side by side and add their outcomes."""
    until = time.time() + limit
    started = [step for step in group if step.least <= limit]
    for step in group:
        if step not in started:
            run.outcomes.append(summary.left_out(step.name, f"{limit:.0f} s left for it, {step.least:g} needed"))
    running = [Child(step, run, until) for step in started]
    try:
        while running:
            for child in [child for child in running if not child.goes_on()]:
                running.remove(child)
                run.outcomes.append(child.outcome())
                print(run.outcomes[-1].line(), file=sys.stderr, flush=True)
                run.write()
            time.sleep(POLL_SECONDS)
    finally:
        for child in running:
            child.kill()
            child.stopped = "interrupted"
            run.outcomes.append(child.outcome())


def default_out(device: str) -> Path:
    """`results/gpu/` with the device's name; of a dry run a folder that git ignores."""
    if device == "cpu":
        return Path("results/local/gpu")
    import torch

    return Path("results/gpu") / "-".join(torch.cuda.get_device_name().lower().split())


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Inside this block SIGTERM does as Ctrl-C, so that no step outlives the command."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
