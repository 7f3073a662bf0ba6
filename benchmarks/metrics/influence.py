"""How sure a value on features is: what each image moves it by, in one pass over the features.

A value's variance over other images of the same kind and number is that of its influences: var(samples) / N +
var(reference) / M, the infinitesimal jackknife (Jaeckel 1972; Efron & Tibshirani 1993, chapter 21). Resampling with
replacement would count images twice, which raises a Frechet distance by as much again as its own bias. Nearest
neighbours are no smooth function of the images that they are sought among: an image's influence is there what leaving
it out changes. Such a variance is too large rather than too small (Efron & Stein 1981): twice that of a value which
does not depend on single images to first order, as is a distance of two sets from one distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from benchmarks.metrics.frechet import FeatureStatistics, symmetric_root
from benchmarks.records.catalogue import NEIGHBOURS

ROWS = 500
"""Images whose distances to all others are in memory at a time."""


@dataclass(frozen=True)
class Influence:
    """First-order effect of each image on a value, mean 0, in units of the value.

    `samples` (N,) and `reference` (M,) were drawn one from the other's independently; of `paired` ones, N = M, image i
    of one belongs to image i of the other. None: a side without influences. `besides` is the variance that the value
    has from what is not in them.
    """

    samples: Float64[Tensor, " N"] | None
    reference: Float64[Tensor, " M"] | None = None
    paired: bool = False
    besides: float = 0.0

    @property
    def by_image(self) -> list[Tensor]:
        """Influences of images that are independent of each other: sums of pairs, or each side for itself."""
        sides = [side for side in (self.samples, self.reference) if side is not None]
        return [torch.stack(sides).sum(dim=0)] if self.paired else sides

    @property
    def by_reference(self) -> Tensor | None:
        """Influences (M,) of the reference images, with those of the images that are paired with them."""
        return self.by_image[0] if self.paired else self.reference

    @property
    def standard_error(self) -> float:
        """Standard deviation of the value over other images of the same kind and number."""
        return float(sum(side.var() / len(side) for side in self.by_image) + self.besides) ** 0.5


def of_frechet(features: Tensor, reference: Tensor, paired: bool = False) -> Influence:
    """Influences on the Frechet distance of features (N, D) and (M, D).

    The derivative of tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2) by S_a is I - T, where T = S_b^(1/2) (S_b^(1/2) S_a
    S_b^(1/2))^(-1/2) S_b^(1/2) carries one Gaussian to the other. An image's influence is 2 (m_a - m_b) (x - m_a) +
    (x - m_a)^T (I - T) (x - m_a) less its mean (Kantorovich's potential; Rippl, Munk & Sturm 2016).
    """
    a, b = FeatureStatistics.of(features), FeatureStatistics.of(reference)
    root_a, root_b = symmetric_root(a.covariance), symmetric_root(b.covariance)
    squares, vectors = torch.linalg.eigh(root_b @ a.covariance @ root_b)
    held = squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    inverse = torch.where(held, squares, 1.0).rsqrt() * held
    to_b = root_b @ vectors
    to_a = root_a @ (root_a @ to_b) * inverse
    shift = a.mean - b.mean
    return Influence(
        _quadratic(features - a.mean, shift, (to_b * inverse) @ to_b.T),
        _quadratic(reference - b.mean, -shift, (to_a * inverse) @ to_a.T),
        paired,
    )


def of_kernel(features: Tensor, reference: Tensor, paired: bool = False) -> Influence:
    """Influences on the unbiased kernel distance (cubic kernel) of features (N, D) and (M, D).

    Twice the difference of an image's mean kernel to its own side and to the other one (Hoeffding 1948).
    """
    across, back = _mean_kernels(features, reference)
    own = [_mean_kernels(side, side, own=True)[0] for side in (features, reference)]
    sides = [2 * (to_own - to_other) for to_own, to_other in zip(own, (across, back), strict=True)]
    return Influence(sides[0] - sides[0].mean(), sides[1] - sides[1].mean(), paired)


def of_precision(features: Tensor, reference: Tensor, paired: bool = False) -> Influence:
    """Influences on the share of `features` (N, D) inside the manifold of `reference` (M, D)."""
    samples, centres = _shares(features, reference, paired)
    return Influence(samples, centres, paired)


def of_recall(features: Tensor, reference: Tensor, paired: bool = False) -> Influence:
    """Influences on the share of `reference` (M, D) inside the manifold of `features` (N, D)."""
    reals, centres = _shares(reference, features, paired)
    return Influence(centres, reals, paired)


def of_inception_score(logits: Tensor, score: float) -> Influence:
    """Influences on the inception score of class logits (N, K): score times an image's KL to the mean prediction."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    kl = (p * (log_p - p.mean(dim=0).log())).sum(dim=1)
    return Influence(score * (kl - kl.mean()))


def _quadratic(centred: Tensor, shift: Tensor, transport: Tensor) -> Tensor:
    """2 shift x + x (I - T) x for every row, less the mean: (N,)."""
    values = 2 * centred @ shift + (centred * (centred - centred @ transport)).sum(dim=1)
    return values - values.mean()


def _mean_kernels(a: Tensor, b: Tensor, own: bool = False) -> tuple[Tensor, Tensor]:
    """Mean over b of the cubic kernel with each of a (N,), and over a with each of b (M,); of `own` without itself."""
    rows, columns = [], b.new_zeros(len(b))
    for start in range(0, len(a), ROWS):
        kernel = (a[start : start + ROWS] @ b.T / a.shape[1] + 1).pow(3)
        if own:
            kernel.diagonal(start).zero_()
        rows.append(kernel.sum(dim=1))
        columns += kernel.sum(dim=0)
    return torch.cat(rows) / (len(b) - own), columns / (len(a) - own)


def _shares(points: Tensor, centres: Tensor, paired: bool) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " M"]]:
    """Influences of points (N, D) and of centres (M, D) on the share of points in the centres' balls, mean 0 each.

    A ball reaches to the centre's 3rd neighbour (Kynkaanniemi et al. 2019). A centre's influence is what leaving it out
    changes, times M - 1: its ball is gone, and those that reach to it reach to the next centre. A point in two balls
    stays inside, whoever is left out. Of `paired` ones the point goes with its centre.
    """
    nearest, radius, wider = _balls(centres)
    lost, gained = (torch.zeros(len(centres), dtype=torch.float64) for _ in range(2))
    counts = []
    for start in range(0, len(points), ROWS):
        distances = torch.cdist(points[start : start + ROWS], centres)
        balls = distances <= radius
        count = balls.sum(dim=1)
        point, ball = ((count < 2)[:, None] & ~balls & (distances <= wider)).nonzero(as_tuple=True)
        opened = _opened(point, nearest[ball], ball, len(centres))  # (point, left out) where a wider ball has the point
        only = torch.where(count == 1, balls.int().argmax(dim=1), -1)
        alone = (count == 1).nonzero().flatten()
        if paired:
            alone = alone[only[alone] != alone + start]
            opened = opened[:, opened[0] + start != opened[1]]
        kept = opened[0][only[opened[0]] == opened[1]]
        lost += torch.bincount(only[alone[~torch.isin(alone, kept)]], minlength=len(centres))
        gained += torch.bincount(opened[1][count[opened[0]] == 0], minlength=len(centres))
        counts.append(count)
    inside = (torch.cat(counts) > 0).double()
    moved = (lost - gained) * (1.0 if paired else (len(centres) - 1) / len(points))
    return inside - inside.mean(), moved - moved.mean()


def _opened(point: Tensor, neighbours: Tensor, ball: Tensor, centres: int) -> Tensor:
    """Pairs (2, K) of a point and of a centre without which a ball grows over the point, each once.

    `point` and `ball` (E,) are those of balls that would, `neighbours` (E, 4) the centres that keep them small.
    """
    others = neighbours != ball[:, None]
    pairs = (point[:, None] * centres + neighbours)[others].unique()
    return torch.stack([pairs // centres, pairs % centres])


def _balls(centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each centre's nearest ones (M, 4), itself among them; distances of the 3rd neighbour and of the next one (M,)."""
    parts = []
    for part in centres.split(ROWS):
        distances, order = torch.cdist(part, centres).topk(NEIGHBOURS + 2, largest=False)
        parts.append((order[:, :-1], distances[:, -2], distances[:, -1]))
    nearest, radius, wider = (torch.cat(found) for found in zip(*parts, strict=True))
    return nearest, radius, wider
