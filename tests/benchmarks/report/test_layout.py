"""Layout: digits of a column, aligned markdown, stacks that fit."""

import pandas as pd
import pytest

from benchmarks.report import layout


@pytest.mark.parametrize(
    ("values", "halves", "digits", "places"),
    [
        ([-101.1, -107.8], [], 4, 1),
        ([0.0098, 0.0148], [], 4, 5),
        ([9.17, 12.9, 0.128], [], 4, 2),
        ([1004.0, 243.0], [], 3, 0),
        ([-101.1], [0.04], 4, 2),
        ([300.0, 1e-9], [], 4, 3),  # two decimals more than the largest value needs, and no more
        ([0.0], [], 4, 2),
        ([], [], 4, 2),
    ],
)
def test_decimals_of_a_column(values, halves, digits, places):
    assert layout.decimals(values, halves, digits) == places


def test_numbers_have_separators_and_a_spread_only_where_there_is_one():
    assert layout.number(12345.678, 1, 0.25) == "12,345.7 ± 0.2"
    assert layout.number(1.0, 2, 0.0) == "1.00"
    assert layout.number(1.0, 2) == "1.00"


def test_markdown_is_aligned_and_escaped():
    lines = layout.markdown(pd.DataFrame({"Model": ["a|b", "c"], "x": ["1", "22"]})).splitlines()
    assert lines == ["| Model |   x |", "| ----- | --: |", "| a\\|b  |   1 |", "| c     |  22 |"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("style", "lines"),
    [
        ("aligned", ["| Model |    x |", "| ----- | ---: |", "| a     | 1234 |"]),
        ("closed", ["| Model |    x |", "|-------|-----:|", "| a     | 1234 |"]),
        ("bare", ["| Model | x |", "|---|---:|", "| a | 1234 |"]),
    ],
)
def test_styles_differ_in_spaces_and_dashes_alone(style, lines):
    assert layout.markdown(pd.DataFrame({"Model": ["a"], "x": ["1234"]}), style=style).splitlines() == lines


def test_the_columns_that_are_flush_left_can_be_named():
    table = pd.DataFrame({"Number": ["1"], "Text": ["a"]})
    lines = layout.markdown(table, left=["Text"]).splitlines()
    assert lines == ["| Number | Text |", "| -----: | ---- |", "|      1 | a    |"]


def test_csv_keeps_whole_numbers_and_nested_values():
    rows = [{"n": 1, "x": 0.1, "flag": True}, {"n": None, "list": [1, "a,b"], "text": 'say "x"'}]
    assert layout.csv(layout.frame(rows)).splitlines() == [
        "n,x,flag,list,text",
        "1,0.1,True,,",
        ',,,"[1, ""a,b""]","say ""x"""',
    ]


def test_a_wide_table_is_stacked_without_losing_a_column():
    table = pd.DataFrame({"Model": ["a"]} | {f"column {i}": ["1234567890"] for i in range(20)})
    pieces = layout.stack(table)
    assert len(pieces) > 1
    assert [name for piece in pieces for name in piece.columns if name != "Model"] == list(table.columns[1:])
    for piece in pieces:
        assert piece.columns[0] == "Model"
        assert max(map(len, layout.markdown(piece).splitlines())) <= layout.WIDTH


def test_a_column_wider_than_the_terminal_still_gets_its_place():
    table = pd.DataFrame({"Model": ["a"], "x": ["y" * 300], "z": ["1"]})
    assert [list(piece.columns) for piece in layout.stack(table)] == [["Model", "x"], ["Model", "z"]]
