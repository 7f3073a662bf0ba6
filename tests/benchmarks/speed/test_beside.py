"""Rates beside busy processes and beside a matrix product, under limited instructions. No clock decides these tests."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from tiny_run import run_here

from benchmarks.base.errors import UserError
from benchmarks.machine import instructions
from benchmarks.speed import clock
from benchmarks.speed.beside import ALONE, BESIDE, PRODUCT, Neighbours, kept_rows, product_rows
from benchmarks.speed.clock import seconds_of
from benchmarks.speed.target import preset_target
from benchmarks.speed.throughput import OURS_NAME, Settings, Variant
from kernels.cpu import library

TINY = Variant(OURS_NAME, preset_target("nvae-tiny").overridden(["training.batch_size=2"]))
HASTY = Settings(torch.device("cpu"), ("train", "sample"), seconds=1e-3)
WORKED = 0.05
"""CPU seconds after which a neighbour has worked."""

pytestmark = pytest.mark.usefixtures("hasty")


def values(rows):
    return {(row.metric, row.details["variant"]): row.value for row in rows}


def test_a_neighbour_works_when_it_is_told_to_and_ends_with_the_block():
    with Neighbours(1) as neighbours:
        (busy,) = neighbours.ids
        before = seconds_of(busy)
        with neighbours.awake():
            while seconds_of(busy) < before + WORKED:
                time.sleep(1e-3)
        rested = seconds_of(busy)
        time.sleep(4 * WORKED)
        assert seconds_of(busy) < rested + WORKED
    assert neighbours.processes[0].returncode is not None


def test_a_neighbour_ends_with_its_parent():
    process = Neighbours(1).processes[0]
    process.stdin.write("work\n")
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def test_what_is_kept_is_the_ratio_of_paired_turns(monkeypatch):
    told = []
    monkeypatch.setattr(Neighbours, "_tell", lambda self, what: told.append(what))
    found = values(kept_rows(TINY, HASTY, 1))
    for verb in HASTY.what:
        assert set(found) >= {
            (f"{verb}_throughput", ALONE),
            (f"{verb}_throughput", BESIDE),
            (f"{verb}_kept", OURS_NAME),
        }
        assert found[f"{verb}_kept", OURS_NAME] > 0
    assert told[0] == "rest"
    assert told[1:] == ["work", "rest"] * (len(told) // 2)
    assert len(told) >= 2 * 2 * clock.MIN_ROUNDS


def test_the_share_of_the_product_is_that_of_its_rate():
    rows = product_rows(TINY, HASTY)
    found, details = values(rows), rows[0].details
    assert details["macs_per_image"] > 0
    ours, product = found["train_gflops", OURS_NAME], found["train_gflops", PRODUCT]
    assert rows[-1].low / 3 < ours / product < 3 * rows[-1].high  # the median of ratios is not the ratio of medians


def test_flags_that_do_not_go_together_are_one_line():
    for words in (("--neighbours", "1", "--vs-set", "training.compile=off"), ("--suite", "speed", "--neighbours", "1")):
        said = run_here("throughput", *(() if "--suite" in words else ("nvae-tiny",)), *words)
        assert said.returncode == 2
        assert len(said.stderr.splitlines()) == 1
        assert "--neighbours" in said.stderr


# Instruction sets


@pytest.fixture
def processor(monkeypatch):
    """A processor with the given flags."""

    def made(flags):
        monkeypatch.setattr(library, "processor", lambda: flags)

    return made


def test_what_a_processor_lacks_is_refused(processor):
    processor("flags : sse2 avx avx2")
    assert instructions.available() == ["avx2"]
    with pytest.raises(UserError, match=r"\(native, avx2\)"):
        instructions.limits_of("avx512")
    said = run_here("throughput", "nvae-tiny", "--instructions", "avx512")
    assert (said.returncode, len(said.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("flags", "ours", "torchs", "said"),
    [
        ("avx2 avx512f", "AVX2", "AVX2", "AVX2, by limit on an AVX-512 processor"),
        ("avx2 avx512f", "AVX-512", "AVX512", "AVX-512"),
        ("avx2 avx512f", "AVX2", "AVX512", "AVX2 in our kernels, AVX-512 in torch, by limit on an AVX-512 processor"),
        ("avx2", "AVX2", "AVX2", "AVX2"),
        ("avx2", None, "AVX2", "AVX2"),
        ("asimd", "NEON", "DEFAULT", "NEON"),
    ],
)
def test_what_is_recorded(flags, ours, torchs, said, processor, monkeypatch):
    processor(flags)
    monkeypatch.setattr(library, "instruction_set", lambda: ours)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: torchs)
    assert instructions.present() == said
    assert instructions.is_avx512() == (said == "AVX-512")


def test_a_limit_is_in_force_only_where_all_of_it_is(processor, monkeypatch):
    processor("avx2 avx512f")
    for name, value in instructions.LIMITS["avx2"].items():
        monkeypatch.delenv(name, raising=False)
    assert instructions.in_force("avx512")
    assert instructions.in_force("native")
    for name, value in instructions.LIMITS["avx2"].items():
        assert not instructions.in_force("avx2")
        monkeypatch.setenv(name, value)
    assert instructions.in_force("avx2")
    assert not instructions.in_force("avx512")


needs_avx2 = pytest.mark.skipif("avx2" not in instructions.available(), reason="needs a processor with AVX2")


def test_the_command_starts_again_under_the_limit(processor, monkeypatch):
    processor("avx2 avx512f")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    started = []

    def run(command, env, check):
        started.append((command, env))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(instructions.subprocess, "run", run)
    words = ["throughput", "nvae-tiny", "--instructions", "avx2"]
    assert run_here(*words).returncode == 3
    ((command, env),) = started
    assert command[1:] == ["-m", "benchmarks", *words]
    assert {name: env[name] for name in instructions.LIMITS["avx2"]} == instructions.LIMITS["avx2"]
    assert run_here(*words[:-1], "avx512").returncode == 3
    assert "ATEN_CPU_CAPABILITY" not in started[1][1]


@needs_avx2
def test_a_limit_holds_for_our_kernels_and_for_torch():
    code = "import torch; from benchmarks.machine.instructions import present; print(present())"
    env = {**os.environ, **instructions.LIMITS["avx2"]}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert said.startswith("AVX2")
    assert "AVX-512 in" not in said


@needs_avx2
@pytest.mark.slow
def test_what_is_measured_under_a_limit_says_so():
    words = ["nvae-tiny", "--what", "encode", "--batch", "2", "--seconds", "0.001", "--json", "--instructions", "avx2"]
    command = [sys.executable, "-m", "benchmarks", "throughput", *words]
    (row,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert row["details"]["instruction_set"].startswith("AVX2")
