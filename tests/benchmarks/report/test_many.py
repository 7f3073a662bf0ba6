"""Reports and comparisons of many records: what is called grows with the records, and pages stay readable."""

import cProfile
from functools import partial
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
ROWS = (5, 10, 20)
STEEPER = 1.02
"""Calls for 10 more rows over twice those for 5 more: 1 where each costs the same; sorting takes a little more."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of 5, 10 and 20 rows, of one seed each."""
    out = tmp_path_factory.mktemp("runs")
    for rows in ROWS:
        many_records(SOURCE, out / str(rows), rows, seeds=1)
    return [out / str(rows) for rows in ROWS]


def calls(function, *arguments):
    """How many calls a function makes, of Python and of C."""
    function(*arguments)  # imports and caches
    profile = cProfile.Profile()
    profile.runcall(function, *arguments)
    return sum(entry.callcount for entry in profile.getstats())


def steepness(counts):
    """How much more the later rows cost than the earlier ones, from the calls for 5, 10 and 20."""
    few, some, many = counts
    return (many - some) / (some - few) / 2


def test_tables_cost_what_their_rows_do(runs):
    assert steepness([calls(partial(page.build_report, pages=False), out) for out in runs]) < STEEPER


def test_two_runs_are_compared_at_the_cost_of_their_rows(runs):
    assert steepness([calls(contenders.pairs, [str(out), str(out)], out, None) for out in runs]) < STEEPER


def test_a_run_is_read_once_for_all_words(runs, monkeypatch):
    read = []

    def counted(out):
        read.append(out)
        return page.read_trials(out)

    monkeypatch.setattr(contenders, "read_trials", counted)
    found = compare(["ae-0", "vae-1", "nvae-3", "vdvae-4"], runs[0])
    assert len(found) == 3
    assert read == [runs[0]]


def test_charts_and_pictures_are_of_as_many_rows_as_have_looks(tmp_path):
    rows = [Row(str(index), (), {}) for index in range(MOST_DRAWN + 1)]
    shown = [(look.colour, look.line) for look in looks(rows).values()]
    assert len(set(shown[:MOST_DRAWN])) == MOST_DRAWN == len(set(shown))
    many_records(SOURCE, tmp_path, MOST_DRAWN + 2, seeds=1)
    (part,) = tables.sections(page.read_trials(tmp_path).values())
    assert len(part.rows) == MOST_DRAWN + 2
    assert len(part.drawn) == MOST_DRAWN
    assert any(f"the first {MOST_DRAWN} of {MOST_DRAWN + 2} rows" in line for line in part.caption)
