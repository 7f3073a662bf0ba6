"""Tar files of images: those of the same folder bit for bit; what is broken or meant to harm is one line."""

import gzip
import io
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import load


def encoded(index, kind="PNG"):
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def member(name, content=b"", **facts):
    """A header and its content; the header may say otherwise."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def shard(path, names, first=0, end=bytes(1024)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(member(name, encoded(first + i)) for i, name in enumerate(names)) + end)


def outcome(name):
    """What a UserError says, None where there is none; any other error is one of the test."""
    try:
        load(name)
    except UserError as error:
        return str(error)
    return None


NAMES = [f"{index:03}.png" for index in range(20)]


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_tar_file_is_the_folder_that_was_packed(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VAEBENCH_CACHE", cache)
    folder, path = tmp_path / "images", tmp_path / "x.tar"
    for split in ("train", "val", "testing"):
        (folder / split).mkdir(parents=True)
        for index, name in enumerate(NAMES[:6]):
            (folder / split / name).write_bytes(encoded(10 * len(split) + index))
    (folder / "train/0.txt").write_text("a caption")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder, "./")
    packed, unpacked = load(f"tar:{path}?size=6"), load(f"folder:{folder}?size=6")
    assert packed.content_hash == unpacked.content_hash
    assert packed.note == unpacked.note
    assert load(f"tar:{path}?size=6").content_hash == packed.content_hash
    assert "skipped: 1 .txt" in packed.note


def test_the_cut_by_hash_is_that_of_the_folder(tmp_path):
    shard(tmp_path / "x.tar", NAMES)
    (tmp_path / "images").mkdir()
    for index, name in enumerate(NAMES):
        (tmp_path / "images" / name).write_bytes(encoded(index))
    assert load(f"tar:{tmp_path}/x.tar").content_hash == load(f"folder:{tmp_path}/images").content_hash


def test_names_of_shards_name_the_splits(tmp_path):
    shard(tmp_path / "faces-train-000.tar", NAMES)
    shard(tmp_path / "faces-train-001.tar", NAMES, 20)
    shard(tmp_path / "more/faces-val-000.tar", NAMES[:7], 40)
    shard(tmp_path / "faces_test.tar", NAMES[:5], 50)
    data = load(f"tar:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 7, 5)
    last = np.asarray(Image.open(io.BytesIO(encoded(54))))
    assert np.array_equal(data.test[4, 0].numpy(), last)


def test_another_shard_is_another_array(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VAEBENCH_CACHE", "on")
    shard(tmp_path / "x.tar", NAMES)
    before = load(f"tar:{tmp_path}/x.tar")
    shard(tmp_path / "x.tar", NAMES, 1)
    assert load(f"tar:{tmp_path}/x.tar").content_hash != before.content_hash


def sparse():
    """A sparse member of 10^12 bytes, in GNU's old form."""
    raw = bytearray(member("a.png", bytes(512), type=tarfile.GNUTYPE_SPARSE))
    raw[386:410] = b"00000000000\x0000000001000\x00"
    raw[483:495] = b"77777777777\x00"
    return checked(raw)


def checked(raw):
    """The first header with its checksum."""
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    return bytes(raw)


def sized(size):
    """A member that says it has so many bytes, in base 256."""
    raw = bytearray(member("a.png", encoded(0)))
    raw[124:136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    return checked(raw)


GOOD = member("b.png", encoded(1)) + member("c.png", encoded(2)) + member("d.png", encoded(3))
HOSTILE = {
    "nothing": (b"", "an empty file"),
    "no tar": (b"no tar file at all, but some text" * 99, "expected an uncompressed tar file"),
    "a web page": (b"<!DOCTYPE html>" + bytes(2000), "a web page"),
    "compressed": (gzip.compress(GOOD), "one compressed by gzip; unpack it"),
    "no images": (member("a.txt", b"x") + member("b.json", b"x") + bytes(1024), "found 1 .json, 1 .txt"),
    "only links": (member("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "found 1 links and devices"),
    "a device": (member("a.png", type=tarfile.CHRTYPE), "found 1 links and devices"),
    "only hidden": (member("../a.png", encoded(0)), "found 1 hidden"),
    "cut in a picture": (GOOD[:-512], "that should have"),
    "cut in a header": (GOOD + GOOD[:100], "a damaged header at byte 3,072"),
    "damaged on the way": (GOOD[:1024] + b"?" + GOOD[1025:], "a damaged header at byte 1,024"),
    "two of one name": (GOOD + GOOD, "b.png: expected plain members of different names"),
    "sparse": (sparse() + GOOD, "a sparse member"),
    "10^15 bytes": (sized(10**15) + GOOD, "a picture of 1,000,000,000,000,000 bytes"),
    "a negative size": (sized(-1024) + GOOD, "expected an uncompressed tar file"),
    "a long name": (member("x", b"a" * (1 << 21), type=tarfile.GNUTYPE_LONGNAME) + GOOD, "a header of 2,097,"),
    "long attributes": (member("x", b"9 a=bcde\n" * (1 << 18), type=tarfile.XHDTYPE) + GOOD, "a header of 2,359,"),
    "no image": (GOOD + member("a.png", b"no image") + bytes(1024), "a.png: expected an image file"),
    "a program": (GOOD + member("a.png", b"%!PS-Adobe-3.0\n") + bytes(1024), "no known format"),
    "a pointer": (GOOD + member("a.png", b"version https://git-lfs") + bytes(1024), "a pointer of Git LFS"),
    "a cut image": (GOOD + member("a.png", encoded(0)[:-30]) + bytes(1024), "a.png: expected an image file"),
    "a name that moves the cursor": (GOOD + member("\x1b[31m.png", b"x") + bytes(1024), "\\x1b[31m"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_tar_of_images_is_one_line(tmp_path, kind):
    content, words = HOSTILE[kind]
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError) as error:
        load(f"tar:{tmp_path}/x.tar")
    said = str(error.value)
    assert words in said
    assert f"{tmp_path}/x.tar" in said
    assert said.isprintable()
    assert len(said) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_missing_or_an_empty_place_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load(f"tar:{tmp_path}/x.tar")
    with pytest.raises(UserError, match=r"found 0 \.tar files"):
        load(f"tar:{tmp_path}")


def test_damaged_bytes_give_images_or_one_line(tmp_path):
    """Two hundred files with some bytes changed or cut, by a fixed seed."""
    whole, chance, path = GOOD + bytes(1024), random.Random(0), tmp_path / "x.tar"
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(2):
            damaged[chance.choice((0, 1024, 2048)) % len(damaged) + chance.randrange(512)] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        said = outcome(f"tar:{path}")
        assert said is None or said.isprintable()
