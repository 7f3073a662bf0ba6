"""Single operations: what is counted and compared. No clock decides any of these tests."""

import csv
import io
import json

import pytest
import torch
from tiny_run import run_here
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.operations.named import flops_of, kind_of
from benchmarks.speed.operations.sides import BACKWARD, COMPILED, FORWARD, KEPT, OURS, STEP, STOCK, prepared
from benchmarks.speed.operations.table import (
    OperationRow,
    OperationTable,
    Share,
    limit_of,
    operations_markdown,
    over_others,
)
from benchmarks.speed.operations.traced import ADAMAX, EVALUATION, TRAINING, operations_of
from benchmarks.speed.spread import Spread
from benchmarks.speed.target import resolve
from kernels.cpu import library

NOISY = ("gaussian_sample_kl", "gaussian_sample")
CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # float32 sums of a few hundred terms in another order
TARGETS = ("nvae-tiny", "vdvae-tiny")

pytestmark = pytest.mark.skipif(library.library() is None, reason="needs the C kernels")


@pytest.fixture(scope="module", params=TARGETS)
def counts(request):
    """The operations of a tiny model at a batch of two, by phase."""
    return operations_of(resolve(request.param)[0].overridden(["training.batch_size=2"]))


def compared(counts):
    return [(one, phase == TRAINING) for phase, found in counts.items() for one in found if one.name not in NOISY]


def test_each_group_draws_once_a_pass(counts):
    draws = {phase: {} for phase in counts}
    for phase, found in counts.items():
        for operation, count in found.items():
            draws[phase][operation.name] = draws[phase].get(operation.name, 0) + count
    groups = draws[TRAINING]["gaussian_sample_kl"]
    assert groups > 1
    assert draws[EVALUATION]["gaussian_sample_kl"] == draws[EVALUATION]["gaussian_sample"] == groups
    assert "run_packed" not in draws[TRAINING]
    assert "residual_cell" not in draws[EVALUATION]


def test_sides_compute_the_same(counts):
    for operation, gradients in compared(counts):
        ours, stock = (prepared(operation, side, gradients) for side in (OURS, STOCK))
        for mine, other in zip(ours.outputs, stock.outputs, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE)
        for mine, other in zip(ours.gradients, stock.gradients, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE)
        assert set(ours.calls) == set(stock.calls)


def test_calls_can_be_repeated(counts):
    for operation in counts[TRAINING]:
        found = prepared(operation, OURS, gradients=True)
        assert set(found.calls) in ({KEPT, BACKWARD}, {FORWARD}, {STEP})
        for call in found.calls.values():
            call()
            call()


def test_products_are_those_that_torch_counts(counts):
    for operation, gradients in compared(counts):
        with FlopCounterMode(display=False) as counter:
            found = prepared(operation, STOCK, gradients=False)
        own = flops_of(operation, FORWARD)
        if kind_of(operation) in ("activation and convolution", "cell of convolutions"):
            assert own == counter.get_total_flops(), operation
            assert own > 0
        assert found.bytes_of(FORWARD) > 0


def spread(value):
    return Spread(value, value, value, 8)


def row(direction, ours, stock, compiled, count=2):
    sides = (spread(ours), spread(stock), None if compiled is None else spread(compiled))
    place = ("tiny", 2, 1, TRAINING, "cell", "2x3", direction, count)
    return OperationRow(*place, *sides, spread(stock / ours), flops=2e9, bytes=4e6, limit=0.5)


def test_the_better_of_the_others_is_one_for_all_directions():
    rows = [row(KEPT, 1.0, 2.0, 1.2), row(BACKWARD, 3.0, 3.0, 4.8)]
    assert over_others(rows) == pytest.approx(5.0 / 4.0)
    assert over_others([row(KEPT, 1.0, 2.0, 1.2), row(BACKWARD, 3.0, 3.0, None)]) == pytest.approx(5.0 / 4.0)
    assert over_others([]) is None


def test_lost_time_is_that_beyond_the_limit():
    one = row(KEPT, 2.0, 2.0, None, count=3)
    assert (one.lost, one.gflops, one.gb_per_s) == (4.5, 1.0, 2e-3)
    limits = {"gemm_gflops": 100.0, "copy_gb_per_s": 10.0}
    assert limit_of(2e11, 10, limits) == pytest.approx(2.0)
    assert limit_of(2.0, 40_000_000_000, limits) == pytest.approx(4.0)


@pytest.mark.parametrize(("stock", "said"), [(1.29, "goes"), (1.31, "kept")])
def test_what_is_not_worth_its_lines_goes(stock, said):
    environment = {"command": "x", "device_name": "y", "cores": 2, "instruction_set": "z", "torch": "2", "date": "d"}
    share = Share("tiny", 2, 1, TRAINING, "cell", 1, 0.5, 1.0)
    table = OperationTable(environment, [], compiled=False, rows=[row(KEPT, 1.0, stock, None)], shares=[share])
    line = next(line for line in operations_markdown(table).splitlines() if line.startswith("| tiny"))
    assert line.rstrip(" |").endswith(said)


ROWS = """
[likelihood]
name = "bernoulli"
[models.mlp]
name = "vae"
hidden = [8]
latent_size = 2
"""


@pytest.mark.usefixtures("hasty")
def test_the_files_hold_every_row(tmp_path):
    (tmp_path / "rows.toml").write_text(ROWS)
    target = str(tmp_path / "rows.toml" / "mlp")
    words = ("--suite", "operations", "--models", target, "--batch", "2", "--seconds", "0.001", "--most", "1")
    said = run_here("throughput", *words, "--out", str(tmp_path))
    assert said.returncode == 0, said.stderr
    document = json.loads((tmp_path / "operations.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "operations.csv").read_text())))
    assert (tmp_path / "operations.md").read_text() == said.stdout
    assert {one["kind"] for one in rows} >= {"first linear layer", "Bernoulli", "Gaussian draw and KL", "Gaussian draw"}
    assert [one["kind"] for one in rows] == [one["kind"] for one in document["rows"]]
    assert {one["direction"] for one in rows} >= {FORWARD, KEPT, BACKWARD}
    for phase in (TRAINING, EVALUATION):
        assert sum(one["of_phase"] for one in document["kinds"] if one["phase"] == phase) == pytest.approx(1)
    assert all(
        one["limit"] > 0 and one["ours_median"] > 0 and one["compiled_median"] is None for one in document["rows"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--models", "nvae-tinny"), "did you mean 'nvae-tiny'"),
        (("--models", "quick"), "name a row, quick/ROW"),
        (("--compile", "graph"), "expected on or off"),
        (("--vs", "baseline"), "--vs does not go with --suite operations"),
        (("--device", "cuda"), "profile times the kernels of a GPU"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, said, tmp_path):
    found = run_here("throughput", "--suite", "operations", *words, "--out", str(tmp_path / "out"))
    assert found.returncode == 2
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_compiled_side_computes_the_same(counts):
    for operation, gradients in compared(counts):
        if operation.name in (ADAMAX, "spectral_norms"):
            continue
        ours, compiled = (prepared(operation, side, gradients) for side in (OURS, COMPILED))
        for mine, other in zip(ours.outputs, compiled.outputs, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE)
        for mine, other in zip(ours.gradients, compiled.gradients, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE)
