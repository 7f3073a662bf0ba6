"""Whatever a suite or a record holds, its reader takes it whole or says why not; what is read can be shown."""

import copy
import dataclasses
import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mutations import anything, changed, like, paths, scalar, spoiled, word

from benchmarks.base.checked.strict_json import parse_json
from benchmarks.base.errors import UserError
from benchmarks.records.record import Curve, RunRecord, from_json, load_record, to_json
from benchmarks.report import tables
from benchmarks.report.web import document
from benchmarks.suites.config import (
    SUITES,
    Suite,
    TrialConfig,
    build_suite,
    read_suite,
    set_path,
    to_dict,
    trial_from_dict,
)

SHIPPED = Path(__file__).parents[3] / "results" / "quick"
FEW = settings(max_examples=100, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
"""Nothing is shrunk: the number that is reported makes the input again."""
MANY = settings(FEW, max_examples=100_000)


def one_line(error):
    assert str(error).isprintable(), ascii(error)
    assert str(error)


def reads_a_suite(table):
    try:
        found = build_suite("mine", table)
    except UserError as error:
        return one_line(error)
    assert isinstance(found, Suite)
    trial = found.trials[-1]
    assert trial_from_dict(to_dict(trial)) == trial
    assert trial.identity("data", "torch 1")
    return found


def reads_the_text_of_a_suite(text):
    Path("mine.toml").write_bytes(text.encode(errors="surrogatepass"))
    try:
        _, table = read_suite("mine.toml")
    except UserError as error:
        return one_line(error)
    return reads_a_suite(table)


def reads_a_trial(raw):
    try:
        found = trial_from_dict(raw)
    except UserError as error:
        return one_line(error)
    assert isinstance(found, TrialConfig)
    assert trial_from_dict(to_dict(found)) == found
    return found


def reads_the_text_of_a_trial(text):
    try:
        raw = parse_json(text.encode(errors="surrogatepass"))
    except ValueError as error:
        return one_line(UserError(str(error)))
    return reads_a_trial(raw)


def reads_an_assignment(text):
    table = copy.deepcopy(QUICK)
    try:
        set_path(table, text)
    except UserError as error:
        return one_line(error)
    return reads_a_suite(table)


def reads_the_text_of_a_record(text):
    try:
        found = from_json(text)
    except ValueError as error:
        return one_line(UserError(str(error)))
    assert isinstance(found, RunRecord)
    assert from_json(to_json(found)) == found
    return found


def reads_a_record(raw):
    return reads_the_text_of_a_record(json.dumps(raw))


def shows_a_record(raw):
    found = reads_a_record(raw)
    if found is None:
        return None
    parts = tables.sections([found, OTHER])
    page = document.page(parts, [document.Beside() for _ in parts])
    for text in (*(tables.markdown(part) for part in parts), tables.csv(parts), page):
        assert text.encode()
        assert "\x1b" not in text
    assert page.count("<script") == 1  # the page's own
    assert not any(line.startswith(("=", "+", "@")) for line in tables.csv(parts).splitlines())
    return found


def assignment(rng):
    """What may follow --set."""
    if rng.random() < 0.2:
        return word(rng, longest=20)
    table = rng.choice(("training", "models.vae", "evaluation", "likelihood", "objective"))
    key = rng.choice(("images", "beta", "label", "name", "pad", word(rng)))
    return f"{table}.{key}={scalar(rng)}"


QUICK = read_suite("quick")[1]
QUICK["models"] = {row: QUICK["models"][row] for row in ("vae", "nvae")}
QUICK_TEXT = (SUITES / "quick.toml").read_text()
STORED = to_dict(build_suite("quick", QUICK).trials[1])
OTHER, RECORD = (load_record(next(SHIPPED.glob(f"{row}-seed0-*"))) for row in ("vae", "nvae"))
RECORD = dataclasses.replace(RECORD, curves=[Curve("loss", "nats/image", [1.0, 2.0], [3.0, None])])
FULL = json.loads(to_json(RECORD))
RAW = json.loads(to_json(dataclasses.replace(RECORD, measurements=RECORD.measurements[:6])))
PLACES = {id(table): paths(table) for table in (QUICK, STORED, RAW, FULL)}


def of(table, **how):
    """Makes changed copies of `table`."""
    return lambda rng: changed(rng, table, PLACES[id(table)], **how)


READERS = {
    "suite": (reads_a_suite, of(QUICK)),
    "anything for a suite": (reads_a_suite, lambda rng: {word(rng): anything(rng) for _ in range(3)}),
    "text of a suite": (reads_the_text_of_a_suite, lambda rng: spoiled(rng, QUICK_TEXT)),
    "stored configuration": (reads_a_trial, of(STORED)),
    "anything for a configuration": (reads_a_trial, anything),
    "text of a configuration": (reads_the_text_of_a_trial, lambda rng: spoiled(rng, json.dumps(STORED))),
    "assignment": (reads_an_assignment, assignment),
    "record": (reads_a_record, of(RAW)),
    "anything for a record": (reads_a_record, lambda rng: {"schema_version": 1, "row": anything(rng)}),
    "text of a record": (reads_the_text_of_a_record, lambda rng: spoiled(rng, json.dumps(RAW))),
}
"""What reads, and what makes its input of random numbers; None is read where it is refused."""


def counted(read, make, how):
    """How many inputs are read whole, and how many refused."""
    counts = [0, 0]

    def reads(seed):
        counts[read(make(random.Random(seed))) is None] += 1

    how(given(st.integers(0, 2**64 - 1))(reads))()
    return counts


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_it_whole_or_refuses_it_in_one_line(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken, refused = counted(*READERS[reader], FEW)
    assert taken + refused >= FEW.max_examples


def test_what_is_read_can_be_shown():
    taken, _ = counted(shows_a_record, of(FULL, value=like), settings(FEW, max_examples=20))
    assert taken > 0


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_a_hundred_thousand_whole_or_refuses_them(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    taken, refused = counted(*READERS[reader], MANY)
    print(f"{reader}: {taken:,} inputs taken, {refused:,} refused, {time.process_time() - start:.0f} s")
    assert taken + refused >= MANY.max_examples
    assert refused > 0
    assert taken > 0 or "anything" in reader


@pytest.mark.slow
def test_whatever_is_read_can_be_shown():
    taken, _ = counted(shows_a_record, of(FULL, value=like), settings(MANY, max_examples=5_000))
    assert taken > 1_000
