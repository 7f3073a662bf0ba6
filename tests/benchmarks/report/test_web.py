"""The page itself: one file that needs no other, in which every picture, chart and column says what it is."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import pytest

from benchmarks.records.record import LatentGroupInfo, Measurement, save_record
from benchmarks.report import tables
from benchmarks.report.page import build_report
from benchmarks.report.pictures import charts
from benchmarks.report.pictures.inline import inline
from benchmarks.report.rows import gather

pytestmark = pytest.mark.usefixtures("unsaved")

LARGEST = 2 * 2**20
"""Bytes of a page that one likes to send."""


class Reader(html.parser.HTMLParser):
    """Attributes of all tags, and the text inside each; a mismatch of open and close raises."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.order = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.found.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.found.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.found if element["tag"] == tag]


@pytest.fixture(scope="module")
def text(built_run):
    return (built_run / "index.html").read_text()


@pytest.fixture(scope="module")
def page(text):
    return Reader(text)


def built(out, *records):
    for index, record in enumerate(records):
        save_record(record, out / f"trial{index}")
    build_report(out)
    return (out / "index.html").read_text()


def test_the_page_needs_no_other_file_and_no_network(page, text):
    addresses = [element[key] for element in page.found for key in ("src", "href", "action") if key in element]
    assert len(addresses) > 5
    assert [address[:40] for address in addresses if not address.startswith(("data:image/png;base64,", "#"))] == []
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert page.all("link") == []
    assert len(text) < LARGEST


def test_only_the_pages_own_script_may_run(page):
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert [key for element in page.found for key in element if key.startswith("on")] == []


def test_ids_are_there_once_and_all_that_is_referred_to_is_there(page):
    ids = [element["id"] for element in page.found if "id" in element]
    assert len(ids) == len(set(ids))
    values = [value or "" for element in page.found for key, value in element.items() if key not in ("tag", "text")]
    referred = [name for value in values for name in re.findall(r"url\(#(.*?)\)", value)]
    referred += [value[1:] for element in page.found if (value := element.get("href", "")).startswith("#")]
    assert len(referred) > 10
    assert set(referred) <= set(ids)


def test_every_picture_says_what_it_is(page):
    images = {image["alt"] for image in page.all("img")}
    assert "12 test images" in images
    assert "NVAE: reconstructions of the same 12 test images, in the same order" in images
    assert "64 samples of NVAE in 8 rows" in images
    charts = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 4 + 3 + 3  # curves by likelihood, rates by model, pairs of quality and rate
    front = next(label for label in charts if "ELBO ↑ (nats) against Train" in label)
    assert "NVAE: -101.1 ± 0.9 nats, 240" in front
    assert front.count("on the Pareto front") == 2


def test_captions_say_how_many_images_and_which_seed(page):
    captions = [" ".join(caption["text"].split()) for caption in page.all("figcaption")]
    assert "NVAE n = 64; seed 0" in captions
    (said,) = (p["text"] for p in page.all("p") if p["text"].startswith("n = 12 test images"))
    assert "the first of the 16 that every evaluation draws at random" in said
    assert said.endswith("Seed 0.")


def test_galleries_say_what_stands_where(page):
    alts = {image["alt"] for image in page.all("img")}
    assert "8 samples of VAE in a row at each temperature: 0.5, 0.7, 0.85, 1" in alts
    assert "4 rows by NVAE: a test image, 8 steps to another one's latents, the other test image" in alts
    assert "Above, 8 samples of NVAE; below each, the training image that is nearest to it" in alts
    redrawn = [alt for alt in alts if "groups redrawn" in alt]
    assert sorted(alt.partition(":")[0] for alt in redrawn) == ["NVAE", "NVAE"]  # the others have one resolution
    captions = [" ".join(caption["text"].split()) for caption in page.all("figcaption")]
    assert "VAE n = 8 a row; temperature 0.5, 0.7, 0.85, 1 from top to bottom; seed 0" in captions
    assert "NVAE n = 4 pairs of test images; 8 steps; seed 0" in captions
    for which, fixed in (("finer", "2x2; 2x2, 4x4"), ("coarser", "4x4, 8x8; 8x8")):
        said = f"NVAE, {which} groups redrawn n = 3 test images; fixed in the rows of an image: {fixed}; seed 0"
        assert said in captions
    errors = "squared error 0.010, 0.010, 0.011, 0.011, 0.012, 0.012, 0.013, 0.013 from left to right"
    both = "n = 64 samples: median 0.025, least 0.010; n = 64 test images: median 0.025, least 0.020"
    assert f"VAE {errors}; {both}; seed 0" in captions
    assert [caption for caption in captions if caption.startswith("AE ") and "n = " in caption] == []


def test_rows_without_a_gallery_are_named_with_what_to_do(run_folder, page, text):
    assert "are not recorded of" not in text
    for folder in run_folder.glob("*vae-*"):
        (folder / "gallery.npz").unlink()
    build_report(run_folder)
    found = Reader((run_folder / "index.html").read_text())
    (said,) = (p["text"] for p in found.all("p") if "are not recorded of" in p["text"])
    assert "not recorded of VAE, NVAE. The same `python -m benchmarks run` into this folder adds them" in said
    titles = [heading["text"] for heading in found.all("h2")]
    assert "Interpolations" in titles
    assert "What each scale holds" not in titles


def share(row, kind, value):
    details = {
        "target": f"elsewhere/{row}-0-hash",
        "batch": 32,
        "threads": 1,
        "precision": "float32",
        "operations": "C",
    }
    return {
        **dataclasses.asdict(Measurement(f"{kind}_share", value, "of the training step", None, 1)),
        "details": details,
    }


def test_the_time_of_an_image_is_broken_down(run_folder, page):
    """Milliseconds are 1,000 over the rates; shares are those that `throughput` has left."""
    assert "is not recorded. `python -m benchmarks throughput" in " ".join(p["text"] for p in page.all("p"))
    shares = [share("nvae", "convolutions", 0.7), share("nvae", "other", 0.3), share("vae", "convolutions", 1.0)]
    (run_folder / "throughput.json").write_text(json.dumps([*shares, share("vae", "regularisers", 0.0)]))
    build_report(run_folder)
    found = (run_folder / "index.html").read_text()
    (table,) = re.findall(r'aria-label="Table: Where the time goes">\s*(<table.*?</table>)', found, re.DOTALL)
    table = Reader(table)
    lines = " ".join(table.all("tbody")[0]["text"].split())
    assert (
        lines == "AE 0.909 0.152 0.303 - - - VAE 0.996 0.166 0.332 0.249 100 0 Residual VAE 3.85 0.641 1.28 0.962 - - "
        "NVAE 4.17 0.694 1.39 1.04 70 30"
    )
    assert "(batch 32, threads 1, float32, C)" in found


def test_kernels_are_shown_over_their_targets(run_folder, page):
    assert "No profile of the kernels is recorded." in " ".join(p["text"] for p in page.all("p"))
    case = {"part": "static", "kernel": "norm", "direction": "forward", "dtype": "fp32", "spills": 0}
    timed = {"kernel": "norm", "shape": [2, 3], "dtype": "float32", "device": "H100", "ops": "gpu", "gb_per_s": 900.0}
    rows = [{**case, "target": "sm_80", "registers": 40}, {**case, "target": "sm_90", "registers": 48, "barriers": 1}]
    rows += [{"part": "coverage"}, {"part": "timed", **timed, "p20_us": 4.0, "p50_us": 5.0, "p80_us": 6.0}]
    shipped = run_folder / "shipped.json"
    shipped.write_text(json.dumps(rows))
    build_report(run_folder, kernels=shipped)
    found = Reader((run_folder / "index.html").read_text())
    lines = [" ".join(line["text"].split()) for line in found.all("tr")]
    assert "norm forward fp32 40 to 48 0" in lines
    assert "norm 2x3 float32 gpu 5 [4, 6] 900" in lines
    assert "compiled for sm_80, sm_90; timed on H100" in [one["text"] for one in found.all("summary")]


def test_the_first_picture_follows_the_first_table_and_published_values_come_last(page):
    headings = [heading["text"] for heading in page.all("h2")]
    assert headings[:5] == ["Quality", "Reconstructions", "Samples", "Quality against throughput", "Quality, continued"]
    assert headings[-1] == "How it was measured"


def test_tables_are_those_of_the_run_cell_by_cell(page, suite_records):
    (part,) = tables.sections(suite_records)
    cells = [re.sub(r"\*\*", "", cell) for table in part.tables for line in table.cells.values for cell in line]
    shown = [" ".join(e["text"].split()) for e in page.found if e["tag"] == "td" or e.get("scope") == "row"]
    assert shown[: len(cells)] == cells
    bold = [e["text"] for e in page.all("b") if re.match(r"[-\d]", e["text"])]
    assert bold == re.findall(r"\*\*(.*?)\*\*", tables.markdown(part))


def test_headings_say_unit_direction_and_meaning(page):
    headings = {button["text"]: button for button in page.all("button") if "data-better" in button}
    assert headings["ELBO ↑ (nats)"]["title"].startswith("evidence lower bound per image")
    assert headings["ELBO ↑ (nats)"]["title"].endswith("in nats; higher is better")
    assert {headings[name]["data-better"] for name in ("MSE ↓ (0-1)", "Peak ↓ (MiB)")} == {"low"}
    assert headings["Params"]["data-better"] == ""
    explained = {dt["text"] for dt in page.all("dt")}
    assert {name for name in headings if "title" in headings[name]} <= explained


def test_cells_say_their_interval_and_dashes_their_reason(page):
    cells = page.all("td")
    assert {cell.get("title") for cell in cells if cell["text"] == "-"} >= {"no prior"}
    (elbo,) = (cell for cell in cells if cell["text"] == "-101.1 ± 0.9")
    assert elbo["title"] == "-102 to -100.2 (±: half the 95 % bootstrap interval over test images); n = 1,000"


def test_real_images_stay_at_the_foot_however_a_table_is_sorted(page):
    assert ["real images" in foot["text"] for foot in page.all("tfoot")] == [True]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([0.001], "VAE has collapsed: its images use no latent (0.001 nats in all)."),
        ([0.001, 5.0], "VAE: 1 of 2 groups have collapsed."),
        ([2.0, 5.0], None),
    ],
)
def test_a_collapse_is_said_in_words(tmp_path, make_record, rates, said):
    groups = [LatentGroupInfo(4, 2, 2, rate) for rate in rates]
    page = built(tmp_path, make_record(latent_groups=groups))
    assert (said or "have collapsed") not in page if said is None else said in page


def test_several_sections_share_a_page(tmp_path, make_record):
    page = Reader(built(tmp_path, make_record("a"), make_record("b", data_hash="ee" * 32)))
    assert len(page.all("h1")) == 2
    ids = [element["id"] for element in page.found if "id" in element]
    assert len(ids) == len(set(ids))


def test_charts_take_the_pages_colours_and_letters(suite_records):
    drawn = inline(charts.quality_against_speed(gather(suite_records)), "name")
    for panel in drawn.panels:
        assert re.findall("#(?:000000|ffffff|dddddd|888888)|font-family|DejaVu", panel.svg) == []
        assert "currentColor" in panel.svg
        assert "<text" in panel.svg
        assert panel.width > 200
    assert [key.text for key in drawn.keys] == ["AE", "VAE", "Residual VAE", "NVAE"]
    assert {name for panel in drawn.panels for name in re.findall('class="series s(.)"', panel.svg)} == set("0123")


def test_shapes_say_what_they_are_and_hostile_labels_stay_text(suite_records):
    hostile = dataclasses.replace(suite_records[1], label="</title><script>x</script> $a$")
    (panel,) = inline(charts.rates_by_group(gather([hostile])), "name").panels
    assert "<title>group 1 of 1 (1×1): 18 nats</title>" in panel.svg
    assert "<script" not in panel.svg
    assert "&lt;script" in panel.svg
    assert "$a$" in panel.svg


def test_lines_of_a_family_are_its_entry_in_the_legend(make_record, make_value):
    def row(name, beta, rate, distortion):
        found = [make_value("rate", rate, 0.5, unit="nats"), make_value("distortion", distortion, 0.5, unit="nats")]
        config = {"model": "vae", "objective": {"beta": beta}}
        return make_record(name, 0, found, model="vae", label=f"VAE β={beta:g}", config=config)

    figure = charts.rate_distortion(gather([row("a", 1.0, 20.0, 90.0), row("b", 4.0, 9.0, 110.0)]))
    drawn = inline(figure, "name")
    assert [key.text for key in drawn.keys] == ["VAE (numbers: beta)"]
    (panel,) = drawn.panels
    assert panel.svg.count("<title>VAE</title>") == 1
    assert "VAE, beta 4: rate 9.000 ± 0.500 nats, distortion 110.0 ± 0.5 nats" in panel.svg
