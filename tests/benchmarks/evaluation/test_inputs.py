"""Parts of many images: what is made and measured of them is what it is of all at once, bit for bit."""

import numpy as np
import pytest
import torch

from benchmarks.data import keyed_generator, model_input, to_uint8, to_unit
from benchmarks.evaluation import inputs
from benchmarks.evaluation.inputs import Inputs, at_depth, errors_per_image
from benchmarks.metrics.reconstruction import values_per_image
from models.likelihoods import BernoulliSpec, LogisticMixtureSpec

CPU = torch.device("cpu")
IMAGES, OTHERS = (
    torch.randint(0, 256, (23, 3, 6, 5), generator=keyed_generator(seed, "images"), dtype=torch.uint8)
    for seed in (0, 1)
)


@pytest.fixture(autouse=True, params=["in parts", "together"])
def parts(request, monkeypatch):
    if request.param == "in parts":
        monkeypatch.setattr(inputs, "VALUES_TOGETHER", 4 * IMAGES[0].numel())


@pytest.mark.parametrize("likelihood", [BernoulliSpec(), LogisticMixtureSpec(3), LogisticMixtureSpec(3, bits=5)])
def test_slices_are_those_of_the_whole_input(likelihood):
    whole = model_input(IMAGES, likelihood, keyed_generator(3, "bits"))
    x = Inputs.of(IMAGES, likelihood, keyed_generator(3, "bits"), CPU)
    assert len(x) == len(IMAGES)
    assert torch.equal(torch.cat([x[start : start + 5] for start in range(0, 23, 5)]), whole)
    assert x[2:4].dtype == whole.dtype


def test_the_depth_of_bits(parts):
    assert torch.equal(at_depth(IMAGES, 5), to_uint8(to_unit(IMAGES, 5)))
    assert at_depth(IMAGES, 8) is IMAGES


def test_errors_of_images(parts):
    found, whole = errors_per_image(IMAGES, OTHERS), values_per_image(IMAGES, OTHERS)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
