"""The README and the pages under docs/: what they tell a reader to do is done here, and the site is built."""

import argparse
import os
import re
import runpy
import subprocess
import sys

import pages
import pytest

from benchmarks.cli.parser import build_parser
from benchmarks.data.registry import DATA_SETS
from benchmarks.metrics.extractors import EXTRACTORS
from benchmarks.metrics.on_features import ON_FEATURES
from benchmarks.metrics.reconstruction import PER_IMAGE
from benchmarks.records.catalogue import METRICS
from benchmarks.report.columns import MORE_QUALITY
from models.registry import MODELS

RUN = ("python", "sh")
SITE = ("index.html", "tour.html", "add-a-model.html", "protocol.html", "search/search_index.json")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Someone in an empty folder; what their modules put into registries is taken out again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(pages.ROOT), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    registries = (MODELS, DATA_SETS, EXTRACTORS, METRICS, PER_IMAGE, ON_FEATURES)
    kept = [(registry, registry.copy()) for registry in registries]
    columns = MORE_QUALITY.copy()
    forget_modules()  # other tests have plugins of the same names
    yield pages.Reader(tmp_path)
    MORE_QUALITY[:] = columns
    for registry, before in kept:
        registry.clear()
        registry.update(before)
    forget_modules()


def forget_modules():
    """Let the modules that pages write be imported anew."""
    for page in pages.PAGES:
        for block in pages.blocks(page):
            sys.modules.pop(block.title.removesuffix(".py"), None)


def followed(reader, page, slow):
    """Follow a page, or what of it is quick; blocks that this machine cannot run are skipped, and said."""
    done, lacking = [], []
    for block in pages.blocks(page):
        if block.not_run or (block.slow and not slow):
            done.append(None)
            continue
        if why := [why for need in block.needs if (why := pages.lacking(need))]:
            lacking += why
            done.append(None)
        elif block.title != "prints" or done[-1]:
            reader.follow(block)
            done.append(block)
    assert [block for block in done if block] or lacking
    if lacking:
        pytest.skip(f"the rest was run; {lacking[0]}")


def with_blocks(slow):
    """The pages that have something to run, quick or slow."""
    runs = {page: [b for b in pages.blocks(page) if b.language in RUN and not b.not_run] for page in pages.PAGES}
    return [page for page, found in runs.items() if any(block.slow == slow for block in found)]


@pytest.mark.parametrize("page", with_blocks(slow=False))
def test_what_a_page_says_can_be_done(reader, page):
    followed(reader, page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks(slow=True))
def test_what_a_page_says_can_be_done_to_its_end(reader, page):
    followed(reader, page, slow=True)


def test_every_block_is_run_or_says_why_not():
    for page in pages.PAGES:
        assert pages.PAGES[page].read_text().count("```") == 2 * len(pages.blocks(page)), page
        for block in pages.blocks(page):
            assert block.language in (*RUN, "text", "toml"), f"{page}: {block}"
            assert block.language != "toml" or block.title, f"{page}: {block}"
            assert all(mark == "slow" or mark.startswith(("needs ", "not run: ")) for mark in block.marks), block.marks


def test_what_is_printed_is_compared():
    pages.shows("a  1.25\nb\nc 3", "a 7\n...\nc 1,000")
    for wrong in ("c 1\na 1", "d", "a b"):
        with pytest.raises(AssertionError, match="expected after line"):
            pages.shows("a  1.25\nb\nc 3", wrong)


def test_the_synopsis_of_the_readme_has_all_verbs_and_no_flag_that_is_none():
    text = re.search(r"## Commands\n+```text\n(.*?)```", pages.PAGES["README.md"].read_text(), re.S)[1]
    (verbs,) = (a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    named, verb = set(), ""
    for line in text.splitlines():
        line = line.removeprefix("torchrun --nproc-per-node=N -m ")
        if found := re.match(r"(?:python -m )?benchmarks (\w+)", line):
            verb = found[1]
            named.add(verb)
        known = {flag for one in ("interpolate", "reconstruct", verb) for flag in verbs[one]._option_string_actions}
        assert set(re.findall(r"--[\w-]+", line)) <= known, line
    assert named == set(verbs) - {"trial"}


def test_suites_and_files_of_the_readme_exist():
    text = pages.PAGES["README.md"].read_text()
    suites = {path.stem for path in (pages.ROOT / "benchmarks" / "suites").glob("*.toml")}
    assert suites <= set(re.findall(r"^\| `([\w-]+)`", text, re.M))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (pages.ROOT / path).exists(), target
        headings = re.findall(r"^#+ (.+)$", (pages.ROOT / path).read_text(), re.M) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_the_first_example_is_short():
    (example, *_) = (block for block in pages.blocks("README.md") if block.language == "python")
    assert len(example.body.strip().splitlines()) <= 13


def test_an_absent_plugin_is_one_line(tmp_path):
    absent = [sys.executable, "-m", "benchmarks", "list", "models", "--plugin", "absent"]
    result = subprocess.run(absent, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --plugin absent")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("material", reason="mkdocs-material is not installed (pip install -e '.[docs]')")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    result = subprocess.run(build, cwd=pages.ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return out


def test_the_site_is_whole(site):
    assert [name for name in SITE if not (site / name).exists()] == []
    built = {path.stem for path in site.glob("*.html")} - {"404"}
    assert built == {path.stem for path in (pages.ROOT / "docs").glob("*.md")}


def test_links_into_the_repository_lead_there_or_are_text(caplog):
    links = runpy.run_path(str(pages.ROOT / "docs" / "site_links.py"))
    text = (
        "see [the file](../models/elbo.py#L3), ![a picture](../x.png), [a page](speed.md) and [nothing](../absent.py)"
    )
    plain, linked = (links["LINK"].sub(links["replacer"]("a.md", url), text) for url in (None, "https://host/us/"))
    assert plain == "see the file, ![a picture](../x.png), [a page](speed.md) and nothing"
    assert "[the file](https://host/us/blob/main/models/elbo.py#L3)" in linked
    assert [record.getMessage() for record in caplog.records] == [
        "a.md: expected a file of the repository, got a link to absent.py"
    ] * 2


def test_the_site_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", path.read_text())
        assert len(loaded) > 3
        assert [address for address in loaded if re.match(r"(?:https?:)?//", address)] == []
