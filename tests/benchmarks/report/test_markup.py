"""Text of a record is text in every format: no tag, link, emphasis, formula or control character of its own."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from benchmarks.records.record import Curve, Measurement, save_record
from benchmarks.report import layout
from benchmarks.report.page import build_report
from benchmarks.report.pictures.words import drawn_text
from benchmarks.report.verdict import comparison

TAG = "<script>alert(1)</script>"
LABELS = [
    f"**{TAG}**",
    "=HYPERLINK(1)",
    "+1",
    "-1+2",
    "@SUM(1)",
    "$\\frac{",
    "_x",
    "a\x1b[2J\nb",
    "[x](javascript:1)",
    "a|b",
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make_record):
    """Texts of the report of a run whose every free text tries to be markup, by file."""
    out = tmp_path_factory.mktemp("hostile") / "run"
    for index, label in enumerate(LABELS):
        measurements = [
            Measurement("elbo", -100.0 - index, f"nats{TAG}", True, 10, -100.5 - index, -99.5 - index, "bootstrap 95%"),
            Measurement("sample_fid", 3.0 + index, "", False, 10, details={"extractor": f"e{TAG}"}),
            Measurement(f"=own{TAG}", 1.0, "", None),
            Measurement("mse", None, "", False, note=f"no {TAG}"),
        ]
        curves = [Curve(f"loss {TAG} $", "$x$", [1.0, 2.0], [3.0, 2.0])]
        names = {"label": label, "data": f"npz:{TAG}/../x", "data_hash": "../../../evil", "suite": f"s{TAG}"}
        record = make_record(f"row{index}", measurements=measurements, curves=curves, notes=[f"note {TAG}"], **names)
        save_record(record, out / f"trial{index}")
    save_record(make_record("other", data_hash="../.."), out / "other")
    build_report(out)
    return out, {name: (out / name).read_text() for name in ("table.md", "table.csv", "index.md", "index.html")}


def test_nothing_is_written_outside_the_folder(pages):
    out, _ = pages
    assert list(out.parent.iterdir()) == [out]
    assert all(set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for path in (out / "figures").iterdir())


def test_the_page_has_no_tag_of_a_record(pages):
    page = pages[1]["index.html"]
    assert page.count("<script") == page.count("</script") == 1  # the page's own
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > len(LABELS)


def test_markdown_has_none_either(pages):
    for name in ("table.md", "index.md"):
        text = pages[1][name]
        assert text.count("<script") == text.count(r"\<script") > len(LABELS)
        assert "](javascript" not in text
        assert r"\*\*\<script>" in text


def test_no_format_has_a_control_character(pages):
    for text in pages[1].values():
        assert "".join(text.split("\n")).isprintable()


def test_no_cell_of_a_spreadsheet_is_a_formula(pages):
    lines = list(csv.reader(io.StringIO(pages[1]["table.csv"])))
    cells = [cell for line in lines for cell in line]
    assert {"'=HYPERLINK(1)", "'+1", "'-1+2", "'@SUM(1)"} <= set(cells)
    assert [cell for cell in cells if cell.startswith(("=", "+", "@"))] == []
    assert f"'=own{TAG}" in lines[0]


def test_bold_is_what_this_suite_marks_alone():
    assert layout.unmarked(layout.strong("-1,107.8 ± 0.9")) == "-1,107.8 ± 0.9"
    for text in (f"**{TAG}**", "**a**", "1", "****", "**1", "**1** **2**"):
        assert layout.unmarked(text) is None
    assert layout.in_markdown("**a**") == r"\*\*a\*\*"
    assert layout.in_markdown(layout.strong("1.5")) == "**1.5**"


@pytest.mark.parametrize("text", ["a < b", "10 < 2,000", ">= 1.5", "FID[mnist] ↓ (nats)", "IWAE(10)", "1 ± 2"])
def test_what_tables_are_made_of_is_left_alone(text):
    assert layout.in_markdown(text) == text


def test_numbers_and_dashes_of_a_spreadsheet_stay():
    table = pd.DataFrame({"n": [-1, 2], "x": [-0.5, np.nan], "verdict": ["-", None]})
    assert layout.csv(table) == "n,x,verdict\n-1,-0.5,-\n2,,\n"


def test_formulas_are_not_read_in_figures():
    assert drawn_text("$a$ and $b$") == r"\$a\$ and \$b\$"
    assert not drawn_text("_hidden").startswith("_")


def test_two_columns_may_have_one_name(tmp_path, make_record):
    save_record(make_record("vae"), tmp_path / "vae")
    assert "| VAE | VAE |" in " ".join(comparison.text(comparison.compare(["vae", "vae"], tmp_path)).split())
