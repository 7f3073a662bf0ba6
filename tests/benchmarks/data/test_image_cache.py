"""Images decoded once: from the cache they are those of memory bit for bit, and nothing damaged is believed."""

import json
import os
import re
import signal
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import content_hash, load, picked
from benchmarks.data.archives import parquets, tars
from benchmarks.data.cache import decoder, mapped, pictures, store

POSIX = pytest.mark.skipif(os.name != "posix", reason="owners and permissions as POSIX has them")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, which is on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VAEBENCH_CACHE", raising=False)
    store._say.cache_clear()
    return tmp_path / "cache/vaebench/images"


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the files that were decoded, in this process."""
    paths, decode = [], pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda path, *rest: paths.append(path) or decode(path, *rest))
    return paths


@pytest.fixture
def settled(monkeypatch):
    """Files count as of yesterday as soon as the clock has ticked."""
    monkeypatch.setattr(pictures, "RECENT", 0)


def pixels(index, colour, side=8):
    shape = (side, side, 3) if colour else (side, side)
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


def written(folder, n=24, colour=lambda index: False, side=lambda index: 8):
    """A folder of images, and its name as a data set."""
    folder.mkdir(exist_ok=True)
    for index in range(n):
        Image.fromarray(pixels(index, colour(index), side(index))).save(folder / f"{index:03}.png")
    time.sleep(0.02)  # a tick of the file system's clock
    return f"folder:{folder}"


def in_memory(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEBENCH_CACHE", "off")
        return load(name)


def facts(data):
    """All that a record or a step sees of a data set."""
    splits = [split.numpy().tobytes() for split in (data.train, data.validation, data.test)]
    return data.name, data.image, splits, data.content_hash, data.note


FOLDERS = {
    "grey": {},
    "colour": {"colour": lambda index: True},
    "one in colour": {"colour": lambda index: index == 13},
    "one in grey": {"colour": lambda index: index != 13},
    "other sizes": {"side": lambda index: 8 + index % 5, "colour": lambda index: index % 2 == 0},
}


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("kind", FOLDERS)
def test_the_cache_changes_no_bit(tmp_path, cache, kind, processes, monkeypatch):
    monkeypatch.setattr(decoder, "usable_cores", lambda: processes)
    monkeypatch.setattr(decoder, "MOST_IMAGES", 5)
    name = written(tmp_path / "images", **FOLDERS[kind]) + ("?size=6" if kind == "other sizes" else "")
    expected = in_memory(name)
    assert not cache.exists()
    first, second = load(name), load(name)
    assert facts(first) == facts(second) == facts(expected)
    assert content_hash(second.train, second.validation, second.test) == second.content_hash
    assert len(list(cache.glob("*.images"))) == 1


def test_grey_images_before_the_first_in_colour_are_widened_in_parts(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("benchmarks.data.cache.sinks.AT_ONCE", 3 * 64)
    monkeypatch.setattr(decoder, "MOST_IMAGES", 4)
    name = written(tmp_path / "images", n=40)
    Image.fromarray(pixels(0, True)).save(tmp_path / "images" / pictures_of(name)[-1])
    assert facts(load(name)) == facts(in_memory(name))
    assert "39 grey images among colour" in load(name).note


def pictures_of(name):
    """The names of a folder's files in the order of the splits."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        keep = store.images_of
        noting = lambda origin: seen.extend(origin.listed().pictures.names) or keep(origin)  # noqa: E731
        patch.setattr("benchmarks.data.files.images_of", noting)
        patch.setenv("VAEBENCH_CACHE", "off")
        load(name)
    return seen


def test_files_are_decoded_once(tmp_path, cache, decoded):
    name = written(tmp_path / "images")
    load(name)
    assert len(decoded) == 25  # the first says the size, beforehand
    decoded.clear()
    load(name)
    assert not decoded


def test_the_images_are_mapped_read_only_and_without_a_warning(tmp_path, cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(name := written(tmp_path / "images"))
        data = load(name)
    assert data.train.data_ptr() + data.train.numel() == data.validation.data_ptr()  # no copies
    maps = Path("/proc/self/maps")
    if maps.exists():
        (line,) = {line for line in maps.read_text().splitlines() if str(cache) in line and ".images" in line}
        assert line.split()[1].startswith("r--")
    assert torch.equal(data.train.clone(), in_memory(name).train)


CHANGES = {
    "another pixel": lambda folder: Image.fromarray(pixels(99, False)).save(folder / "003.png"),
    "a file less": lambda folder: (folder / "003.png").unlink(),
    "a file more": lambda folder: Image.fromarray(pixels(99, False)).save(folder / "9.png"),
    "another name": lambda folder: (folder / "003.png").rename(folder / "9.png"),
    "two swapped": lambda folder: swap(folder / "003.png", folder / "004.png"),
}


def swap(one, other):
    both = one.read_bytes(), other.read_bytes()
    for path, content in zip((other, one), both, strict=True):
        path.write_bytes(content)


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_is_another_array(tmp_path, cache, change, settled):
    name = written(tmp_path / "images")
    before = load(name)
    CHANGES[change](tmp_path / "images")
    after = load(name)
    assert facts(after) == facts(in_memory(name))
    assert after.content_hash != before.content_hash


def test_a_change_that_hides_behind_size_and_time_is_seen(tmp_path, cache, settled):
    path = tmp_path / "images/003.png"
    name = written(tmp_path / "images")
    before, old = load(name), path.stat()
    turned = path.read_bytes()
    for index in range(4, 24):  # another image of the same size in bytes
        other = (path.parent / f"{index:03}.png").read_bytes()
        if len(other) == len(turned) and other != turned:
            break
    path.write_bytes(other)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size
    assert load(name).content_hash != before.content_hash


def test_files_that_did_not_change_are_not_opened_again(tmp_path, cache, settled, monkeypatch):
    name = written(tmp_path / "images")
    expected = facts(load(name))
    monkeypatch.setattr(pictures, "_content", None)
    assert facts(load(name)) == expected


def test_files_of_this_very_moment_are(tmp_path, cache, monkeypatch):
    load(name := written(tmp_path / "images"))
    monkeypatch.setattr(pictures, "_content", None)
    with pytest.raises(TypeError):
        load(name)


def test_the_same_files_elsewhere_are_not_decoded_again(tmp_path, cache, decoded):
    load(written(tmp_path / "one"))
    decoded.clear()
    load(written(tmp_path / "two"))
    assert not decoded


def test_another_rule_and_another_decoder_have_arrays_of_their_own(tmp_path, cache, settled, monkeypatch):
    name = written(tmp_path / "images")
    for other in (name, f"{name}?size=4", f"{name}?background=black"):
        load(other)
    assert len(list(cache.glob("*.images"))) == 3
    monkeypatch.setattr("PIL.__version__", "0")
    load(name)
    assert len(list(cache.glob("*.images"))) == 4


DAMAGE = {
    "a byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a link": lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to(path.with_suffix(".x"))),
    "written by others": lambda path: path.chmod(0o666),
}


@POSIX
@pytest.mark.parametrize("kind", ["images", "json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_not_believed(tmp_path, cache, damage, kind, decoded):
    name = written(tmp_path / "images")
    expected = facts(load(name))
    (path,) = [path for path in cache.glob(f"*.{kind}") if ".source" not in path.name]
    DAMAGE[damage](path)
    decoded.clear()
    assert facts(load(name)) == expected
    if not (kind == "json" and damage == "a byte"):  # a last brace changed by one bit
        assert len(decoded) == 25
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_touched_is_hashed_and_believed(tmp_path, cache, decoded):
    name = written(tmp_path / "images")
    expected = facts(load(name))
    (path,) = cache.glob("*.images")
    os.utime(path)
    decoded.clear()
    assert facts(load(name)) == expected
    assert not decoded
    description = json.loads(path.with_suffix(".json").read_text())
    assert description["seen"][1] == path.stat().st_mtime_ns


def test_files_that_change_while_they_are_read_are_refused(tmp_path, cache, monkeypatch):
    name, decode = written(tmp_path / "images"), pictures.decode

    def changing(path, *rest):
        Image.fromarray(pixels(99, False)).save(tmp_path / "images/003.png")
        return decode(path, *rest)

    monkeypatch.setattr(pictures, "decode", changing)
    with pytest.raises(UserError, match="changed while they were read"):
        load(name)
    monkeypatch.undo()


@pytest.mark.parametrize("processes", [1, 3])
def test_the_first_file_that_is_refused_is_named_and_nothing_is_left(tmp_path, cache, processes, monkeypatch):
    monkeypatch.setattr(decoder, "usable_cores", lambda: processes)
    monkeypatch.setattr(decoder, "MOST_IMAGES", 3)
    name = written(tmp_path / "images")
    order = pictures_of(name)
    for place in (7, 20):
        (tmp_path / "images" / order[place]).write_bytes(b"no image")
    Image.fromarray(pixels(0, False, 9)).save(tmp_path / "images" / order[15])
    with pytest.raises(UserError, match=f"{order[7]}: expected an image file"):
        load(name)
    Image.fromarray(pixels(0, False)).save(tmp_path / "images" / order[7])
    with pytest.raises(UserError, match=f"{order[0]} is 8x8 and {order[15]} is 9x9"):
        load(name)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_no_room_means_memory(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("", (), {"free": 9})())
    name = written(tmp_path / "images")
    assert facts(load(name)) == facts(load(name)) == facts(in_memory(name))
    assert capsys.readouterr().err.count("held in memory") == 1
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_a_folder_that_cannot_be_written_means_memory_and_is_said_once(tmp_path, cache, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    name = written(tmp_path / "images")
    assert facts(load(name)) == facts(load(name)) == facts(in_memory(name))
    said = capsys.readouterr().err
    assert said.count("cannot be written") == said.count("\n") == 1


@POSIX
def test_a_folder_that_others_can_write_means_memory(tmp_path, cache, capsys):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    load(written(tmp_path / "images"))
    assert "can be written by others" in capsys.readouterr().err
    assert not list(cache.iterdir())


def test_the_switch_says_on_or_off(tmp_path, cache, monkeypatch):
    name = written(tmp_path / "images")
    monkeypatch.setenv("VAEBENCH_CACHE", "of")
    with pytest.raises(UserError, match="expected 'on' or 'off', got 'of'"):
        load(name)


def killed_on_the_way(name):
    """In a child: load the images, and be killed by whoever decodes the twentieth."""
    decode, loader, left = pictures.decode, os.getpid(), [20]

    def decoding(path, *rest):
        left[0] -= 1
        if not left[0]:
            os.kill(loader, signal.SIGKILL)
        return decode(path, *rest)

    pictures.decode = decoding
    try:
        load(name)
    finally:
        os._exit(1)


@POSIX
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_writer_leaves_nothing_that_is_believed(tmp_path, cache, processes, decoded, monkeypatch):
    monkeypatch.setattr(decoder, "usable_cores", lambda: processes)
    monkeypatch.setattr(decoder, "MOST_IMAGES", 40)
    name = written(tmp_path / "images", n=80)
    child = os.fork()
    if not child:
        killed_on_the_way(name)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path for path in cache.iterdir() if re.fullmatch(r"\..*\.images\..*", path.name)]
    monkeypatch.setattr(decoder, "usable_cores", lambda: 1)
    assert facts(load(name)) == facts(in_memory(name))
    assert len(decoded) == 2 * 81
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_a_process_that_is_killed_while_it_decodes_is_one_line(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(decoder, "usable_cores", lambda: 2)
    monkeypatch.setattr(decoder, "MOST_IMAGES", 10)
    name, here, decode = written(tmp_path / "images"), os.getpid(), pictures.decode
    ended = lambda path, *rest: decode(path, *rest) if os.getpid() == here else os._exit(9)  # noqa: E731
    monkeypatch.setattr(pictures, "decode", ended)
    with pytest.raises(UserError, match="a process that reads it was killed"):
        load(name)


def resident(cache):
    """Bytes of the mapped images that are in this process's memory."""
    lines, found = Path("/proc/self/smaps").read_text().splitlines(), 0
    for index, line in enumerate(lines):
        if str(cache) in line and ".images" in line:
            found += next(int(fact.split()[1]) for fact in lines[index:] if fact.startswith("Rss:")) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_pages_that_were_read_are_given_back(tmp_path, cache, monkeypatch):
    data = load(written(tmp_path / "images", n=200, side=lambda index: 128))
    order, expected = torch.randperm(len(data.train)), data.train.clone()
    held = resident(cache)
    assert held >= data.train.numel()
    for index in order.split(4):
        assert torch.equal(picked(data.train, index), expected[index])
    assert resident(cache) == held  # a small file stays
    monkeypatch.setattr(mapped, "MOST_RESIDENT", 512 << 10)
    for index in order.split(4):
        assert torch.equal(picked(data.train, index), expected[index])
        assert resident(cache) < held / 2
    assert torch.equal(picked(data.train, slice(3, 9)), expected[3:9])
    assert torch.equal(picked(expected, order), expected[order])  # those in memory
    assert picked(data.train, order[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("scheme", ["tar", "parquet"])
def test_shards_that_did_not_change_are_not_listed_again(tmp_path, cache, settled, monkeypatch, scheme):
    written(tmp_path / "images")
    path = packed(scheme, tmp_path / "images", tmp_path / f"x.{scheme}")
    first = facts(load(f"{scheme}:{path}"))
    with monkeypatch.context() as patch:
        patch.setattr(tars.Contents, "of", None)
        patch.setattr(parquets.Rows, "of", None)
        assert facts(load(f"{scheme}:{path}")) == first
        with pytest.raises(TypeError):
            load(f"{scheme}:{path}?size=4")
    (tmp_path / "images/003.png").unlink()
    time.sleep(0.02)
    packed(scheme, tmp_path / "images", path)
    changed = load(f"{scheme}:{path}")
    assert changed.note.startswith("23 files")
    assert facts(changed) == facts(in_memory(f"{scheme}:{path}"))


def packed(scheme, folder, path):
    """The images of a folder in one file."""
    files = sorted(folder.iterdir())
    if scheme == "tar":
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, file.name)
    else:
        pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), path)
    return path
