"""A tiny suite on noise, and commands run in this process, which saves a start of Python and torch each."""

import contextlib
import io
import json
import os
import signal
from dataclasses import dataclass

import numpy as np

from benchmarks.base.signals import STOPPING
from benchmarks.cli.parser import run_command

SUITE = """
title = "Tiny"
data = "npz:{data}"
[likelihood]
name = "bernoulli"
[training]
images = {images}
batch_size = 16
validations = 2
[evaluation]
iwae_samples = 2
batch_size = 20
{evaluation}
[models.ae]
channels = 4
[models.ae.likelihood]
name = "gaussian"
[models.vae]
channels = 4
latent_size = 3
"""


def write_suite(folder, images=64, evaluation=""):
    rng = np.random.default_rng(0)
    splits = {name: rng.integers(0, 256, (n, 28, 28), np.uint8) for name, n in (("train", 64), ("validation", 20))}
    np.savez(folder / "data.npz", test=rng.integers(0, 256, (40, 28, 28), np.uint8), **splits)
    text = SUITE.format(data=folder / "data.npz", images=images, evaluation=evaluation)
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*words, umask=0o022):
    """What `python -m benchmarks WORDS` does, its trials in processes of their own; handlers of signals are kept."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    before = os.umask(umask)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
            code = run_command([str(word) for word in words])
    finally:
        os.umask(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Said(code, out.getvalue(), error.getvalue())


def records(out):
    return {json.loads(p.read_text())["row"]: json.loads(p.read_text()) for p in out.glob("*/record.json")}


def modes(out):
    """The modes of everything that a run writes: record, config, weights, images, log, tables, pages, figures."""
    found = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert {"record.json", "config.json", "log.txt", "run.json", "table.md", "index.html"} <= set(found)
    return found
