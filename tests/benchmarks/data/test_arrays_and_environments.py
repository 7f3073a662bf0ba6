"""Arrays of bytes and LMDB environments: the images they hold bit for bit, and one line for what is broken."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import load

RNG = np.random.default_rng(0)
COLOUR, GREY = RNG.integers(0, 256, (30, 6, 6, 3), np.uint8), RNG.integers(0, 256, (12, 6, 6), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VAEBENCH_CACHE", raising=False)


def outcome(name):
    """What a UserError says, None where there is none; any other error is one of the test."""
    try:
        load(name)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("array", [COLOUR, GREY])
def test_an_array_is_the_data_set_that_it_is_in_memory(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    mapped, in_memory = load(f"npy:{tmp_path}/x.npy"), load(f"npz:{tmp_path}/x.npy")
    assert mapped.content_hash == in_memory.content_hash
    assert torch.equal(mapped.train, in_memory.train)


def test_names_of_arrays_name_the_splits_and_rows_keep_their_order(tmp_path):
    np.save(tmp_path / "imagenet-train.npy", COLOUR)
    np.save(tmp_path / "imagenet-valid.npy", COLOUR[::-1][:11])
    np.save(tmp_path / "imagenet_test.npy", COLOUR[:3])
    data = load(f"npy:{tmp_path}")
    for split, expected in (("train", COLOUR), ("validation", COLOUR[::-1][:11]), ("test", COLOUR[:3])):
        assert np.array_equal(getattr(data, split).permute(0, 2, 3, 1).numpy(), expected)


WRONG = {
    "float": (COLOUR / 255, "got float64"),
    "channels first": (COLOUR.transpose(0, 3, 1, 2).copy(), "with 1 or 3 channels last"),
    "rows": (COLOUR.reshape(30, -1), "got uint8 (30, 108)"),
    "binary": (GREY // 128, "got zeros and ones"),
    "fortran": (np.asfortranarray(COLOUR), "expected an array"),
    "none": (COLOUR[:0], "expected an array"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_arrays_are_one_line(tmp_path, kind):
    array, said = WRONG[kind]
    np.save(tmp_path / "x.npy", array)
    assert said in outcome(f"npy:{tmp_path}/x.npy")


def test_what_is_no_array_is_one_line(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\1\0" + bytes(40))
    assert "expected an .npy file" in outcome(f"npy:{tmp_path}/x.npy")
    assert "expected an .npy file" in outcome(f"npy:{tmp_path}/y.npy")
    (tmp_path / "empty").mkdir()
    assert "found none" in outcome(f"npy:{tmp_path}/empty")
    np.save(tmp_path / "x.npy", COLOUR)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    assert "cut short" in outcome(f"npy:{tmp_path}/x.npy")


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def environment(path, values, subdir=True):
    """An environment of these values by their keys."""
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (extra 'lmdb')")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 24, subdir=subdir) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return path


def numbered(images):
    return {str(index).encode(): png(image) for index, image in enumerate(images)}


def test_values_are_images_in_the_order_of_their_numbers(tmp_path):
    environment(tmp_path / "train.lmdb", numbered(COLOUR) | {b"__len__": b"30"})
    environment(tmp_path / "church_outdoor_val_lmdb", numbered(COLOUR[:12]))
    environment(tmp_path / "test.lmdb", numbered(COLOUR[5:9]), subdir=False)
    data = load(f"lmdb:{tmp_path}")
    for split, expected in (("train", COLOUR), ("validation", COLOUR[:12]), ("test", COLOUR[5:9])):
        assert np.array_equal(getattr(data, split).permute(0, 2, 3, 1).numpy(), expected)
    assert "skipped: 1 other values" in data.note


def test_keys_that_are_no_numbers_have_the_order_of_their_bytes(tmp_path):
    for split, images in (("train", COLOUR), ("val", COLOUR[:2]), ("test", COLOUR[:2])):
        environment(tmp_path / split, {f"a{index}".encode(): png(image) for index, image in enumerate(images)})
    order = sorted(range(len(COLOUR)), key=str)
    assert np.array_equal(load(f"lmdb:{tmp_path}").train.permute(0, 2, 3, 1).numpy(), COLOUR[order])


def test_pixels_without_a_format_are_taken_where_that_is_said(tmp_path):
    path = environment(tmp_path / "faces", {str(i).encode(): image.tobytes() for i, image in enumerate(COLOUR)})
    assert "?raw=N" in outcome(f"lmdb:{path}")
    raw = load(f"lmdb:{path}?raw=6")
    np.save(tmp_path / "x.npy", COLOUR)
    assert raw.content_hash == load(f"npy:{tmp_path}/x.npy").content_hash
    assert "?raw=N" in outcome(f"lmdb:{path}?raw=7")


def test_an_environment_that_crashes_its_reader_is_one_line(tmp_path):
    path = environment(tmp_path / "faces", numbered(COLOUR)) / "data.mdb"
    whole = path.read_bytes()
    for size in (len(whole) - 4096, 3 * 4096, 4096, 100, 0):
        path.write_bytes(whole[:size])
        assert str(tmp_path) in (outcome(f"lmdb:{tmp_path}/faces") or "")
    for seed in range(12):
        damaged, rng = bytearray(whole), np.random.default_rng(seed)
        for place in rng.integers(0, len(whole), 200):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        outcome(f"lmdb:{tmp_path}/faces")  # images, or one line; this process lives


def test_no_environment_and_no_library_are_one_line(tmp_path, monkeypatch):
    assert "found none" in outcome(f"lmdb:{tmp_path}")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "data.mdb").write_bytes(b"x")
    assert "pip install -e '.[lmdb]'" in outcome(f"lmdb:{tmp_path}")
