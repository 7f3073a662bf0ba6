"""The compiled library in the cache: checked before it is loaded, rebuilt once, done without where it cannot be had.

What is compiled here is one small file in place of the kernels, which takes a tenth of a second.
"""

import _ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernels.cpu import build, library

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and permissions as POSIX has them")
needs_compiler = pytest.mark.skipif(library.compiler() is None, reason="needs a C compiler")
ANSWER = 7


def declared(loaded):
    """The library, where it has what the small source has; AttributeError where it has not."""
    assert loaded.vaebench_answer
    return loaded


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and a small source in place of the kernels'."""
    source = tmp_path / "small.c"
    source.write_text(f"int vaebench_answer(void) {{ return {ANSWER}; }}\n")
    monkeypatch.setattr(library, "SOURCES", (source,))
    monkeypatch.setattr(library, "HEADERS", ())
    monkeypatch.setattr(library, "declared", declared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache/vaebench/native"


def loaded():
    """The answer of the library as a new process would load it, or None; and the note. It is unloaded again."""
    found = library.load.__wrapped__()
    assert "\n" not in found.note
    if found.library is None:
        return None, found.note
    answer = found.library.vaebench_answer()
    _ctypes.dlclose(found.library._handle)
    return answer, found.note


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def named_by_its_content(path):
    """The file under the name that its content asks for: whole, but none of ours."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[: build.DIGITS]
    return path.rename(path.with_name(f"{path.stem.partition('-')[0]}-{digest}.so"))


def compiled(path, code):
    source = path.with_suffix(".c")
    source.write_text(code)
    path.unlink()
    subprocess.run([library.compiler(), "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    source.unlink()


def foreign(path):
    """A library that leaves a file behind where it is loaded."""
    opened = f'fclose(fopen("{path.parent.parent / "ran"}", "w"));'
    compiled(path, f"#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ {opened} }}\n")


def without_symbols(path):
    compiled(path, "int other(void) { return 1; }\n")
    named_by_its_content(path)


def garbage_of_the_right_name(path):
    path.write_bytes(b"no library")
    named_by_its_content(path)


def written_by_others(path):
    foreign(path)
    named_by_its_content(path).chmod(0o777)


def linked(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


DAMAGE = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "garbage of the right name": garbage_of_the_right_name,
    "without the symbols": without_symbols,
    "foreign code": foreign,
    "written by others": written_by_others,
    "a link": linked,
}


@needs_compiler
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_library_that_is_not_what_was_built_is_built_again(cache, kind):
    assert loaded() == (ANSWER, "")
    (name,) = files(cache)
    damaged = cache / name
    DAMAGE[kind](damaged)
    assert loaded() == (ANSWER, "")
    assert [found for found in files(cache) if found.endswith(".so")] == [name]
    assert not damaged.is_symlink()
    assert not (cache.parent / "ran").exists()


@needs_compiler
def test_a_library_that_is_whole_is_not_built_again(cache, monkeypatch):
    assert loaded() == (ANSWER, "")
    monkeypatch.setattr(library, "build", None)
    assert loaded() == (ANSWER, "")
    assert cache.stat().st_mode & 0o777 == 0o700


def give_away(folder):
    if os.getuid() != 0:
        pytest.skip("only root gives folders away")
    os.chown(folder, 12345, 12345)


def a_file(folder):
    shutil.rmtree(folder.parents[1])
    folder.parents[1].write_text("")


FOLDERS = {
    "written by others": (lambda folder: folder.chmod(0o777), "can be written by others"),
    "owned by another": (give_away, "can be written by others"),
    "a file": (a_file, "cannot be written"),
}


@needs_compiler
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_not_the_users_alone_is_left_for_another(cache, tmp_path, kind):
    loaded()
    change, words = FOLDERS[kind]
    change(cache)
    answer, note = loaded()
    assert answer == ANSWER
    assert f"{cache} {words}" in note
    (private,) = (tmp_path / "temporary").iterdir()
    assert str(private) in note
    assert private.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_of_its_own_the_plain_path_is_taken(cache, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "small.c"))
    answer, note = loaded()
    assert answer is None
    assert note.count("cannot be written") == 2 or library.compiler() is None


def calls(tmp_path):
    return (tmp_path / "calls").read_text().count("call")


FAILING = {
    "fails": ("echo 'no such target' >&2; exit 1", "no such target"),
    "says much": ("/usr/bin/head -c 30000000 /dev/zero; exit 1", "could not build them"),
    "moves the cursor": ("printf 'bad \\033[31m\\n' ; exit 1", "bad ?[31m"),
    "writes nothing": ("exit 0", "could not build them"),
    "hangs": ("/bin/sleep 1000 & wait", "it took longer than"),
    "dies": ("kill -9 $$", "could not build them"),
}


@pytest.fixture
def fake(cache, tmp_path, monkeypatch):
    """Makes a shell script the compiler, which counts its calls."""

    def make(script):
        path = tmp_path / "cc"
        path.write_text(f"#!/bin/sh\necho call >> {tmp_path / 'calls'}\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(library, "compiler", lambda: str(path))
        monkeypatch.setattr(build, "SECONDS", 1.0)

    return make


@pytest.mark.parametrize("kind", FAILING)
def test_a_compiler_that_builds_nothing_is_asked_once(cache, fake, tmp_path, kind):
    script, words = FAILING[kind]
    fake(script)
    answer, note = loaded()
    assert answer is None
    assert words in note
    assert len(note) < 500 + build.MOST_SAID
    asked, started = calls(tmp_path), time.monotonic()
    again = loaded()[1]
    assert words in again
    assert "remove" in again
    assert calls(tmp_path) == asked
    assert time.monotonic() - started < build.SECONDS / 2
    assert [Path(name).suffix for name in files(cache)] == [".failed"]


def test_what_hangs_is_ended_with_all_that_it_began(fake, tmp_path):
    fake(f"/bin/sleep 1000 &\necho $! > {tmp_path / 'child'}\nwait")
    loaded()
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    for _ in range(50):
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the compiler's child goes on")


def test_a_failure_is_forgotten_after_a_day_and_with_another_compiler(cache, fake, tmp_path):
    fake("exit 1")
    loaded()
    asked = calls(tmp_path)
    (memory,) = cache.iterdir()
    os.utime(memory, (time.time() - build.REMEMBERED - 9,) * 2)
    loaded()
    assert calls(tmp_path) == 2 * asked
    fake("exit 2 # another")
    loaded()
    assert calls(tmp_path) == 3 * asked


def test_a_failure_of_a_day_to_come_is_forgotten(cache, fake, tmp_path):
    """As a clock leaves it that was set back."""
    fake("exit 1")
    loaded()
    asked = calls(tmp_path)
    (memory,) = cache.iterdir()
    os.utime(memory, (time.time() + build.REMEMBERED + 9,) * 2)
    loaded()
    assert calls(tmp_path) == 2 * asked


@needs_compiler
def test_two_processes_that_build_at_once_both_have_it(cache, tmp_path):
    code = (
        "import sys, pathlib; from kernels.cpu.build import build, place; folder, *command = sys.argv[1:]; "
        "print(build(command, [[]], place([pathlib.Path(folder)], 'both')))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(cache),
        library.compiler(),
        "-shared",
        "-fPIC",
        str(tmp_path / "small.c"),
    ]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    built = [Path(one.communicate(timeout=60)[0].strip()) for one in both]
    assert [path.stem for path in built] == [f"both-{build.content_hash(path)}" for path in built]
    assert set(files(cache)) == {path.name for path in built}
