"""The speed suite, from its file to its tables. No clock decides any of these tests."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hasty import hurry
from tiny_run import run_here

from benchmarks.base.errors import UserError
from benchmarks.records.record import Measurement
from benchmarks.report.speed import SpeedRow, SpeedTable, speed_csv, speed_json, speed_markdown
from benchmarks.speed import clock, plan, suite
from benchmarks.speed.target import resolve
from benchmarks.speed.throughput import PLAIN_NAME

HELPERS = Path(__file__).resolve().parents[2] / "helpers"
ROUNDING = 1e-9  # shares are float64 sums of a few terms
SUITE = """
title = "Tiny"
seconds = 0.001

[[case]]
label = "tiny"
target = "nvae-tiny"
batches = [2, 3]
draws = 2
aims = [
    { what = "train", goal = 2.0, stretch = 3.0 },
    { what = "iwae", goal = 2.5, stretch = 4.0 },
    { what = "memory", goal = 0.6, stretch = 0.4 },
]

[[case]]
label = "broken"
target = "nvae-tiny"
batches = [2]
set = ["model.latent_chanels=2"]
aims = [{ what = "train", goal = 2.0, stretch = 3.0 }]

[[case]]
label = "mlp"
target = "rows.toml"
row = "mlp"
batches = [4]
vs = "pythae"
pythae = "mlp"
rounds = 2
aims = [{ what = "loop", goal = 1.3, stretch = 1.5 }]
"""
ROWS = """
[likelihood]
name = "bernoulli"
[models.mlp]
name = "vae"
hidden = [8]
latent_size = 2
"""
OTHER_LOOP = """
import json, sys
import numpy as np
print("a word before the result")
images = np.load(sys.argv[1])
assert images.shape == (3600, 1, 28, 28) and images.dtype == np.uint8
print(json.dumps({"images_per_second": 1e-3, "versions": {"other": 1}}))
"""


@pytest.fixture(scope="module")
def speed_file(tmp_path_factory):
    """A small suite, with the file that it takes a model from."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tiny.toml").write_text(SUITE)
    (folder / "rows.toml").write_text(ROWS)
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def finished(speed_file):
    """The small suite run as on a machine without a compiler: exit code, what it printed, and its folder."""
    out, words = speed_file.parent / "out", ("--batch", "2,4", "--no-compiler", "--plugin", "hasty")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setenv("PYTHONPATH", str(HELPERS), prepend=os.pathsep)
        return run_here("throughput", "--suite", speed_file, *words, "--out", out), out


def test_the_suite_goes_on_after_a_failure_and_says_so(finished):
    result, _ = finished
    assert result.returncode == 1
    assert "did you mean 'latent_channels'" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_the_suites_files_hold_every_row(finished):
    result, out = finished
    document = json.loads((out / "speed.json").read_text())
    rows = list(csv.DictReader((out / "speed.csv").open()))
    assert (out / "speed.md").read_text() == result.stdout
    assert [(row["config"], row["what"]) for row in document["rows"]] == [
        ("tiny", "train"),
        ("tiny", "iwae"),
        ("tiny", "memory"),
        ("broken", "train"),
        ("mlp", "loop"),
    ]
    assert [row["what"] for row in rows] == [row["what"] for row in document["rows"]]
    assert set(rows[0]) == set(document["rows"][0])
    train, iwae, peak, broken, mlp = document["rows"]
    assert all(row["ours"] > 0 and row["other"] > 0 and row["ratio"] > 0 for row in (train, iwae, peak))
    assert (iwae["draws"], peak["unit"], train["rounds"] >= clock.MIN_ROUNDS) == (2, "MiB", True)
    assert train["gflops"] > 0
    assert broken["ours"] is None
    assert "needs --pythae" in mlp["note"]
    assert sum(document["breakdowns"][0]["shares"].values()) == pytest.approx(1, abs=ROUNDING)
    assert {"threads", "gemm_gflops", "convolution_gflops", "copy_gb_per_s"} == set(document["limits"][0])


def test_without_a_compiler_plain_kernels_are_timed_and_recorded(finished):
    document = json.loads((finished[1] / "speed.json").read_text())
    assert document["compiler"] is False
    assert document["rows"][0]["operations"] == "cpu, plain PyTorch kernels"


def test_no_compiler_is_found_where_none_should_be(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "c++")
    for compiler in (True, False):
        found = suite.Runner(plan.Choice(compiler=compiler), 1.0, tmp_path).environment(2)
        assert found["OMP_NUM_THREADS"] == "2"
        assert ("CXX" in found) == compiler
    assert not any(shutil.which(name, path=found["PATH"]) for name in ("cc", "gcc", "clang", "c++", "g++"))
    assert found["XDG_CACHE_HOME"] == str(tmp_path)


@pytest.mark.usefixtures("hasty")
def test_processes_of_another_environment_take_turns_with_ours(speed_file, tmp_path, monkeypatch):
    script, order = tmp_path / "loop.py", []
    script.write_text(OTHER_LOOP)
    monkeypatch.setattr(suite, "PYTHAE_LOOP", script)
    output = suite.Runner.output

    def watched(self, command, threads):
        order.append("theirs" if str(script) in command else "ours")
        ours = Measurement("loop_throughput", 1.0 + len(order), "images/s", True, details={"variant": "ours"})
        return output(self, command, threads) if order[-1] == "theirs" else json.dumps([dataclasses.asdict(ours)])

    monkeypatch.setattr(suite.Runner, "output", watched)
    choice = plan.Choice(models=("mlp",), pythae=sys.executable)
    done = suite.run(plan.read_speed_suite(str(speed_file)), choice, tmp_path / "out")
    (row,) = json.loads(done.json)["rows"]
    assert done.failed == []
    assert order == ["ours", "theirs", "theirs", "ours"]
    assert (row["rounds"], row["ours"], row["other"]) == (2, 3.5, 1e-3)  # of 2 and 5
    assert (row["verdict"], row["note"]) == ("stretch met", "other 1")


def test_the_shipped_suite_has_the_goals_of_its_configurations():
    shipped = plan.read_speed_suite("speed")
    for suite_file, avx512 in ((shipped, False), (plan.on_avx512(shipped), True)):
        goals = {(case.label, case.vs, aim.what, case.draws): aim.goal for case in suite_file.case for aim in case.aims}
        for model in ("nvae-mnist-small", "nvae-color-small"):
            train, sample = ((model, PLAIN_NAME, what, 1) for what in ("train", "sample"))
            assert goals[train] == goals[sample] == (3.0 if avx512 else 2.5)
            assert goals[model, PLAIN_NAME, "iwae", 1] == (2.5 if avx512 else 2.0)
            assert goals[model, PLAIN_NAME, "iwae", 100] == (5.0 if avx512 else 4.0)
            assert goals[model, PLAIN_NAME, "memory", 1] == 0.4
            assert goals[model, "product", "train", 1] == (0.5 if avx512 else 0.6)
            assert goals[model, "alone", "train", 1] == goals[model, "alone", "sample", 1] == 0.55
        assert goals["vae-mlp", "pythae", "loop", 1] == 1.5
    for case in shipped.case:
        assert resolve(case.target, [case.row] if case.row else None)[0].overridden(case.set)


SAID = {
    "alone": [
        ("train_throughput", "alone", 10.0, 9.0, 11.0),
        ("train_throughput", "beside", 6.0, 5.9, 9.5),
        ("train_kept", "ours", 0.6, 0.58, 0.62),
    ],
    "product": [
        ("train_gflops", "ours", 70.0, 69.0, 71.0),
        ("train_gflops", "product", 140.0, 139.0, 141.0),
        ("train_of_product", "ours", 0.5, 0.49, 0.51),
    ],
}
OPPONENTS = """
title = "Opponents"
[[case]]
label = "alone"
target = "nvae-tiny"
vs = "alone"
neighbours = 3
aims = [{ what = "train", goal = 0.55, stretch = 0.7 }]
[[case]]
label = "product"
target = "nvae-tiny"
vs = "product"
aims = [{ what = "train", goal = 0.6, avx512 = 0.5, stretch = 0.7 }]
"""


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("avx512", [True, False])
def test_opponents_that_are_no_model(avx512, tmp_path, monkeypatch):
    """Ranges of the two rates that overlap say nothing here: the ratio alone has a goal."""
    (tmp_path / "opponents.toml").write_text(OPPONENTS)
    commands = []

    def output(self, command, threads):
        commands.append(" ".join(command))
        found = SAID["product" if "--vs product" in commands[-1] else "alone"]
        details = {"macs_per_image": 10**9}
        rows = [
            Measurement(metric, value, "x", True, 8, low, high, "IQR", details={**details, "variant": name})
            for metric, name, value, low, high in found
        ]
        return json.dumps([dataclasses.asdict(one) for one in rows])

    monkeypatch.setattr(suite.Runner, "output", output)
    monkeypatch.setattr(suite, "is_avx512", lambda: avx512)
    done = suite.run(plan.read_speed_suite(str(tmp_path / "opponents.toml")), plan.Choice(), tmp_path / "out")
    alone, product = json.loads(done.json)["rows"]
    assert ["--neighbours 3" in command for command in commands] == [True, False]
    assert (alone["ours"], alone["other"], alone["verdict"], alone["neighbours"]) == (6.0, 10.0, "goal met", 3)
    assert (product["ours"], product["other"], product["unit"]) == (70.0, 140.0, "GFLOP/s")
    assert product["verdict"] == ("goal within the spread" if avx512 else "goal missed")
    assert alone["gflops"] is product["gflops"] is None
    assert "training step beside 3 busy processes" in done.markdown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('what = "train"', 'what = "trian"'), "did you mean 'train'"),
        (('vs = "pythae"', 'vs = "pythea"'), "did you mean 'pythae'"),
        (('vs = "pythae"', 'vs = "product"'), "measurement against product"),
        (("batches = [4]", "batches = [0]"), ">= 1"),
        (("rounds = 2", "round = 2"), "did you mean 'rounds'"),
        (("title", "title ="), "syntax error"),
    ],
)
def test_a_wrong_suite_file_is_one_line(change, message, tmp_path):
    (tmp_path / "wrong.toml").write_text(SUITE.replace(*change))
    with pytest.raises(UserError, match=message):
        plan.read_speed_suite(str(tmp_path / "wrong.toml"))


def test_a_choice_that_leaves_nothing_is_an_error(speed_file):
    read = plan.read_speed_suite(str(speed_file))
    assert [one.batch for one in plan.comparisons(read, plan.Choice(models=("tiny",)))] == [2, 3]
    with pytest.raises(UserError, match="leave nothing"):
        plan.comparisons(read, plan.Choice(threads=(7,)))
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        plan.comparisons(read, plan.Choice(models=("tinny",)))


def row(**fields):
    head = {"config": "c", "overrides": [], "batch": 2, "threads": 1, "what": "train", "draws": None, "vs": "baseline"}
    return SpeedRow(**{**head, "unit": "images/s", "goal": 2.0, "stretch": 3.0, "verdict": "goal met", **fields})


def test_the_rate_of_a_step_beside_the_machines():
    """1 GMAC an image, forward and twice backward, 10 images/s: 60 GFLOP/s, three quarters of 80."""
    environment = {"command": "c", "device_name": "d", "cores": 2, "torch": "2", "date": "today", "commit": None}
    limits = [{"threads": 1, "gemm_gflops": 80.0, "convolution_gflops": 40.0, "copy_gb_per_s": 5.0}]
    known = [{"label": "c", "batch": 2, "threads": 1, "what": "train", "rate": 5.0, "source": "elsewhere"}]
    table = SpeedTable("t", environment, True, limits, known)
    table.add([row(ours=10.0, other=4.0, macs_per_image=10**9), row(what="sample", ours=10.0, macs_per_image=10**9)])
    assert table.rows[0].gflops == pytest.approx(60)
    assert table.gemm_share(table.rows[0]) == pytest.approx(0.75)
    assert table.rows[1].gflops is None
    text = speed_markdown(table)
    assert "75%" in text
    assert re.search(r"\| 4 +\| +5 +\| +0\.80 +\| +no +\| elsewhere", re.sub(r"\| +", "| ", text))
    assert json.loads(speed_json(table))["rows"][0]["gemm_share"] == pytest.approx(0.75)
    assert len(list(csv.DictReader(io.StringIO(speed_csv(table))))) == 2


def test_the_tables_are_rendered_without_torch():
    code = "import sys; import benchmarks.report.speed; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
