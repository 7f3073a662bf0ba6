"""Reports and comparisons of many records: what is called grows with the records, and pages stay readable."""

import cProfile
from pathlib import Path

import pytest
from many_records import many_records

from benchmarks.report import page, tables
from benchmarks.report.pictures.charts import looks
from benchmarks.report.rows import Row
from benchmarks.report.tables import MOST_DRAWN
from benchmarks.report.verdict import contenders
from benchmarks.report.verdict.comparison import compare

SOURCE = Path(__file__).resolve().parents[3] / "results" / "quick"
ROWS = 20
DOUBLED = 2.2
"""Most that calls may grow by where rows double; quadratic ones made it 3.4 (report) before they were mended."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of 20 and 40 rows, of one seed each."""
    out = tmp_path_factory.mktemp("runs")
    for rows in (ROWS, 2 * ROWS):
        many_records(SOURCE, out / str(rows), rows, seeds=1)
    return [out / str(rows) for rows in (ROWS, 2 * ROWS)]


def calls(function, *arguments):
    """How many calls a function makes, of Python and of C."""
    function(*arguments)  # imports and caches
    profile = cProfile.Profile()
    profile.runcall(function, *arguments)
    return sum(entry.callcount for entry in profile.getstats())


def tabled(out):
    page.build_report(out, pages=False)


def test_tables_cost_what_their_rows_do(runs):
    few, many = (calls(tabled, out) for out in runs)
    assert many < DOUBLED * few


def test_the_rows_of_two_runs_are_compared_at_the_cost_of_rows(runs):
    few, many = (calls(contenders.pairs, [str(out), str(out)], out, None) for out in runs)
    assert many < DOUBLED * few


def test_a_run_is_read_once_for_all_words(runs, monkeypatch):
    read = []

    def counted(out):
        read.append(out)
        return page.read_trials(out)

    monkeypatch.setattr(contenders, "read_trials", counted)
    found = compare(["ae-0", "vae-1", "nvae-3", "vdvae-4"], runs[0])
    assert len(found) == 3
    assert read == [runs[0]]


def test_charts_and_pictures_are_of_as_many_rows_as_have_looks(runs):
    rows = [Row(str(index), (), {}) for index in range(MOST_DRAWN + 1)]
    shown = [(look.colour, look.line) for look in looks(rows).values()]
    assert len(set(shown[:MOST_DRAWN])) == MOST_DRAWN == len(set(shown))
    (part,) = tables.sections(page.read_trials(runs[1]).values())
    assert len(part.rows) == 2 * ROWS
    assert len(part.drawn) == MOST_DRAWN
    assert any(f"the first {MOST_DRAWN} of {2 * ROWS} rows" in line for line in part.caption)
