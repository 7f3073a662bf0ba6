import dataclasses

import pytest
import torch

from benchmarks.metrics import features
from benchmarks.metrics.features import Extractor, Network, cached_features
from benchmarks.metrics.frechet import FeatureStatistics
from benchmarks.metrics.sample_quality import fid_floor, sample_metrics

ROUNDING = 1e-10  # of float64 sums in another order

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


def test_many_images_are_read_by_blocks_and_some_are_held(extractor, tmp_path, monkeypatch):
    images = torch.randint(0, 256, (57, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    everything = extractor.features(images)
    monkeypatch.setattr(features, "MOST_COMPARED", 20)
    monkeypatch.setattr(features, "BLOCK", 8)
    found, again = (cached_features(images, extractor, tmp_path) for _ in range(2))
    of_all = FeatureStatistics.of(everything.values)
    assert found.n == of_all.n == 57
    assert torch.allclose(found.statistics.mean, of_all.mean, rtol=ROUNDING)
    assert torch.allclose(found.statistics.covariance, of_all.covariance, rtol=ROUNDING)
    rows = {tuple(row) for row in everything.values.tolist()}
    assert len(found.values) == len(found.logits) == len({tuple(row) for row in found.values.tolist()} & rows) == 20
    assert torch.equal(found.logits, found.values[:, :2])
    assert torch.equal(again.values, found.values)
    assert torch.equal(again.statistics.covariance, found.statistics.covariance)
    assert again.n == 57


def test_a_distance_to_many_images_is_that_to_all_and_says_what_the_others_compare(extractor, monkeypatch):
    few, many = (
        torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        for n in (40, 60)
    )
    in_memory = sample_metrics(few, many, extractor)
    monkeypatch.setattr(features, "MOST_COMPARED", 50)
    monkeypatch.setattr(features, "BLOCK", 16)
    monkeypatch.setattr("benchmarks.metrics.sample_quality.MOST_COMPARED", 50)
    by_blocks = sample_metrics(few, many, extractor)
    assert by_blocks[0].value == pytest.approx(in_memory[0].value, rel=ROUNDING)
    assert by_blocks[0].details["n_reference"] == 60
    assert "of more than 50 images, so many count, but all in a Frechet distance" in by_blocks[1].note
    floor = fid_floor(many, many, extractor)
    assert (floor.n, floor.details["n_reference"]) == (50, 60)
