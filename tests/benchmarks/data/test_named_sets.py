"""Published sets whose files are had by hand: their splits, in whatever form the files lie."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import DATA_SETS, load
from benchmarks.data.dataset import Request
from benchmarks.data.named.sets import CELEBAHQ256, FFHQ256, SCENES

IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small(named, **changes):
    """The set with images of 8x8, a thousandth of them."""
    counts = tuple(count and max(1, count // 1000) for count in named.counts)
    return dataclasses.replace(named, side=8, **{"counts": counts} | changes)


def written(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03}.png")


def channels_last(part):
    return part.images.permute(0, 2, 3, 1).numpy()


def read(named, root):
    return named.read(Request("", root, download=False))


def test_ffhq_in_one_piece_is_cut_by_the_published_permutation(tmp_path):
    written(tmp_path / "folder/ffhq256", IMAGES)
    (tmp_path / "array/ffhq256").mkdir(parents=True)
    np.save(tmp_path / "array/ffhq256/ffhq-256.npy", IMAGES)
    order = np.random.RandomState(5).permutation(70)
    for root in (tmp_path / "folder", tmp_path / "array"):
        splits = read(small(FFHQ256), root)
        assert np.array_equal(channels_last(splits.test), IMAGES[order[63:]])
        assert (len(splits.train.images), len(splits.validation.images)) == (57, 6)
        ours = {image.tobytes() for part in (splits.train, splits.validation) for image in channels_last(part)}
        assert ours == {image.tobytes() for image in IMAGES[order[:63]]}


@pytest.mark.parametrize("named", [FFHQ256, CELEBAHQ256])
def test_given_splits_are_kept_and_their_validation_images_are_for_testing(tmp_path, named):
    named = small(named)
    train, held_out = named.counts
    written(tmp_path / named.folder / "train", IMAGES[:train])
    written(tmp_path / named.folder / "validation", IMAGES[train : train + held_out])
    splits = read(named, tmp_path)
    assert np.array_equal(channels_last(splits.test), IMAGES[train : train + held_out])
    assert len(splits.train.images) + len(splits.validation.images) == train
    assert "published splits" in splits.note


def test_scenes_have_any_number_of_training_images(tmp_path):
    scene = small(SCENES["lsun-church128"], counts=(None, 3))
    written(tmp_path / "lsun-church/church_outdoor/train", IMAGES[:20])
    written(tmp_path / "lsun-church/church_outdoor/val", IMAGES[20:23])
    assert len(read(scene, tmp_path).test.images) == 3


def test_other_splits_are_one_line(tmp_path):
    written(tmp_path / "celebahq256", IMAGES[:30])
    with pytest.raises(UserError, match=r"expected 27 train and 3 validation, found 30 of no split; get CelebA-HQ"):
        read(small(CELEBAHQ256), tmp_path)
    written(tmp_path / "ffhq256/train", IMAGES[:60])
    written(tmp_path / "ffhq256/val", IMAGES[:7])
    with pytest.raises(UserError, match=r"expected 63 train and 7 validation, found 60 train, 7 validation; get FFHQ"):
        read(small(FFHQ256), tmp_path)


@pytest.mark.parametrize("name", ["celebahq256", "ffhq256", *SCENES])
def test_a_set_that_is_missing_is_a_line_that_says_how_it_is_had(tmp_path, name):
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*found no such folder; get ") as error:
        load(name, root=tmp_path)
    assert "\n" not in str(error.value)
    assert name in DATA_SETS
