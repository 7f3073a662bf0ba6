"""Arrays as other people have them: read right, or refused in one line that says what to do."""

import io
import zipfile

import numpy as np
import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.data import load
from benchmarks.data.arrays import npz_images, split_of

LEVELS = np.random.default_rng(0).integers(0, 256, (40, 5, 7), dtype=np.uint8)
BITS = (LEVELS > 127).astype(np.uint8)


def saved(path, **arrays):
    np.savez(path / "x.npz", **arrays)
    return f"npz:{path / 'x.npz'}"


def content(data):
    """All images of a data set, in an order of their own."""
    parts = (data.train, data.validation, data.test)
    return sorted(image.numpy().tobytes() for part in parts for image in part)


def the_same(data, expected):
    return content(data) == sorted(image.tobytes() for image in expected)


RIGHT = {
    "uint8": (LEVELS, LEVELS, None),
    "channels last": (np.repeat(LEVELS[..., None], 3, 3), np.repeat(LEVELS[:, None], 3, 1), None),
    "one channel last": (LEVELS[..., None], LEVELS, None),
    "int64": (LEVELS.astype(np.int64), LEVELS, "whole numbers of 0-255 (int64)"),
    "int16, big endian": (LEVELS.astype(">i2"), LEVELS, "whole numbers of 0-255 (>i2)"),
    "uint16": (LEVELS.astype(np.uint16), LEVELS, "whole numbers of 0-255 (uint16)"),
    "float64 of 0-255": (LEVELS.astype(np.float64), LEVELS, "whole numbers of 0-255 (float64)"),
    "float32 of 0-1": (LEVELS.astype(np.float32) / 255, LEVELS, "floating point of 0-1 (float32) scaled"),
    "float16 of 0-1": ((BITS / 2).astype(np.float16), BITS * 128, "floating point of 0-1 (float16) scaled"),
    "uint8 of 0 and 1": (BITS, BITS * 255, "zeros and ones (uint8): binary pixels, 0 and 255"),
    "bool": (BITS == 1, BITS * 255, "zeros and ones (bool)"),
    "int64 of 0 and 1": (BITS.astype(np.int64), BITS * 255, "zeros and ones (int64)"),
    "float32 of 0 and 1": (BITS.astype(np.float32), BITS * 255, "zeros and ones (float32)"),
    "all black": (BITS * 0, BITS * 0, None),
    "Fortran order": (np.asfortranarray(LEVELS), LEVELS, None),
}


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_type_is_read_right_and_what_was_changed_is_said(tmp_path, kind, suffix):
    array, expected, said = RIGHT[kind]
    name = saved(tmp_path, images=array)
    if suffix == "npy":
        np.save(tmp_path / "x.npy", array)
        name = f"npz:{tmp_path / 'x.npy'}"
    data = load(name)
    assert the_same(data, expected)
    assert (said or "x." + suffix) in data.note
    assert (said is None) == ("(" not in data.note)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("kind", RIGHT)
def test_evaluate_reads_by_the_same_rule(tmp_path, kind, binary):
    array, expected, _ = RIGHT[kind]
    found = npz_images(tmp_path / saved(tmp_path, images=array).removeprefix("npz:"), binary=binary).images
    pixels = found * 255 if found.is_floating_point() else found
    assert found.is_floating_point() == (binary and set(np.unique(array)) <= {0, 1})
    assert np.array_equal(pixels.numpy(), expected.reshape(found.shape))


def test_the_type_is_judged_over_all_splits(tmp_path):
    """A dark split of a brighter set is not binary."""
    data = load(saved(tmp_path, train=LEVELS, validation=BITS, test=BITS))
    assert data.test.max() == 1
    data = load(saved(tmp_path, train=LEVELS * 1.0, validation=BITS * 1.0, test=BITS * 1.0))
    assert data.test.max() == 1


SPLITS = {"train": LEVELS[:20], "validation": LEVELS[20:30], "test": LEVELS[30:]}
KEYS = [
    ("train", "validation", "test"),
    ("x_train", "x_val", "x_test"),
    ("X_train", "X_valid", "X_test"),
    ("train_images", "val_images", "test_images"),
    ("train_x", "valid_x", "test_x"),
    ("xtrain", "xval", "xtest"),
    ("train_data", "validation_data", "test_data"),
    ("imgs_train", "imgs_valid", "imgs_test"),
    ("training", "val", "testing"),
    ("TRAIN", "VAL", "TEST"),
]


@pytest.mark.parametrize("keys", KEYS)
def test_names_that_people_give_to_splits(tmp_path, keys):
    labels = {f"{split}_labels": np.arange(3) for split in ("train", "test")} | {"y_train": np.arange(3)}
    data = load(saved(tmp_path, **dict(zip(keys, SPLITS.values(), strict=True)), **labels))
    for split, images in SPLITS.items():
        assert np.array_equal(getattr(data, split)[:, 0].numpy(), images)
    assert all(f"'{key}'" in data.note for key in keys)
    assert "not read: train_labels, test_labels, y_train" in data.note


@pytest.mark.parametrize("key", ["images", "imgs", "img", "image", "data", "X", "x", "samples", "IMAGES"])
def test_names_that_people_give_to_all_images(tmp_path, key):
    data = load(saved(tmp_path, **{key: LEVELS, "y": np.arange(40)}))
    assert the_same(data, LEVELS)
    assert f"'{key}' of x.npz; not read: y; validation and test cut from it by hash of the index" in data.note


def test_an_array_without_a_name_beside_labels(tmp_path):
    np.savez(tmp_path / "x.npz", LEVELS, np.arange(40))
    data = load(f"npz:{tmp_path / 'x.npz'}")
    assert the_same(data, LEVELS)
    assert "'arr_0' of x.npz; not read: arr_1" in data.note


@pytest.mark.parametrize(("given", "cut"), [("test", "validation"), ("validation", "test")])
def test_a_split_that_is_missing_is_cut_from_train(tmp_path, given, cut):
    data = load(saved(tmp_path, x_train=LEVELS[:30], **{f"x_{given}": LEVELS[30:]}))
    assert np.array_equal(getattr(data, given)[:, 0].numpy(), LEVELS[30:])
    assert (len(data.train), len(getattr(data, cut))) == (27, 3)
    assert the_same(data, LEVELS)
    assert f"{cut} cut from train by hash of the index" in data.note


@pytest.mark.parametrize(
    "name", ["y_train", "labels", "train_labels", "mask", "trainer", "xx", "latent", "contrast", ""]
)
def test_names_of_other_things_are_not_images(name):
    assert split_of(name) is None


PICKLED = np.array([{}, None], dtype=object)


def test_a_pickled_array_that_is_not_needed_is_not_read(tmp_path):
    assert the_same(load(saved(tmp_path, images=LEVELS, info=PICKLED)), LEVELS)


TURN = r"got \(N, C, H, W\) = .*np.transpose\(x, \(0, 2, 3, 1\)\)"
REFUSED = {
    "pickled": ({"images": PICKLED}, "expected a plain array 'images', got pickled Python objects"),
    "unknown name": ({"faces": LEVELS}, "found faces; rename"),
    "nothing": ({}, "found none"),
    "images and data": ({"images": LEVELS, "data": LEVELS}, "found images, data; keep one"),
    "train twice": ({"train": LEVELS, "x_train": LEVELS, "test": LEVELS}, "found train, x_train; keep one"),
    "images and splits": ({"images": LEVELS, "train": LEVELS, "test": LEVELS}, "found images, train, test; keep one"),
    "two without names": ({"arr_0": LEVELS, "arr_1": LEVELS}, "found arr_0, arr_1; keep one"),
    "test only": ({"x_test": LEVELS}, "expected an array of training images beside x_test"),
    "channels first": ({"images": np.zeros((9, 3, 32, 32), np.uint8)}, TURN),
    "one channel first": ({"images": np.zeros((9, 1, 28, 28), np.uint8)}, TURN),
    "alpha": ({"images": np.zeros((9, 8, 8, 4), np.uint8)}, r"drop the alpha channel: x\[..., :3\]"),
    "two channels": ({"images": np.zeros((9, 8, 8, 2), np.uint8)}, "1 or 3 channels last"),
    "rows": ({"images": np.zeros((9, 784), np.uint8)}, r"x.reshape\(-1, 28, 28\)"),
    "rows of no square": ({"images": np.zeros((9, 783), np.uint8)}, r"no empty axis, got \(9, 783\)$"),
    "one image": ({"images": np.zeros((32, 32, 3), np.uint8)}, "looks like one colour image"),
    "a number": ({"images": np.uint8(3)}, r"expected shape \(N, H, W\)"),
    "video": ({"images": np.zeros((2, 3, 4, 5, 3), np.uint8)}, r"expected shape \(N, H, W\)"),
    "no images": ({"images": np.zeros((0, 8, 8), np.uint8)}, "no empty axis"),
    "no width": ({"images": np.zeros((9, 8, 0), np.uint8)}, "no empty axis"),
    "too few": ({"images": LEVELS[:2]}, "at least one image for each of train and validation and test, got 2"),
    "NaN": ({"images": np.full((9, 8, 8), np.nan)}, "expected finite values, found 576 that are NaN or infinite"),
    "infinity": ({"images": np.where(LEVELS > 254, np.inf, 0.5)}, "NaN or infinite"),
    "negative": ({"images": LEVELS.astype(np.int64) - 1}, "got int64 of -1 to 254; scale them"),
    "-1 to 1": ({"images": LEVELS / 127.5 - 1}, r"of -1.0 to 1.0; if they are of -1 to 1: x = \(x \+ 1\) / 2"),
    "16 bits": ({"images": LEVELS.astype(np.uint16) * 257}, r"of 0 to 65535; if .* 16 bits: x = \(x // 257\)"),
    "fractions": ({"images": LEVELS + 0.25 - (LEVELS == 255)}, "of 0.25 to 254.25; round them"),
    "floats beyond": ({"images": LEVELS * 257.0}, "of 0.0 to 65535.0; scale them"),
    "complex": ({"images": LEVELS.astype(np.complex64)}, "got complex64"),
    "text": ({"images": np.full((9, 8, 8), "a")}, "got <U1"),
    "dates": ({"images": np.zeros((9, 8, 8), "datetime64[s]")}, "got datetime64"),
    "fields": ({"images": np.zeros((9, 8, 8), [("r", "u1")])}, "expected whole numbers"),
    "types": ({"train": LEVELS, "test": LEVELS / 255}, "one type, got float64, uint8"),
    "sizes": ({"train": LEVELS, "test": LEVELS[:, 1:]}, "expected one image shape"),
    "grey and colour": ({"train": LEVELS, "test": np.zeros((9, 5, 7, 3), np.uint8)}, "expected one image shape"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_has_no_rule_is_refused_in_one_line(tmp_path, problem):
    arrays, said = REFUSED[problem]
    with pytest.raises(UserError, match=said) as error:
        load(saved(tmp_path, **arrays))
    assert "\n" not in str(error.value)
    assert "x.npz" in str(error.value)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


DAMAGED = {
    "a web page": b"<!DOCTYPE html>",
    "cut short": npy(LEVELS)[:-9],
    "a pickle": b"\x80\x04N.",
    "a header of terabytes": npy(LEVELS).replace(b"(40, 5, 7)", b"(9" + b"9" * 7 + b",)"),
    "a member that is no array": "text",
    "a damaged member": "damage",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "x.npz"
    if isinstance(DAMAGED[kind], bytes):
        path.write_bytes(DAMAGED[kind])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", b"hello" if DAMAGED[kind] == "text" else npy(LEVELS))
        if DAMAGED[kind] == "damage":
            path.write_bytes(path.read_bytes().replace(LEVELS.tobytes()[:50], bytes(50)))
    with pytest.raises(UserError, match=r"x.npz: expected") as error:
        load(f"npz:{path}")
    assert "\n" not in str(error.value)
    assert "allow_pickle" not in str(error.value)


def test_evaluate_takes_the_test_split(tmp_path):
    path = tmp_path / saved(tmp_path, **{f"{split}_images": images for split, images in SPLITS.items()})[4:]
    assert torch.equal(npz_images(path).images[:, 0], torch.from_numpy(SPLITS["test"]))
    path = tmp_path / saved(tmp_path, x_train=LEVELS)[4:]
    with pytest.raises(UserError, match="found x_train"):
        npz_images(path)
