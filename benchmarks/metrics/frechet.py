"""Frechet distance between Gaussians fitted to two sets of features: float64 and symmetric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from benchmarks.base.errors import UserError


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,), covariance (D, D) with n - 1 in the denominator, and number of the features they came from."""

    mean: Float64[Tensor, " D"]
    covariance: Float64[Tensor, "D D"]
    n: int

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Statistics of float64 features (N, D).

        Raises:
            UserError: fewer than two images, or features that are not finite.
            ValueError: features that are not a float64 matrix.
        """
        if features.dtype != torch.float64 or features.ndim != 2:
            raise ValueError(f"expected float64 features (N, D), got {features.dtype} {tuple(features.shape)}")
        if len(features) < 2:
            raise UserError(f"expected at least 2 images for a Frechet distance, got {len(features)}")
        if not bool(features.isfinite().all()):
            raise UserError("expected finite features, found NaN or infinity: check the images and the extractor")
        mean = features.mean(dim=0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1), len(features))


def joined(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Statistics of the features of both (Chan, Golub & LeVeque 1979)."""
    n, shift = a.n + b.n, b.mean - a.mean
    squares = a.covariance * (a.n - 1) + b.covariance * (b.n - 1) + torch.outer(shift, shift) * (a.n * b.n / n)
    return FeatureStatistics(a.mean + shift * (b.n / n), squares / (n - 1), n)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, in squared units of the features.

    |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), where the last trace is the sum of the singular values of
    S_a^(1/2) S_b^(1/2) with symmetric roots (Dowson & Landau 1982; as a metric of images Heusel et al. 2017). Equal
    statistics give 0 exactly; a result that rounding carries below 0 is 0.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"expected features of one dimension, got {len(a.mean)} and {len(b.mean)}")
    if torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance):
        return 0.0
    cross = torch.linalg.svdvals(symmetric_root(a.covariance) @ symmetric_root(b.covariance)).sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric positive square root; eigenvalues within rounding of 0 count as 0, or their roots would not be."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    rounding = eigenvalues[-1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    roots = torch.where(eigenvalues > rounding, eigenvalues, 0.0).sqrt()
    return (vectors * roots) @ vectors.T
