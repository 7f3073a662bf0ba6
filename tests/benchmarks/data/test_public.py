"""The downloaded data sets, from small stand-ins for their files in the layout that torchvision expects."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as tv
from imagenet_files import write_imagenet
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import load, load_labels, public

RNG = np.random.default_rng(0)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture
def mnist_root(tmp_path):
    for stem, n in (("train", 10_040), ("t10k", 30)):
        images = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"MNIST/raw/{stem}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"MNIST/raw/{stem}-labels-idx1-ubyte", images[:, 0, 0] % 10)
    return tmp_path


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    monkeypatch.setattr(tv.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(tv.CIFAR10, "_load_meta", lambda self: None)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images = RNG.integers(0, 256, (1010, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": [int(x) % 10 for x in images[:, 0]]}))
    return tmp_path


@pytest.fixture
def svhn_root(tmp_path, monkeypatch):
    monkeypatch.setattr(tv.SVHN, "_check_integrity", lambda self: True)
    for split, n in (("train", 5030), ("test", 40)):
        images = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = images[0, 0, 0] % 10
        scipy.io.savemat(
            tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]}
        )
    return tmp_path


@pytest.fixture
def celeba_root(tmp_path, monkeypatch):
    monkeypatch.setattr(tv.CelebA, "_check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(6)]
    for name in names:
        face = np.zeros((218, 178, 3), np.uint8)
        face[40:188, 15:163] = (200, 100, 50)  # the box that is kept
        Image.fromarray(face).save(folder / "img_align_celeba" / name, quality=95)
    tables = {"list_eval_partition": 1, "identity_CelebA": 1, "list_bbox_celeba": 4, "list_landmarks_align_celeba": 10}
    for table, width in {**tables, "list_attr_celeba": 40}.items():
        head = "" if width == 1 else f"{len(names)}\n{' '.join(f'c{i}' for i in range(width))}\n"
        rows = [f"{name} {' '.join([str(i // 2)] * width)}" for i, name in enumerate(names)]
        (folder / f"{table}.txt").write_text(head + "\n".join(rows) + "\n")
    return tmp_path


def first_pixels(images):
    return images[:, 0, 0, 0].long() % 10


@pytest.mark.parametrize(
    ("name", "counts", "shape"),
    [
        ("mnist", (40, 10_000, 30), (1, 28, 28)),
        ("cifar10", (50, 5000, 1010), (3, 32, 32)),
        ("svhn", (30, 5000, 40), (3, 32, 32)),
    ],
)
def test_files_become_splits_with_their_labels(name, counts, shape, request):
    root = request.getfixturevalue({"mnist": "mnist_root", "cifar10": "cifar_root", "svhn": "svhn_root"}[name])
    data, labels = load(name, root=root, download=False), load_labels(name, root=root, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == counts
    assert tuple(data.test.shape[1:]) == shape
    for split in ("train", "validation", "test"):
        assert torch.equal(first_pixels(getattr(data, split)), getattr(labels, split))


def test_celeba_keeps_its_splits_and_the_stated_box(celeba_root):
    data = load("celeba64", root=celeba_root, download=False)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [2, 2, 2]
    assert tuple(data.train.shape[1:]) == (3, 64, 64)
    middle = data.train[:, :, 4:-4, 4:-4].double().mean(dim=(0, 2, 3))
    assert middle.tolist() == pytest.approx([200, 100, 50], abs=4)  # JPEG
    assert data.train[:, 0].min() > 100  # nothing of the black frame is left


def test_a_face_that_is_no_image_is_one_line(celeba_root):
    (celeba_root / "celeba/img_align_celeba/000003.jpg").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"000003\.jpg: expected an image file"):
        load("celeba64", root=celeba_root, download=False)


def test_a_corrupt_download_is_one_line(mnist_root):
    path = mnist_root / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="MNIST could not be read"):
        load("mnist", root=mnist_root, download=False)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_imagenet_becomes_splits_with_its_labels(save, tmp_path):
    write_imagenet(tmp_path / "imagenet32", 32, save=save)
    data = load("imagenet32", root=tmp_path, download=False)
    labels = load_labels("imagenet32", root=tmp_path, download=False)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [40, 10_000, 30]
    assert tuple(data.test.shape[1:]) == (3, 32, 32)
    for split in ("train", "validation", "test"):
        images = getattr(data, split)
        assert torch.equal(first_pixels(images), getattr(labels, split))
        assert torch.equal(images[:, 0], images[:, 0, :1, :1].expand(-1, 32, 32))  # channels first
        assert images[:, 1:].max() == 0


def test_imagenet_is_found_in_the_folders_of_its_archives(tmp_path):
    write_imagenet(tmp_path / "files", 64, save=np.savez_compressed)
    for i, path in enumerate(sorted((tmp_path / "files").iterdir())):
        place = tmp_path / "imagenet64" / f"Imagenet64_part{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    assert tuple(load("imagenet64", root=tmp_path).test.shape) == (30, 3, 64, 64)


def test_imagenet_takes_no_more_memory_than_its_array(tmp_path):
    write_imagenet(tmp_path / "imagenet32", 32, train=30_000)
    tracemalloc.start()
    images = load("imagenet32", root=tmp_path).train
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.numel() * 1.5 + public.CHUNK * 3072 * 3  # training holds 10,000 of 30,000 less


def test_what_is_missing_of_imagenet_is_one_line_that_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"expected train_data_batch_1\.npz.*Imagenet32_train_npz\.zip.*image-net\.org"):
        load("imagenet32", root=tmp_path)
    write_imagenet(tmp_path / "imagenet32", 32)
    (tmp_path / "imagenet32/val_data.npz").unlink()
    with pytest.raises(UserError, match=r"expected val_data\.npz"):
        load("imagenet32", root=tmp_path)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-5000])


def damage_other_size(path):
    np.savez(path, data=np.zeros((5, 64 * 64 * 3), np.uint8), labels=np.ones(5))


def damage_no_array(path):
    np.savez(path, images=np.zeros((5, 3072), np.uint8))


def damage_labels(path):
    np.savez(path, data=np.zeros((5, 3072), np.uint8), labels=np.ones(4))


@pytest.mark.parametrize("damage", [damage_cut, damage_other_size, damage_no_array, damage_labels])
def test_a_damaged_batch_of_imagenet_is_one_line(damage, tmp_path):
    write_imagenet(tmp_path / "imagenet32", 32)
    damage(tmp_path / "imagenet32/train_data_batch_7.npz")
    with pytest.raises(UserError, match=r"train_data_batch_7\.npz: expected an array 'data' \(N, 3072\)[^\n]*$"):
        load("imagenet32", root=tmp_path)
