"""Parquet files of images: those of the same folder bit for bit; what is broken or meant to harm is one line."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import load
from benchmarks.data.archives import parquets
from benchmarks.data.cache import decoder

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(index):
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(first, count):
    return [{"bytes": encoded(first + index), "path": f"{index}.png"} for index in range(count)]


def write(path, images, group=4, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": list(range(len(images))), **more}), path, row_group_size=group)


def outcome(name):
    with pytest.raises(UserError) as found:
        load(name)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_files_of_a_hub_are_the_folder_of_their_images(tmp_path, monkeypatch, cache):
    """Groups of four rows, so that one task of decoding meets several."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VAEBENCH_CACHE", cache)
    hub, folder, first = tmp_path / "hub", tmp_path / "images", 0
    for split, count in (("train", 18), ("validation", 5), ("test", 7)):
        write(hub / f"data/{split}-00000-of-00001.parquet", rows(first, count))
        (folder / split).mkdir(parents=True)
        for index in range(count):
            (folder / split / f"{index:03}.png").write_bytes(encoded(first + index))
        first += count
    packed, unpacked = load(f"parquet:{hub}?size=6"), load(f"folder:{folder}?size=6")
    assert packed.content_hash == unpacked.content_hash
    assert [len(split) for split in (packed.train, packed.validation, packed.test)] == [18, 5, 7]
    assert load(f"parquet:{hub}?size=6").content_hash == packed.content_hash


def test_a_file_without_splits_is_cut_by_hash(tmp_path, monkeypatch):
    """In several processes, each of which reads several groups."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoder, "MOST_IMAGES", 8)
    write(tmp_path / "x.parquet", rows(0, 40))
    data = load(f"parquet:{tmp_path}/x.parquet")
    assert len(data.train) + len(data.validation) + len(data.test) == 40
    found = {one.numpy().tobytes() for split in (data.train, data.validation, data.test) for one in split}
    assert found == {np.asarray(Image.open(io.BytesIO(encoded(index)))).tobytes() for index in range(40)}


def test_columns_are_taken_by_name_and_kind(tmp_path):
    plain = [encoded(index) for index in range(20)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"img": plain}), path)
    usual = load(f"parquet:{path}")
    pq.write_table(pa.table({"a": plain, "b": [encoded(99)] * 20}), path)
    assert "expected ?column=NAME behind the path, one of a, b" in outcome(f"parquet:{path}")
    assert "did you mean 'b'" in outcome(f"parquet:{path}?column=bb")
    assert load(f"parquet:{path}?column=a").train.shape == usual.train.shape
    assert load(f"parquet:{path}?column=a").content_hash != load(f"parquet:{path}?column=b").content_hash
    pq.write_table(pa.table({"any": pa.array(plain, pa.large_binary())}), path)
    assert len(load(f"parquet:{path}").train) == len(usual.train)


BROKEN = {
    "no parquet": (lambda path: path.write_bytes(b"no parquet file at all" * 9), "expected a Parquet file, got"),
    "a web page": (lambda path: path.write_bytes(b"<!DOCTYPE html>" + bytes(99)), "a web page"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "no images": (
        lambda path: pq.write_table(pa.table({"text": ["a"], "label": [1]}), path),
        "found text: string, label: int64",
    ),
    "no rows": (lambda path: write(path, pa.array([], pa.binary())), "expected rows of images"),
    "no bytes": (lambda path: write(path, [*rows(0, 9), {"bytes": None, "path": "x"}]), "a row without them"),
    "no image": (lambda path: write(path, [b"text"] * 9), "expected an image file"),
    "two columns": (lambda path: write(path, rows(0, 9), img=[b"x"] * 9), None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_one_line(name, tmp_path):
    make, words = BROKEN[name]
    path = tmp_path / "x.parquet"
    make(path)
    if words is None:
        load(f"parquet:{path}")  # the usual name comes first
    else:
        assert words in outcome(f"parquet:{path}")


def test_a_file_that_is_cut_or_damaged_is_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, rows(0, 30))
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    assert "expected a Parquet file" in outcome(f"parquet:{path}")
    path.write_bytes(whole[:200] + bytes(len(whole) - 700) + whole[-500:])  # its end is whole, its pages are not
    assert str(path) in outcome(f"parquet:{path}")


def test_columns_must_agree_between_files(tmp_path):
    write(tmp_path / "a.parquet", rows(0, 9))
    pq.write_table(pa.table({"picture": [encoded(1)]}), tmp_path / "b.parquet")
    assert "expected the column 'image.bytes' of the files before, found 'picture'" in outcome(f"parquet:{tmp_path}")


def test_a_group_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write(tmp_path / "x.parquet", rows(0, 30))
    monkeypatch.setattr(parquets, "MOST_GROUP", 100)
    assert "with a smaller row_group_size" in outcome(f"parquet:{tmp_path}/x.parquet")


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install -e '.[parquet]'" in outcome(f"parquet:{tmp_path}/x.parquet")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parquet:{}/none", "no regular file there"),
        ("parquet:{}", "expected .parquet files, found none"),
        ("parquet:{}?colum=a", "did you mean 'column'"),
    ],
)
def test_wrong_names_are_one_line(name, words, tmp_path):
    assert words in outcome(name.format(tmp_path))
