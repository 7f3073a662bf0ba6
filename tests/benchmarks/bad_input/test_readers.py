"""Whatever a suite or a record holds, its reader takes it whole or says why not; what is read can be shown."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.base.errors import UserError
from benchmarks.records.record import Curve, RunRecord, from_json, load_record, to_json
from benchmarks.report import tables
from benchmarks.report.web import document
from benchmarks.suites.config import Suite, TrialConfig, build_suite, read_suite, set_path, to_dict, trial_from_dict

SHIPPED = Path(__file__).parents[3] / "results" / "quick"
FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None)
MANY = settings(
    max_examples=100_000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
ODD_TEXT = [
    "",
    "../..",
    "a/b",
    "\0",
    "\ud800",
    "\x1b[2J",
    "<script>",
    "$\\frac{",
    "=1+1",
    "**1**",
    "_x",
    "{row}",
    "%s",
    "\u2028",
]
ODD_VALUES = [0, -1, 2**63, 10**400, 1e308, -1e100, 5e-324, math.nan, math.inf, True, None, [], {}, [[]], {"": {}}]
ODD = st.sampled_from(ODD_TEXT + ODD_VALUES)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=8) | ODD
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))


def places(table):
    """Every (container, key) of nested tables and lists."""
    items = list(table.items()) if isinstance(table, dict) else list(enumerate(table))
    below = [place for _, item in items if isinstance(item, (dict, list)) for place in places(item)]
    return [(table, key) for key, _ in items] + below


def like(value):
    """Values of the type of `value`, so that most are read; odd ones among them."""
    if isinstance(value, str):
        return st.text(max_size=8) | st.sampled_from(ODD_TEXT)
    if isinstance(value, bool) or value is None:
        return st.none() | st.booleans()
    if isinstance(value, int):
        return st.integers(-(10**30), 10**30)
    return st.floats(-1e100, 1e100, allow_subnormal=False) if isinstance(value, float) else VALUES


@st.composite
def changed(draw, table, values=lambda value: VALUES):
    """A copy of nested tables in which a few things are gone, new or others: one of `values(thing)`."""
    raw = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, 3))):
        found = places(raw)
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.integers(0, 3)):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[draw(st.text(max_size=6))] = copy.deepcopy(draw(VALUES))
            case _:
                container[key] = copy.deepcopy(draw(values(container[key])))
    return raw


def one_line(error):
    assert str(error).isprintable(), ascii(error)
    assert str(error)


def reads_a_suite(table):
    try:
        found = build_suite("mine", table)
    except UserError as error:
        one_line(error)
        return
    assert isinstance(found, Suite)
    trial = found.trials[-1]
    assert trial_from_dict(to_dict(trial)) == trial
    assert trial.identity("data", "torch 1")


def reads_a_trial(raw):
    try:
        found = trial_from_dict(raw)
    except UserError as error:
        one_line(error)
        return
    assert isinstance(found, TrialConfig)
    assert trial_from_dict(to_dict(found)) == found


def reads_an_assignment(text):
    table = copy.deepcopy(QUICK)
    try:
        set_path(table, text)
    except UserError as error:
        one_line(error)
        return
    reads_a_suite(table)


def read_record(raw):
    """The record of a JSON value; None where it is refused in one line."""
    try:
        return from_json(json.dumps(raw))
    except ValueError as error:
        one_line(UserError(str(error)))
        return None


def reads_a_record(raw):
    found = read_record(raw)
    if found is not None:
        assert isinstance(found, RunRecord)
        assert from_json(to_json(found)) == found


def shows_a_record(raw):
    found = read_record(raw)
    if found is None:
        return
    parts = tables.sections([found, OTHER])
    page = document.page(parts, [document.Pictures() for _ in parts], None)
    for text in (*(tables.markdown(part) for part in parts), tables.csv(parts), page):
        assert text.encode()
        assert "\x1b" not in text
    assert page.count("<script") == 1  # the page's own
    assert not any(line.startswith(("=", "+", "@")) for line in tables.csv(parts).splitlines())


QUICK = read_suite("quick")[1]
STORED = to_dict(build_suite("quick", QUICK).trials[3])
OTHER, RECORD = (load_record(next(SHIPPED.glob(f"{row}-seed0-*"))) for row in ("vae", "nvae"))
RECORD = dataclasses.replace(RECORD, curves=[Curve("loss", "nats/image", [1.0, 2.0], [3.0, None])])
RAW = json.loads(to_json(RECORD))
ASSIGNMENTS = st.text(max_size=20) | st.builds(
    "{}.{}={}".format,
    st.sampled_from(["training", "models.vae", "evaluation", "likelihood", "objective"]),
    st.sampled_from(["images", "beta", "label", "name", "pad"]) | st.text(max_size=8),
    SCALARS,
)
READERS = {
    "suite": (reads_a_suite, changed(QUICK)),
    "anything for a suite": (reads_a_suite, st.dictionaries(st.text(max_size=8), VALUES)),
    "stored configuration": (reads_a_trial, changed(STORED)),
    "anything for a configuration": (reads_a_trial, VALUES),
    "assignment": (reads_an_assignment, ASSIGNMENTS),
    "record": (reads_a_record, changed(RAW)),
    "anything for a record": (reads_a_record, VALUES.map(lambda value: {"schema_version": 1, "row": value})),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_it_whole_or_refuses_it_in_one_line(reader):
    read, inputs = READERS[reader]
    FEW(given(inputs)(read))()


def test_what_is_read_can_be_shown():
    settings(FEW, max_examples=20)(given(changed(RAW, like))(shows_a_record))()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_a_hundred_thousand_whole_or_refuses_them(reader):
    read, inputs = READERS[reader]
    MANY(given(inputs)(read))()


@pytest.mark.slow
def test_whatever_is_read_can_be_shown():
    settings(MANY, max_examples=5_000)(given(changed(RAW, like))(shows_a_record))()
