import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import DATA_SETS, content_hash, load, load_labels
from benchmarks.data import public as public_sets
from benchmarks.data.embedded import PATCH_BANDS, PATCH_SIZE

EMBEDDED = {"mnist-5k": (3600, 400, 1000), "patches": (14058, 600, 1400), "glyphs-28": (28573, 1483, 2291)}


def rows(images):
    """Each image as bytes, for comparison as a set."""
    return {image.numpy().tobytes() for image in images}


@pytest.fixture(scope="module", params=EMBEDDED)
def embedded(request):
    return load(request.param)


def test_embedded_sets_have_their_stated_sizes_and_types(embedded):
    assert (len(embedded.train), len(embedded.validation), len(embedded.test)) == EMBEDDED[embedded.name]
    for split in (embedded.train, embedded.validation, embedded.test):
        assert split.dtype == torch.uint8
        assert tuple(split.shape[1:]) == (embedded.image.channels, embedded.image.height, embedded.image.width)


def test_loading_twice_gives_the_same_content(embedded):
    again = load(embedded.name)
    assert again.content_hash == embedded.content_hash
    assert torch.equal(again.test, embedded.test)


def test_no_image_of_the_test_split_is_in_training_or_validation():
    digits = load("mnist-5k")
    assert not rows(digits.test) & (rows(digits.train) | rows(digits.validation))
    assert not rows(digits.validation) & rows(digits.train)


def test_digits_are_stratified_and_labels_belong_to_the_images():
    labels, digits = load_labels("mnist-5k"), load("mnist-5k")
    for part, count in ((labels.train, 360), (labels.validation, 40), (labels.test, 100)):
        assert part.bincount().tolist() == [count] * 10
    ink = digits.train.float().mean(dim=(1, 2, 3))
    assert ink[labels.train == 1].mean() < 0.6 * ink[labels.train == 0].mean()  # a one takes less ink than a zero


def test_patch_bands_are_disjoint_with_a_gap_inside_the_photo():
    bands = sorted(band for split in PATCH_BANDS.values() for band in split)
    assert bands[0][0] >= 0
    assert bands[-1][1] <= 640
    assert all(stop - start >= PATCH_SIZE for start, stop in bands)
    assert all(following[0] - band[1] >= 8 for band, following in itertools.pairwise(bands))


def test_content_hash_sees_bytes_and_shapes():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    other = images.clone()
    other[3, 0, 1, 1] = 1
    assert content_hash(images) == content_hash(images.clone())
    assert len({content_hash(images), content_hash(other), content_hash(images.reshape(4, 1, 4, 1))}) == 3
    assert content_hash(images[:2], images[2:]) != content_hash(images[:1], images[1:])


@pytest.mark.parametrize("name", ["mnits", "folder", "folder:", "mnist-5k:x", ""])
def test_a_wrong_name_is_answered_with_the_right_ones(name):
    with pytest.raises(UserError, match="mnist-5k, npy:PATH, npz:FILE, parquet:PATH, patches") as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "celeba64"])
def test_a_missing_download_is_one_line_with_the_folder(name, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load(name, root=tmp_path, download=False)
    assert "put them there" in str(error.value)
    assert "\n" not in str(error.value)


def test_data_without_classes_has_no_labels():
    with pytest.raises(UserError, match="no class labels"):
        load_labels("patches")


def test_every_data_set_has_a_line_of_description():
    assert all(source.description and "\n" not in source.description for source in DATA_SETS.values())


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx_folder(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    for stem, n in (("train", 6000), ("t10k", 20)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", generator.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", generator.integers(0, 10, n, dtype=np.uint8))
    monkeypatch.setattr(public_sets, "DEBIAN_FASHION_MNIST", tmp_path)
    return tmp_path


def test_fashion_mnist_is_found_in_the_folder_of_the_system(idx_folder):
    data = load("fashion-mnist", download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (1000, 5000, 20)
    assert data.image.dims == 784
    assert "Debian" in data.note


@pytest.mark.parametrize("damage", ["truncate", "header", "missing", "mismatch"])
def test_a_damaged_idx_file_is_one_line(idx_folder, damage):
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "header":
        path.write_bytes(gzip.compress(b"not an idx file at all"))
    elif damage == "missing":
        path.unlink()
    else:
        write_idx(path, np.zeros(5, dtype=np.uint8))
    with pytest.raises(UserError, match="expected"):
        load("fashion-mnist", download=False)


def write_images(folder, n=10, size=(6, 4), mode="L", names="image{:02d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    for i in range(n):
        pixels = generator.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
        Image.fromarray(pixels, mode).save(folder / names.format(i))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3)])
def test_a_folder_of_one_size_is_split_without_overlap(tmp_path, mode, channels):
    write_images(tmp_path, n=30, mode=mode)
    data = load(f"folder:{tmp_path}")
    assert (data.image.channels, data.image.height, data.image.width) == (channels, 4, 6)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 3, 3)
    assert len(rows(data.train) | rows(data.validation) | rows(data.test)) == 30


def test_a_file_keeps_its_split_when_the_folder_moves(tmp_path):
    write_images(tmp_path / "a", n=20)
    write_images(tmp_path / "b", n=20)
    assert load(f"folder:{tmp_path / 'a'}").content_hash == load(f"folder:{tmp_path / 'b'}").content_hash


def test_a_folder_of_mixed_sizes_needs_the_stated_rule(tmp_path):
    write_images(tmp_path, n=6, names="a{:02d}.png")
    write_images(tmp_path, n=6, size=(12, 20), names="b{:02d}.png")
    with pytest.raises(UserError, match=r"size=N"):
        load(f"folder:{tmp_path}")
    assert load(f"folder:{tmp_path}?size=5").image.height == 5


def test_resizing_averages_instead_of_picking_pixels(tmp_path):
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    for i in range(3):
        Image.fromarray(stripes).save(tmp_path / f"{i}.png")
    small = load(f"folder:{tmp_path}?size=8").train.float()
    assert small.sub(127.5).abs().max() < 26  # stripes finer than the target grid turn grey (10 % of the range)


@pytest.mark.parametrize("problem", ["empty", "missing", "corrupt", "few", "size=0", "size=x", "colour=1"])
def test_a_bad_folder_is_one_line(tmp_path, problem):
    folder = tmp_path / "images"
    if problem != "missing":
        folder.mkdir()
    if problem == "corrupt":
        write_images(folder)
        (folder / "image03.png").write_bytes((folder / "image03.png").read_bytes()[:40])
    elif problem == "few":
        write_images(folder, n=2)
    elif "=" in problem:
        write_images(folder)
    with pytest.raises(UserError) as error:
        load(f"folder:{folder}" + (f"?{problem}" if "=" in problem else ""))
    assert "\n" not in str(error.value)


def save_npz(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize("shape", [(40, 5, 7), (40, 5, 7, 1), (40, 5, 7, 3)])
def test_npz_images_of_either_layout_and_type(tmp_path, shape):
    pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    data = load(save_npz(tmp_path / "bytes.npz", images=pixels))
    unit = load(save_npz(tmp_path / "unit.npz", images=pixels.astype(np.float64) / 255))
    assert (data.image.channels, data.image.height, data.image.width) == (3 if shape[-1] == 3 else 1, 5, 7)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 4, 4)
    assert data.content_hash == unit.content_hash


def test_npz_splits_are_taken_as_given(tmp_path):
    arrays = {name: np.full((n, 4, 4), n, dtype=np.uint8) for name, n in (("train", 5), ("validation", 2), ("test", 3))}
    data = load(save_npz(tmp_path / "x.npz", **arrays))
    assert [int(split.unique()) for split in (data.train, data.validation, data.test)] == [5, 2, 3]


BAD_ARRAYS = {
    "no images": {"pictures": np.zeros((9, 4, 4), np.uint8)},
    "pickled": {"images": np.array([{}, None], dtype=object)},
    "integers": {"images": np.full((9, 4, 4), 256, np.int64)},
    "range": {"images": np.full((9, 4, 4), 1.5)},
    "nan": {"images": np.full((9, 4, 4), np.nan)},
    "empty": {"images": np.zeros((0, 4, 4), np.uint8)},
    "flat": {"images": np.zeros((9, 16), np.uint8)},
    "two channels": {"images": np.zeros((9, 4, 4, 2), np.uint8)},
    "few": {"images": np.zeros((2, 4, 4), np.uint8)},
    "shapes": {"train": np.zeros((3, 4, 4)), "validation": np.zeros((3, 4, 4)), "test": np.zeros((3, 5, 4))},
}


@pytest.mark.parametrize("problem", BAD_ARRAYS)
def test_a_bad_npz_is_one_line(tmp_path, problem):
    name = save_npz(tmp_path / "bad.npz", **BAD_ARRAYS[problem])
    with pytest.raises(UserError, match="expected") as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_corrupt_npz_is_one_line(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"expected an \.npz file"):
        load(f"npz:{path}")
