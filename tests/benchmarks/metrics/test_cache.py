import dataclasses

import pytest
import torch

from benchmarks.metrics.features import Extractor, Network, cached_features

IMAGES = torch.randint(0, 256, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Counting(Network):
    """Features are the image's rows; counts its calls."""

    def __init__(self):
        super().__init__("counting", ["features", "logits"])
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls = 0

    def forward(self, input):
        self.calls += 1
        x = input.double().mean(dim=(1, 2)) * self.weight
        return x, x[:, :2]


@pytest.fixture
def extractor():
    return Extractor("counting", "1", "aa", "as they are", 4, (1,), None, Counting())


def calls(images, extractor, folder):
    before = extractor.network.calls
    found = cached_features(images, extractor, folder)
    fresh = extractor.features(images)
    assert torch.equal(found.values, fresh.values)
    assert torch.equal(found.logits, fresh.logits)
    return extractor.network.calls - before - 1


def test_the_same_features_are_computed_once(extractor, tmp_path):
    assert calls(IMAGES, extractor, tmp_path) == 1
    assert calls(IMAGES.clone(), extractor, tmp_path) == 0


def one_pixel(images):
    changed = images.clone()
    changed[3, 0, 2, 1] ^= 1
    return changed


@pytest.mark.parametrize("change", [one_pixel, lambda x: x[:-1], lambda x: x.flip(0), lambda x: x.transpose(2, 3)])
def test_other_images_or_another_n_are_computed(extractor, tmp_path, change):
    calls(IMAGES, extractor, tmp_path)
    assert calls(change(IMAGES), extractor, tmp_path) == 1


@pytest.mark.parametrize("field", ["name", "version", "weights_sha256", "preprocessing"])
def test_another_extractor_is_computed(extractor, tmp_path, field):
    calls(IMAGES, extractor, tmp_path)
    assert calls(IMAGES, dataclasses.replace(extractor, **{field: "other"}), tmp_path) == 1


def flip_last_byte(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [flip_last_byte, lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"\x80\x04pickle?"]
)
def test_a_corrupted_file_is_computed_again_and_mended(extractor, tmp_path, damage):
    calls(IMAGES, extractor, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert calls(IMAGES, extractor, tmp_path) == 1
    assert calls(IMAGES, extractor, tmp_path) == 0


def test_features_of_other_images_under_the_right_name_are_not_trusted(extractor, tmp_path):
    calls(IMAGES, extractor, tmp_path)
    (path,) = tmp_path.iterdir()
    calls(IMAGES[:5], extractor, tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    other.rename(path)
    assert calls(IMAGES, extractor, tmp_path) == 1


def test_a_folder_that_cannot_be_written_costs_only_time(extractor, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert calls(IMAGES, extractor, tmp_path / "file") == 1
    assert calls(IMAGES, extractor, None) == 1
