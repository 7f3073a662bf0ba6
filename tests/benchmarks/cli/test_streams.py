"""Files in the place of others, pipes that close, encodings that lack a character, folders that hide ours."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.base import children
from benchmarks.base.errors import UserError
from benchmarks.cli.parser import run_command
from benchmarks.data import cache_folder
from benchmarks.report.layout import markdown, stack
from benchmarks.trials.child import Child

ROOT = Path(__file__).resolve().parents[3]


def called(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, env=environment, text=True, timeout=60, **options)


def whole_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


FILES = {
    "page.pt": (b"<!DOCTYPE html><html>Sign in</html>", "got a web page"),
    "page.safetensors": (b"\xef\xbb\xbf\n<HTML>", "got a web page"),
    "error.pt": (b'<?xml version="1.0"?><Error/>', "got an XML document"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "empty.pt": (b"", "got an empty file"),
    "plain.pt": (pickle.dumps({"a": 1}), "expected a readable safetensors file"),
    "whole.pt": (whole_module, "torch.nn.modules.linear.Linear, and these are not run; save the model's state_dict()"),
}


@pytest.mark.parametrize("verb", ["evaluate", "sample", "convert"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path, capsys, name, verb):
    content, said = FILES[name]
    if callable(content):
        content(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    arguments = [verb, str(tmp_path / name), *([str(tmp_path / "out")] if verb == "convert" else [])]
    assert run_command(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "\x1b" not in error


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"{", b"null", b'{"suite": 1}'])
def test_a_damaged_config_is_one_line(tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content)
    assert run_command(["evaluate", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(buffered):
    reading, writing = os.pipe()
    os.close(reading)
    done = called("list", "models", stdout=writing, stderr=subprocess.PIPE, env={"PYTHONUNBUFFERED": buffered})
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = called("list", "models", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.skipif(os.name != "posix", reason="descriptors are POSIX")
def test_a_closed_output_is_no_error():
    done = called("list", "models", stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_encoding_lacks_is_replaced(tmp_path):
    code = "from benchmarks.base import output; output.allow_any_encoding(); print('1 ± 2 ↑')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("1 ? 2 ?\n", "")


@pytest.mark.parametrize("package", ["models", "kernels"])
def test_a_folder_of_the_user_hides_none_of_ours(tmp_path, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('not ours')")
    done = called("list", "models", cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nor_from_a_plugin_and_from_children(tmp_path):
    for package in ("models", "kernels", "benchmarks"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('not ours')")
    (tmp_path / "mine.py").write_text("import models.fields\nprint(models.fields.__file__)\n")
    code = "from benchmarks.cli.parser import run_command; run_command(['list', 'models', '--plugin', 'mine'])"
    environment = {**children.environment(1), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == str(ROOT / "models" / "fields.py")
    command = [sys.executable, "-m", "benchmarks", "list", "metrics"]
    done = subprocess.run(command, env=children.environment(1), cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_distribution_is_named_with_the_exit_code_of_bad_input(tmp_path):
    for folder in ("models", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = called("list", "models", capture_output=True, cwd=tmp_path / "here", env=path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another distribution provides 'models'" in done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import os, sys; print('fine', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)",
            "where memory runs out",
        ),
        ("import os; os._exit(137)", "memory runs out; use fewer --jobs, a smaller batch_size"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit('error: out of luck')", "^out of luck$"),
    ],
)
def test_why_a_child_ended(code, said):
    with pytest.raises(UserError, match=said):
        children.output_of([sys.executable, "-c", code], os.environ)


def test_what_a_child_says_besides_progress_is_let_pass():
    class Watchers:
        def __init__(self):
            self.seen = []

        def tell(self, event):
            self.seen.append((event.phase, event.done, event.total, event.seen))

    child, watchers = Child.__new__(Child), Watchers()
    event = json.dumps({"phase": "train", "done": 1, "total": 2})
    reached = []
    child.planned = type("Planned", (), {"name": "vae"})
    child.claim = type("Claim", (), {"reached": lambda self, *progress: reached.append(progress)})()
    child.process = type("Process", (), {"stdout": ["a plugin's print\n", "3\n", event + "\n", event[:9]]})
    child._read(watchers)
    assert watchers.seen == [("train", 1, 2, {})]
    assert reached == [("train", 1, 2)]


def test_a_bar_in_a_name_breaks_no_table():
    table = pd.DataFrame({"Model": ["a|b"], "x|y": ["1"]})
    head, rule, row = markdown(table).splitlines()
    assert head == r"| Model | x\|y |"
    assert row == r"| a\|b  |    1 |"
    assert len({len(line) for line in (head, rule, row)}) == 1
    assert [list(part.columns) for part in stack(table)] == [["Model", "x|y"]]


def test_without_a_home_the_cache_is_temporary(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder("data").parts[-2:] == ("vaebench", "data")
    assert cache_folder("data").is_absolute()


def test_profiling_interpreted_kernels_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_command(["profile", "--static", "--figure", str(tmp_path / "figure.png")]) == 2
    assert "unset it to profile" in capsys.readouterr().err
