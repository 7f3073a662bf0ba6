"""Export: a folder that a model hub takes, and that every verb takes back; and what `push` refuses."""

import dataclasses
import json
import re
import shutil
import socket
import sys
import types

import pytest
from tiny_run import write_suite

from benchmarks.cli.parser import run_command
from benchmarks.records.record import load_record, save_record
from benchmarks.report.hub.card import card
from benchmarks.storage.weights import write_config
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials.trial import run_trial

FILES = ["README.md", "config.json", "model.safetensors", "reconstructions.png", "record.json", "samples.png"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trial's folder, trained in this process."""
    folder = tmp_path_factory.mktemp("run")
    (trial,) = build_suite(*read_suite(str(write_suite(folder, images=16))), ["vae"]).trials
    place = folder / "out" / "vae-seed0-0123456789ab"
    write_config(trial, place)
    assert run_trial(place).status == "done"
    return place


@pytest.fixture(scope="module")
def exported(trained):
    """What `export` makes of it."""
    out = trained.parent.parent / "hub"
    assert run_command(["export", str(trained), str(out), "--license", "mit"]) == 0
    return out


def test_files_of_an_export(trained, exported):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    for name, source in (("model.safetensors", "weights.safetensors"), ("record.json", "record.json")):
        assert (exported / name).read_bytes() == (trained / source).read_bytes()
    assert (exported / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert not list(exported.parent.glob(".*"))


@pytest.mark.parametrize("source", ["folder", "record", "row"])
def test_what_is_exported_may_be_named_in_three_ways(trained, exported, tmp_path, source):
    named = {"folder": trained, "record": trained / "record.json", "row": trained.parent / "vae"}[source]
    (tmp_path / "hub").mkdir()  # an empty folder is as good as none
    assert run_command(["export", str(named), str(tmp_path / "hub"), "--license", "mit"]) == 0
    for name in FILES:
        assert (tmp_path / "hub" / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "--n", "4", "--out", "OUT.png"),
        ("reconstruct", "0", "1", "--out", "OUT.png"),
        ("traverse", "0", "--units", "2", "--steps", "3", "--out", "OUT.png"),
        ("interpolate", "0", "1", "--steps", "3", "--out", "OUT.png"),
        ("encode", "--n", "4", "--out", "OUT.safetensors"),
        ("evaluate", "--json"),
        ("convert", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_every_verb_takes_the_folder_back(trained, exported, tmp_path, capsys, words):
    """It gives the same as the trial's own folder, byte for byte."""
    said, files = [], []
    for name, folder in (("one", trained), ("two", exported)):
        rest = [word.replace("OUT", str(tmp_path / name)) for word in words[1:]]
        assert run_command([words[0], str(folder), *rest]) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
        made = sorted(path for start in tmp_path.glob(f"{name}*") for path in (start, *start.rglob("*")))
        files.append([path.read_bytes() for path in made if path.is_file()])
    assert said[0] == said[1]
    assert files[0] == files[1]
    assert said[0] or files[0]


def front(text):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; pip install -e '.[hub]'")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_the_record_holds(exported, trained):
    text, record = (exported / "README.md").read_text(), load_record(trained)
    head = front(text)
    assert (head["license"], head["library_name"], head["tags"]) == ("mit", "vaebench", ["vaebench", "vae"])
    assert "datasets" not in head  # of the user's own: the hub knows no such name
    assert str(trained.parent.parent) not in text
    (result,) = head["model-index"][0]["results"]
    assert result["task"]["type"] == head["pipeline_tag"] == "unconditional-image-generation"
    found = {one["type"]: one for one in result["metrics"]}
    elbo = record.get("elbo")
    assert found["elbo"]["value"] == elbo.value
    assert found["elbo"]["args"] == {
        "unit": "nats",
        "n": 40,
        "low": elbo.low,
        "high": elbo.high,
        "interval": "bootstrap 95%",
    }
    assert {"rate", "distortion", "iwae_bound", "mse", "psnr"} < set(found)
    assert not {"peak_memory", "bits_per_dim", "fid"} & set(found)  # of the machine, or without a value
    assert "| elbo ↑" in text
    assert "peak_memory" in text
    assert "40 test images, seed 0" in text
    assert f"| {record.environment.torch} " in text
    assert "![Samples from the prior, not selected](samples.png)" in text


def test_the_hubs_own_parser_reads_the_card(exported):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed; pip install -e '.[hub]'")
    loaded = hub.ModelCard.load(exported / "README.md")
    assert loaded.data.model_name == "vae"
    results = {one.metric_type: one for one in loaded.data.eval_results}
    assert results["elbo"].dataset_split == "test"
    assert results["elbo"].metric_args["n"] == 40
    assert loaded.data.library_name == "vaebench"


NASTY = 'a "b": {c} <script> # ![x](y) | é \U0001f600'


def test_a_label_breaks_neither_card_nor_metadata(make_record, make_value):
    record = make_record("vae", label=NASTY, data="mnist", notes=[NASTY], measurements=[make_value("elbo", -1.0)])
    text = card(record, NASTY, {})
    head = front(text)
    assert head["license"] == NASTY
    assert head["datasets"] == ["mnist"]
    body = text.split("---\n")[2]
    assert not re.search(r"(?<!\\)<script>", body)
    assert "![x](" not in body


@pytest.fixture
def refused(capsys):
    """The one line that a command is refused with."""

    def call(*words):
        code = run_command([str(word) for word in words])
        said = capsys.readouterr()
        assert (code, said.out, said.err.count("\n")) == (2, "", 1)
        return said.err

    return call


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_trial_without_an_end_is_not_exported(trained, tmp_path, refused, status):
    save_record(dataclasses.replace(load_record(trained), status=status), tmp_path / "trial")
    assert f"one that is {status}" in refused("export", tmp_path / "trial", tmp_path / "out")


def test_damaged_weights_are_not_exported(trained, tmp_path, refused):
    folder = tmp_path / "trial"
    shutil.copytree(trained, folder)
    raw = bytearray((folder / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(raw)
    assert "damaged on disk" in refused("export", folder, tmp_path / "out")
    (folder / "weights.safetensors").unlink()
    assert "found none" in refused("export", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(trained, exported, refused):
    before = {path: path.read_bytes() for path in exported.iterdir()}
    assert "expected a new or an empty folder" in refused("export", trained, exported)
    assert before == {path: path.read_bytes() for path in exported.iterdir()}


def test_a_disk_that_is_full_leaves_nothing(trained, tmp_path, monkeypatch, refused):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("benchmarks.report.hub.folder.png", full)
    assert "No space left" in refused("export", trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Hub(types.ModuleType):
    """The hub's package; `answer` is raised by the upload."""

    def __init__(self, token="token", answer=None):
        super().__init__("huggingface_hub")
        self.token, self.answer, self.calls = token, answer, []

    def get_token(self):
        return self.token

    def HfApi(self):  # noqa: N802
        return self

    def create_repo(self, repo, **how):
        self.calls.append((repo, how))

    def upload_folder(self, **how):
        if self.answer is not None:
            raise self.answer
        self.calls.append(how)


@pytest.fixture
def hub(monkeypatch):
    def install(*arguments, **fields):
        monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(*arguments, **fields))
        return sys.modules["huggingface_hub"]

    return install


def test_push_uploads_what_was_exported(exported, hub, capsys):
    package = hub()
    assert run_command(["push", str(exported), "me/vae", "--private"]) == 0
    (repo, how), upload = package.calls
    assert (repo, how["private"]) == ("me/vae", True)
    assert (upload["repo_id"], upload["folder_path"]) == ("me/vae", exported)
    assert "huggingface.co/me/vae" in capsys.readouterr().err


def test_push_refuses_in_one_line(exported, hub, refused, monkeypatch):
    assert "expected a repository as OWNER/NAME, got 'vae'" in refused("push", exported, "vae")
    hub(token=None)
    assert "hf auth login" in refused("push", exported, "me/vae")
    hub(answer=RuntimeError("403 Forbidden\nyou may not"))
    assert "the hub did not take it: 403 Forbidden; try again" in refused("push", exported, "me/vae")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install -e '.[hub]'" in refused("push", exported, "me/vae")


def test_export_calls_no_network(trained, tmp_path, monkeypatch):
    def forbidden(*arguments, **fields):
        raise AssertionError("a network")

    monkeypatch.setattr(socket, "socket", forbidden)
    assert run_command(["export", str(trained), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["row"] == "vae"
    assert 'license: "unknown"' in (tmp_path / "out" / "README.md").read_text()
