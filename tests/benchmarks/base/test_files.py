"""Files are whole or absent, and readable by whom the umask lets."""

import os

import pytest

from benchmarks.base.files import sweep, write_bytes_atomically, write_text_atomically


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_bytes_atomically(path, b"old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("benchmarks.base.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        for _ in range(2):  # a new file, and one in another's place
            write_text_atomically(tmp_path / "deep" / "table.md", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "table.md").stat().st_mode & 0o777 == mode


def test_what_dead_processes_left_half_written_is_swept(tmp_path):
    host, dead = os.uname().nodename, os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    names = {
        f".weights.safetensors.{host}.{dead}.0123abcd": False,
        f".weights.safetensors.{host}.{os.getpid()}.0123abcd": True,  # of a process that works
        f".weights.safetensors.elsewhere.{dead}.0123abcd": True,
        ".record.json.0123abcd": True,  # of an early version, and fresh
        ".record.json.4567abcd": False,  # a week old
        "record.json": True,
        ".claim.lock": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    for name in ("record.json", ".claim.lock", ".record.json.4567abcd"):
        os.utime(tmp_path / name, (0, 0))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
    sweep(tmp_path / "missing")
