"""The verb `gpu`: its time is shared, nothing stops the rest, and all that is known is on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cli.parser import run_command
from benchmarks.gpu import gpu_tests, runner, schedule
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.schedule import STEPS, Step

ROOT = Path(__file__).parents[3]
MODULES = {
    "good": "findings.show([('answer', 'answer')]); findings.case('one', lambda: {'answer': float('nan')})",
    "failing": """
    findings.case("bad", lambda: 1 / 0)
    findings.case("later", lambda: {})
""",
    "crashing": """
    findings.case("before", lambda: {})
    findings.case("ends the process", lambda: os._exit(3))
    findings.case("loses the GPU", lambda: 1 / 0)
    lost = findings.path.with_name("lost")
    if not lost.exists():
        lost.touch()
        os._exit(75)  # as `Findings` does where the GPU answers no more
    findings.case("behind", lambda: {})
""",
    "hanging": """
    findings.case("sleeps", lambda: time.sleep(60))
    findings.case("awake", lambda: {})
""",
    "stuck": "time.sleep(60)",
    "broken": "raise RuntimeError('no case of mine')",
    "slow": """
    findings.case("short", lambda: {})
    findings.case("long", lambda: {}, needs=1000)
""",
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a step of one of the modules above."""
    for name, body in MODULES.items():
        body = body if body.startswith("\n") else f"\n    {body}\n"
        (tmp_path / f"step_{name}.py").write_text(f"import os, time\n\n\ndef run(findings):{body}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def step(name, share=1.0, **options):
        return Step(name, f"step_{name}", share, **{"least": 0.1, "case_seconds": None, **options})

    return step


def rows(out, name):
    found = json.loads((out / f"{name}.json").read_text())
    return {row["case"]: row["passed"] for row in found["rows"]}


def test_nothing_stops_the_rest(make, tmp_path, capsys):
    out = tmp_path / "out"
    steps = [
        make("failing"),
        make("crashing"),
        make("hanging", case_seconds=0.3),
        make("broken"),
        make("stuck", 0.05),
        make("good"),
    ]
    run = runner.run_steps(steps, out, "cpu", 20 / 60)
    states = {outcome.name: outcome.state for outcome in run.outcomes}
    expected = {"failing": "failed", "crashing": "failed", "hanging": "failed", "broken": "crashed"}
    assert states == {**expected, "stuck": "stopped", "good": "passed"}
    assert rows(out, "failing") == {"bad": False, "later": True}
    assert rows(out, "crashing") == {
        "before": True,
        "ends the process": False,
        "loses the GPU": False,
        "behind": True,
    }
    assert rows(out, "hanging") == {"sleeps": False, "awake": True}
    assert not run.good
    page = (out / "summary.md").read_text()
    for said in ("ZeroDivisionError: division by zero", "hung: no end after 0.3 s", "exit code 3", "no case of mine"):
        assert said in page
    summary = json.loads((out / "summary.json").read_text())
    assert [one["name"] for one in summary["steps"]] == [step.name for step in steps]
    assert summary["finished"]
    assert summary["dry_run"]
    assert "good: passed" in capsys.readouterr().err


def test_time_that_is_short_drops_steps_and_cases(make, tmp_path):
    run = runner.run_steps([make("slow"), make("good", least=1000)], tmp_path / "out", "cpu", 0.5)
    slow, good = run.outcomes
    assert (slow.state, slow.passed, slow.left_out) == ("passed", 1, 1)
    assert good.state == "left out"
    assert "1000 needed" in good.message
    assert run.good
    assert "Left out, for the time was over: long" in (tmp_path / "out" / "summary.md").read_text()


def test_a_command_that_is_ended_says_what_it_knows(make, tmp_path, monkeypatch):
    def end(run):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner.Child, "_in_time", end)
    before = signal.getsignal(signal.SIGTERM)
    run = runner.run_steps([make("stuck"), make("good")], tmp_path / "out", "cpu", 1)
    assert run.interrupted
    assert [(one.name, one.state) for one in run.outcomes] == [("stuck", "stopped"), ("good", "left out")]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["interrupted"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_steps_that_time_nothing_run_side_by_side():
    names = [[step.name for step in group] for group in schedule.groups(STEPS, together=True)]
    assert names == [["environment"], ["kernels", "tests", "parity"], ["timing"], ["models"], ["training"]]
    assert all(len(group) == 1 for group in schedule.groups(STEPS, together=False))


def test_time_that_was_not_used_is_shared():
    waiting = [[Step("a", "a", 1.0)], [Step("b", "b", 3.0), Step("c", "c", 2.0)]]
    assert schedule.limit_of(waiting, 100.0) == 25.0
    assert schedule.limit_of(waiting[1:], 90.0) == 90.0


def test_known_cases_are_not_repeated(tmp_path):
    until = time.time() + 60
    first = Findings(tmp_path / "step.json", "cpu", until)
    assert first.case("one", lambda: {"value": float("inf")})["passed"]
    again = Findings(tmp_path / "step.json", "cpu", until)
    assert again.case("one", lambda: 1 / 0) is None
    assert again.rows[0]["value"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "environment,kernel"], "unknown step 'kernel'; did you mean 'kernels'?"),
        (["--minutes", "0"], "--minutes: expected a number > 0 and <= 1e+09, got '0'"),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert run_command(["gpu", *arguments]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


@pytest.mark.slow
def test_the_dry_run_exercises_every_step(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "gpu", "--device", "cpu", "--minutes", "5", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {one["name"]: one["state"] for one in summary["steps"]} == {step.name: "passed" for step in STEPS}
    assert all(one["passed"] for one in summary["steps"] if one["name"] != "tests")
    assert "Dry run on a CPU" in done.stdout


REPORT = """<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">
<testcase name="test_a"/>
<testcase name="test_b"><failure message="assert 1 == 2&#10;more">tests/x.py:3\nE  assert 1 == 2</failure></testcase>
<testcase name="test_c"><error message="no such fixture">gone</error></testcase>
</testsuite></testsuites>"""


def test_failures_are_read_from_pytests_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert dict(gpu_tests.failures(report)) == {
        "test_b": "assert 1 == 2\ntests/x.py:3\nE  assert 1 == 2",
        "test_c": "no such fixture\ngone",
    }
    assert list(gpu_tests.failures(tmp_path / "absent.xml")) == []


def test_only_files_with_tests_of_a_gpu_are_collected():
    names = {path.name for path in gpu_tests.marked_files(ROOT / "tests")}
    assert "test_on_gpu.py" in names
    assert "test_house.py" not in names
