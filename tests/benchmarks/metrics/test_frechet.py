import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks.base.errors import UserError
from benchmarks.metrics import fidelity
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance

ORACLE = 1e-6  # relative to tr S_a + tr S_b: torch-fidelity takes eigenvalues of a non-symmetric product
EXACT = 1e-10  # relative to the same: float64 rounding of roots and singular values


def features(n, dims, seed, shift=0.0, mix=1.0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, dims, generator=generator, dtype=torch.float64)
    return torch.relu(base @ torch.randn(dims, dims, generator=generator, dtype=torch.float64) * mix + shift)


def distance(a, b):
    return frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))


def traces(a, b):
    return float(a.var(dim=0).sum() + b.var(dim=0).sum())


PAIRS = {
    "many": (features(600, 24, 0), features(500, 24, 1, shift=0.5)),
    "close": (features(600, 24, 2), features(600, 24, 2) + 1e-4),
    "fewer images than dimensions": (features(20, 48, 3), features(30, 48, 4)),
    "constant feature": (features(300, 8, 5), features(300, 8, 6) * torch.tensor([0.0] + [1.0] * 7)),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


@pytest.mark.parametrize("n", [2, 10, 300])
def test_a_set_has_distance_exactly_zero_to_itself(n):
    a = features(n, 32, seed=7)
    assert distance(a, a.clone()) == 0.0


def test_the_order_of_images_does_not_matter():
    a = features(300, 32, seed=8)
    assert distance(a, a.flip(0)) <= EXACT * traces(a, a)


def test_agrees_with_torch_fidelity(pair):
    assert abs(distance(*pair) - fidelity.fid(*pair)) <= ORACLE * traces(*pair)


def test_agrees_with_the_matrix_square_root_of_scipy():
    a, b = (x.numpy() for x in PAIRS["many"])
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sigma_a + sigma_b - 2 * root)
    assert distance(*PAIRS["many"]) == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances_give_the_closed_form():
    a = FeatureStatistics(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()), 10)
    b = FeatureStatistics(torch.tensor([4.0, -2.0]).double(), torch.diag(torch.tensor([1.0, 25.0]).double()), 10)
    assert frechet_distance(a, b) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 5) ** 2, rel=1e-12)


def test_is_symmetric_and_does_not_see_rotations(pair):
    a, b = pair
    rotation = torch.linalg.qr(features(a.shape[1], a.shape[1], seed=9) - 0.5).Q
    tolerance = EXACT * traces(a, b)
    assert abs(distance(a, b) - distance(b, a)) <= tolerance
    assert abs(distance(a, b) - distance(a @ rotation, b @ rotation)) <= tolerance


def test_scaling_features_scales_the_distance_by_the_square():
    a, b = PAIRS["many"]
    assert distance(3 * a, 3 * b) == pytest.approx(9 * distance(a, b), rel=1e-9)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4).double(), torch.tensor([[1.0], [float("nan")]]).double()])
def test_refuses_sets_without_a_covariance(bad):
    with pytest.raises(UserError, match="expected"):
        FeatureStatistics.of(bad)


def test_refuses_float32_and_unequal_dimensions():
    with pytest.raises(ValueError, match="float64"):
        FeatureStatistics.of(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="dimension"):
        distance(features(9, 3, 0), features(9, 4, 0))


def test_an_option_that_torch_fidelity_would_ignore_is_an_error():
    assert set(fidelity.OPTIONS) <= set(fidelity.DEFAULTS)
    with pytest.raises(ValueError, match="kid_subset_sz"):
        fidelity._calculate(input1=fidelity.Rows(torch.zeros(20, 2)), isc=True, kid_subset_sz=3)
