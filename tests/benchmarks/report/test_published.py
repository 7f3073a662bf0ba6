"""The table of values that others published: complete, one value a row, doubts written down."""

import csv
import re
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[3] / "results" / "published.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))
VALUE = re.compile(r"\d+(\.\d+)?( ± \d+(\.\d+)?|-\d+(\.\d+)?)?")


def test_columns_and_status():
    assert list(ROWS[0]) == ["model", "dataset", "metric", "value", "source", "status", "note"]
    assert {row["status"] for row in ROWS} <= {"confirmed_primary", "secondary", "uncertain"}
    assert all(row["model"] and row["dataset"] and row["metric"] and row["source"] for row in ROWS)


def test_every_row_holds_one_value_and_is_there_once():
    assert [row["value"] for row in ROWS if not VALUE.fullmatch(row["value"])] == []
    assert len({tuple(row.values()) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("model", "dataset", "metric", "word"),
    [
        ("NVAE w/ flow", "CIFAR-10", "bits/dim", "right-edge"),
        ("VDVAE", "FFHQ-256 (5-bit)", "bits/dim", "0.040"),
        ("Efficient-VDVAE C2", "ImageNet-32", "bits/dim", "newer"),
        ("CR-NVAE", "CIFAR-10", "bits/dim", "augmentation"),
    ],
)
def test_the_known_incomparabilities_are_noted(model, dataset, metric, word):
    (row,) = [r for r in ROWS if (r["model"], r["dataset"], r["metric"]) == (model, dataset, metric)]
    assert word in row["note"]


def test_an_uncertain_row_says_why():
    assert all(row["note"] for row in ROWS if row["status"] == "uncertain")
