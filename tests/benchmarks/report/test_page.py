"""The whole report: files written, pages complete, published values apart, bad input in one line."""

import re
from pathlib import Path

import pytest

from benchmarks.base.errors import UserError
from benchmarks.records.record import save_record
from benchmarks.report import published, tables
from benchmarks.report.page import build_report

PUBLISHED = """model,data,metric,value,source,status,note
LVAE,MNIST static,neg. ELBO nats,82.14,a README,confirmed_primary,
"Vanilla, flat",MNIST,FID,28.2,a table,uncertain,no protocol
NVAE,MNIST dynamic,NLL nats,78.01,a quotation,secondary,
NVAE,CIFAR-10,bits/dim,2.91,an abstract,confirmed_primary,
"""


@pytest.fixture
def published_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "published.csv"
    path.write_text(PUBLISHED)
    return path


SHIPPED = Path(__file__).parents[3] / "results" / "published.csv"


@pytest.fixture
def small_run(tmp_path, make_record):
    """A run of one trial without saved images."""
    save_record(make_record("vae"), tmp_path / "trial")
    return tmp_path


def test_the_report_writes_tables_and_figures(built_run, suite_records):
    text = (built_run / "table.md").read_text()
    assert text == tables.markdown(tables.sections(suite_records)[0])
    assert (built_run / "table.csv").read_text().startswith("suite,data,data_hash,row,label")
    charts = {"training", "rates", "quality_speed"}
    expected = {f"{name}.png" for name in charts | {"reconstructions", "samples"}} | {f"{name}.svg" for name in charts}
    assert {path.name for path in (built_run / "figures").iterdir()} == expected


def test_pages_show_every_figure_that_was_written(built_run):
    written = {f"figures/{path.name}" for path in (built_run / "figures").glob("*.png")}
    markdown, page = ((built_run / f"index.{kind}").read_text() for kind in ("md", "html"))
    shown = re.findall(r"!\[(.*)\]\((.*)\)", markdown)
    assert {file for _, file in shown} == written
    assert all(f"<h2>{title}</h2>" in page for title, _ in shown)


def test_what_is_returned_is_what_is_written_and_the_same_when_built_again(small_run):
    def build():
        text = build_report(small_run)
        return text, *((small_run / name).read_text() for name in ("table.md", "table.csv", "index.md", "index.html"))

    first = build()
    assert first[0] == first[1]
    assert build() == first


def test_images_may_be_missing(small_run):
    build_report(small_run)
    assert "### Reconstructions" not in (small_run / "index.md").read_text()
    assert [path.name for path in sorted((small_run / "figures").iterdir())] == ["rates.png", "rates.svg"]


def test_two_data_sets_in_one_folder_have_tables_and_figures_of_their_own(small_run, make_record):
    save_record(make_record("vae", data="folder:my/own", data_hash="ee" * 32), small_run / "other")
    text = build_report(small_run)
    assert text.count("### Quality\n") == 2
    assert (small_run / "figures" / "folder-my-own-eeeeee-rates.png").is_file()
    assert (small_run / "figures" / "mnist-5k-ab12cd-rates.png").is_file()


def test_published_values_stand_in_a_block_of_their_own(small_run, published_file):
    text = build_report(small_run, published_file)
    assert "Published" not in text
    page = (small_run / "index.md").read_text()
    measured, block = page.split("### Published values")
    assert "78.01" not in measured
    assert "82.14" in block
    assert "28.2 (?)" in block
    assert "78.01 (secondary)" in block
    assert "2.91" not in page  # another data set
    assert "[2] a table; no protocol" in block
    assert "78.01 (secondary)" in (small_run / "index.html").read_text()
    assert "78.01" not in (small_run / "table.csv").read_text()


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        ("cifar10", ["pixel value 254 also takes the open upper bin", "trained with data augmentation"]),
        ("imagenet32", ["older downsampled ImageNet release", "newer downsampled ImageNet release", "pixel value 254"]),
        ("ffhq256", ["5-bit likelihood that is not normalised: up to 0.040 bits/dim optimistic"]),
        ("mnist-5k", ["protocol not stated", "28x28 padded to 32x32"]),
    ],
)
def test_known_incomparabilities_are_footnotes_of_the_shipped_values(tmp_path, make_record, data, reasons):
    save_record(make_record("vae", data=data), tmp_path / "trial")
    build_report(tmp_path, SHIPPED)
    for page in ("index.md", "index.html"):
        block = (tmp_path / page).read_text().split("Published values", 1)[1]
        for reason in reasons:
            assert reason in " ".join(block.split()), page


@pytest.mark.parametrize(
    ("data", "count"), [("mnist-5k", 3), ("mnist", 3), ("cifar10", 1), ("fashion-mnist", 0), ("patches", 0)]
)
def test_published_values_are_matched_by_the_family_of_the_data(published_file, data, count):
    assert len(published.for_data(published.read(published_file), data)) == count


def test_no_published_values_no_block(small_run, published_file):
    published_file.write_text(
        PUBLISHED.splitlines()[0] + "\nNVAE,CIFAR-10,bits/dim,2.91,an abstract,confirmed_primary,\n"
    )
    build_report(small_run, published_file)
    assert "Published" not in (small_run / "index.md").read_text()


@pytest.mark.parametrize("content", ["model,value\na,1\n", "", None])
def test_a_bad_file_of_published_values_is_one_line(small_run, tmp_path, content):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="published values: expected"):
        build_report(small_run, path)


def test_an_empty_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a run with records"):
        build_report(tmp_path)


def test_a_broken_record_is_one_line_that_names_it(small_run):
    (small_run / "trial" / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"trial/record\.json"):
        build_report(small_run)


def test_a_folder_that_cannot_be_written_is_one_line(small_run):
    (small_run / "figures").write_text("in the way")
    with pytest.raises(UserError, match="cannot write below"):
        build_report(small_run)


def test_labels_cannot_break_the_page(tmp_path, make_record):
    save_record(make_record("vae", label="<b>|VAE|</b> & co"), tmp_path / "trial")
    text = build_report(tmp_path)
    assert r"\<b>\|VAE\|\</b>" in text
    page = (tmp_path / "index.html").read_text()
    assert "&lt;b&gt;|VAE|&lt;/b&gt; &amp; co" in page
    assert "<b>|VAE" not in page
