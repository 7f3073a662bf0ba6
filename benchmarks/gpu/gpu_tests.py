"""Step `tests`: `pytest -m gpu` over the files that have such tests, read from its JUnit report."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from benchmarks.base.children import ROOT, last_words
from benchmarks.gpu.findings import Fields, Findings

MARKED = "mark.gpu"
"""What a file with such tests holds."""
ASIDE = 3.0
"""Seconds that are kept for reading the report."""
NOTHING_COLLECTED = 5
"""Pytest's exit code."""


def run(findings: Findings) -> None:
    """A row a file, with the counts, and then a row a failed test."""
    findings.show((("tests", "tests"), ("failures", "failures"), ("skipped", "skipped"), ("seconds", "s")))
    files = marked_files(ROOT / "tests")
    if not files:
        findings.note("no file under tests/ holds tests of a GPU")
    for path in files:
        name = str(path.relative_to(ROOT))
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            findings.case(name, lambda path=path, report=report: _pytest(path, report, findings), needs=5)
            for test, message in failures(report):
                findings.case(f"{name}::{test}", lambda message=message: {"passed": False, "message": message}, needs=0)


def marked_files(folder: Path) -> list[Path]:
    """Files of tests that need a GPU; the others need not be imported, and may need packages that are missing.

    Those of the kernels come before those of the training.
    """
    return [path for path in sorted(folder.rglob("test_*.py"), reverse=True) if MARKED in path.read_text()]


def _pytest(path: Path, report: Path, findings: Findings) -> Fields:
    """Counts of one file's tests.

    Raises:
        RuntimeError: pytest failed by itself, or took longer than there is.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rA", "--tb=short", f"--junitxml={report}", str(path)]
    command += ["-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, findings.left() - ASIDE), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {error.timeout:.0f} s") from error
    print(done.stdout[-20000:], done.stderr[-5000:], flush=True)
    if not report.exists():
        raise RuntimeError(last_words(done.stderr or done.stdout, done.returncode))
    suite = _suite(report)
    counts = {key: int(suite.get(name, "0")) for key, name in (("tests", "tests"), ("skipped", "skipped"))}
    failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    passed = done.returncode in (0, NOTHING_COLLECTED)
    message = {} if passed else {"message": f"{failed} of {counts['tests']} failed"}
    judged = passed if counts["tests"] > counts["skipped"] or failed else None
    return {"passed": judged, **counts, "failures": failed, **message}


def _suite(report: Path) -> ElementTree.Element:
    """The element with the counts."""
    root = ElementTree.parse(report).getroot()
    found = root if root.tag == "testsuite" else root.find("testsuite")
    if found is None:
        raise RuntimeError("pytest's report holds no counts")
    return found


def failures(report: Path) -> Iterable[tuple[str, str]]:
    """Failed tests and the end of what pytest said of each."""
    if not report.exists():
        return
    for test in ElementTree.parse(report).getroot().iter("testcase"):
        for kind in ("failure", "error"):
            found = test.find(kind)
            if found is not None:
                said = (found.text or "").strip().splitlines()
                yield test.get("name", "?"), "\n".join([found.get("message", "").split("\n")[0], *said[-4:]])
