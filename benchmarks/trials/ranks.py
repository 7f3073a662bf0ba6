"""The processes in which one model is trained on one machine: started by the first, which writes and reports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented

from benchmarks.base import children
from benchmarks.base.errors import FAILED, GOES_ON
from benchmarks.machine.environment import choose_device
from benchmarks.training.ranks import ALONE, Ranks

HERE = "127.0.0.1"
POLL_SECONDS = 0.1
LEAVE_SECONDS = 10.0
"""What ranks are given to end after the training, and a broken connection to be explained."""


def device_of(name: str, ranks: Ranks) -> torch.device:
    """The device of a rank: GPUs are taken in turns, beginning with the one that is named.

    Raises:
        UserError: a GPU that is not there.
    """
    device = choose_device(name)
    if device.type != "cuda" or ranks.count == 1:
        return device
    return torch.device("cuda", ((device.index or 0) + ranks.index) % torch.cuda.device_count())


def join(ranks: Ranks, port: int, device: torch.device) -> None:
    """Make the default process group, which meets at `port` of this machine.

    NCCL between GPUs, gloo between processors and where ranks share a GPU.
    """
    store = TCPStore(HERE, port, is_master=False)
    own_gpu = device.type == "cuda" and ranks.count <= torch.cuda.device_count()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if own_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.index, world_size=ranks.count)


class OtherRanks:
    """The processes of all ranks but the first, which end with this one; where one fails, this one ends too."""

    def __init__(self, folder: Path, count: int, flags: Sequence[str], threads: int) -> None:
        self.store = TCPStore(HERE, 0, count, is_master=True, wait_for_workers=False)
        command = [sys.executable, "-m", "benchmarks", "trial", str(folder), *flags]
        command += ["--ranks", str(count), "--port", str(self.store.port), "--with-parent"]
        self.processes = [
            subprocess.Popen(
                [*command, "--rank", str(index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=children.environment(threads),
            )
            for index in range(1, count)
        ]
        self.done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End this process where a rank has failed: nobody else would wake it from waiting for that one."""
        while not self.done.wait(POLL_SECONDS):
            for index, process in enumerate(self.processes, 1):
                if process.poll():
                    self._end(index, process.returncode)

    def _end(self, index: int, code: int) -> None:
        """Leave at once; files are whole or absent. Of a rank that was killed a line says so, others have said why."""
        self.kill()
        if code < 0 or code in children.KILLED:
            said = children.last_words("", code)
            print(f"error: rank {index} of {len(self.processes) + 1} failed: {said}", file=sys.stderr, flush=True)
        passed_on = max(children.KILLED) if code in children.KILLED else code
        os._exit(passed_on if passed_on in (*children.KILLED, GOES_ON) else FAILED)

    def kill(self) -> None:
        """End all of them."""
        for process in self.processes:
            process.kill()
            process.communicate()

    def leave(self) -> None:
        """Wait for them after the training, and end those that do not in time."""
        self.done.set()
        end = time.monotonic() + LEAVE_SECONDS
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        self.kill()


@contextlib.contextmanager
def shared_training(folder: Path, count: int, flags: Sequence[str], name: str, threads: int) -> Iterator[Ranks]:
    """Inside this block, `count` ranks train the trial of `folder` on devices of that name; this is the first.

    `flags` are those of `trial` that the others are started with.
    """
    if count == 1:
        yield ALONE
        return
    first, others = Ranks(0, count), OtherRanks(folder, count, flags, threads)
    try:
        join(first, others.store.port, device_of(name, first))
        yield first
        dist.destroy_process_group()
        others.leave()
    except RuntimeError:  # a connection that broke; whoever watches the others knows why
        time.sleep(LEAVE_SECONDS)
        raise
    finally:
        others.done.set()
        others.kill()
