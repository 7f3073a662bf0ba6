import csv
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import content_hash, load, load_labels, photographs
from benchmarks.data.dataset import Request
from benchmarks.data.photographs import LEAST_SPAN, PATCH, TABLE, WHEELS, Photograph, patches_of

SIZES = {"photos-32": (21251, 2856, 4439), "photos-32-small": (848, 126, 213)}


@pytest.fixture(scope="module", params=SIZES)
def photos(request):
    try:
        return load(request.param)
    except UserError as error:
        pytest.skip(str(error))


def test_patches_have_their_stated_numbers_and_are_distinct(photos):
    parts = (photos.train, photos.validation, photos.test)
    assert tuple(map(len, parts)) == SIZES[photos.name]
    images = torch.cat(parts)
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_no_photograph_is_in_two_splits(photos):
    labels = load_labels(photos.name)
    seen = [set(part.tolist()) for part in (labels.train, labels.validation, labels.test)]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(photographs.photographs("small" in photos.name))


def test_every_photograph_has_one_row_with_its_licence():
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == len(photographs.photographs(False))
    for row in rows:
        assert row["split"] in ("train", "validation", "test")
        assert row["licence"]
        assert row["author"]
        assert len(bytes.fromhex(row["sha256"])) == 32
    for small in (False, True):
        assert {row.split for row in photographs.photographs(small)} == {"train", "validation", "test"}
    assert {row.package for row in photographs.photographs(True)} == set(WHEELS)


def test_labels_of_the_small_set_are_those_of_the_large_one():
    small = photographs.photographs(True)
    assert small == photographs.photographs(False)[: len(small)]


def test_tiles_do_not_overlap_and_flat_ones_are_left_out():
    photo = torch.full((3, 70, 100), 90, dtype=torch.uint8)
    photo[:, :64, :96] += torch.arange(3 * 64 * 96).reshape(3, 64, 96).remainder(61).to(torch.uint8)
    tiles = patches_of(photo)
    assert tuple(tiles.shape) == (6, 3, PATCH, PATCH)
    assert torch.equal(tiles[4], photo[:, 32:64, 32:64])
    photo[:, 32:64, 32:64] = 90
    photo[1, 40, 40] = 90 + LEAST_SPAN - 1
    assert len(patches_of(photo)) == 5
    photo[1, 40, 40] += 1
    assert len(patches_of(photo)) == 6


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Three photographs of noise as Debian packages would bring them, and the folder that they are unpacked in."""
    table, folder = [], tmp_path / "backgrounds"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, split in enumerate(("train", "validation", "test")):
        Image.fromarray(generator.integers(0, 256, (80, 70 + 2000 * (i == 2), 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
        table.append(Photograph(f"{i}.png", "mate-backgrounds", split, "CC0-1.0", "nobody", ""))
    monkeypatch.setattr(photographs, "BACKGROUNDS", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return table, folder


def hashed(row, folder):
    pixels = np.asarray(Image.open(folder / row.path)).copy()
    if max(pixels.shape) > photographs.LARGE:
        height, width, _ = pixels.shape
        means = pixels.reshape(height // 2, 2, width // 2, 2, 3).astype(int).sum(axis=(1, 3))
        pixels = ((means + 2) // 4).astype(np.uint8)
    return dataclasses.replace(row, sha256=content_hash(patches_of(torch.from_numpy(pixels).permute(2, 0, 1))))


def test_large_photographs_are_halved_and_labels_follow_their_patches(album):
    table, folder = album
    parts = photographs._make(tuple(hashed(row, folder) for row in table), folder)
    assert [len(part.images) for part in parts.values()] == [4, 4, 32]
    assert [part.labels.unique().tolist() for part in parts.values()] == [[0], [1], [2]]


def test_another_photograph_of_that_name_is_one_line(album):
    table, folder = album
    with pytest.raises(UserError, match=r"0\.png: expected the photograph whose patches.*another version") as error:
        photographs._make(tuple(dataclasses.replace(row, sha256="0" * 64) for row in table), folder)
    assert "\n" not in str(error.value)


def test_a_damaged_photograph_is_one_line(album):
    table, folder = album
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:200])
    with pytest.raises(UserError, match=r"0\.png: expected an image file, got .*install mate-backgrounds again"):
        photographs._make(tuple(table), folder)


def test_a_missing_photograph_is_one_line_with_the_command(album, tmp_path):
    table, _ = album
    with pytest.raises(UserError, match=r"apt-get install lomiri-wallpapers-16\.04 mate-backgrounds") as error:
        photographs._make(tuple(table), tmp_path / "nowhere")
    assert "photos-32-small" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(WHEELS, "scikit-image", ("no_such_package", "data"))
    with pytest.raises(UserError, match=r"no_such_package.*pip install -e '\.\[photos\]'") as error:
        photographs.read_small_photos(Request("", tmp_path, download=False))
    assert "\n" not in str(error.value)
