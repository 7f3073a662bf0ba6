"""The ELBO engine: what a model's beliefs cost, in nats per image. The only place where they are weighted.

`terms` and `importance_weighted` report unweighted quantities; `Objective` turns terms into the loss an
optimiser sees.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.fields import SHARE, WEIGHT, bounded, require_bounds
from models.output import Draw, Model, ModelOutput

Balancing = Literal["none", "equal", "linear", "sqrt", "square"]
BALANCE_OFFSET = 0.01


@dataclass(frozen=True)
class ELBOTerms:
    """Unweighted terms of one batch, nats per image.

    distortion (B,) = -log p(x given z); rates (B, G) = KL(posterior, prior) per latent group, coarse -> fine
    (B, 0 for the plain autoencoder); resolutions: h x w of each group.
    """

    distortion: Float[Tensor, " B"]
    rates: Float[Tensor, "B G"]
    resolutions: tuple[tuple[int, int], ...] = ()

    @property
    def rate(self) -> Float[Tensor, " B"]:
        """Total rate (B,)."""
        return self.rates.sum(1)

    @property
    def elbo(self) -> Float[Tensor, " B"]:
        """Evidence lower bound (B,), higher is better."""
        return -(self.distortion + self.rate)


def terms(output: ModelOutput, x: Tensor) -> ELBOTerms:
    """The ELBO terms of `output` for images x (B, C, H, W) in [0, 1]."""
    distortion = -output.likelihood.log_prob(x)
    rates = [group.rate for group in output.groups]
    stacked = torch.stack(rates, dim=1) if rates else distortion.new_zeros(len(distortion), 0)  # (B, G)
    return ELBOTerms(distortion, stacked, tuple(group.resolution for group in output.groups))


def bits_per_dim(elbo: Tensor, dims: int) -> Tensor:
    """-elbo / (dims ln 2), for likelihoods over the 2^b integer levels; dims = C H W of the unpadded image."""
    return -elbo / (dims * math.log(2))


@dataclass(frozen=True)
class Bounds:
    """Bounds on log p(x) from K draws of one batch: `elbo`, `iwae` (B,), and the averaged terms.

    `elbo` uses the analytic rates; `elbo_sampled` the same draws' log-ratios, so that
    elbo_sampled <= iwae holds image by image (Jensen), while elbo is the less noisy estimate.
    """

    terms: ELBOTerms
    elbo_sampled: Float[Tensor, " B"]
    iwae: Float[Tensor, " B"]
    k: int

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound (B,), averaged over the K draws."""
        return self.terms.elbo


@torch.no_grad()
def importance_weighted(model: Model, x: Tensor, draw: Draw, k: int) -> Bounds:
    """ELBO and importance-weighted bound (Burda et al. 2016) of x from `k` draws, in the memory of one.

    iwae = log 1/K sum_k p(x given z_k) p(z_k) / q(z_k given x), accumulated by a streaming log-sum-exp.

    Raises:
        ValueError: k < 1, or a model without a prior.
    """
    if k < 1:
        raise ValueError(f"importance-weighted bound: expected k >= 1 draws, got {k}")
    if not model.has_prior:
        raise ValueError(f"importance-weighted bound: {type(model).__name__} has no prior")
    features = model.features(model.padded(x))
    first, log_sum = _weigh(model, features, x, draw)
    elbo, distortion, rates = log_sum, first.distortion, first.rates
    for index in range(1, k):
        one, log_weight = _weigh(model, features, x, dataclasses.replace(draw, seed=draw.seed + index))
        log_sum = torch.logaddexp(log_sum, log_weight)  # (B,), as all that is added here but rates (B, G)
        elbo = elbo + log_weight
        distortion, rates = distortion + one.distortion, rates + one.rates
    averaged = ELBOTerms(distortion / k, rates / k, first.resolutions)
    return Bounds(averaged, elbo / k, log_sum - math.log(k), k)


def _weigh(model: Model, features: object, x: Tensor, draw: Draw) -> tuple[ELBOTerms, Tensor]:
    """Terms of one draw and its log importance weight (B,), in float64."""
    encoding = model.infer(features, dataclasses.replace(draw, log_ratio=True))
    output = ModelOutput(model.decode(encoding.state), encoding.groups)
    one = terms(output, x)
    log_weight = -one.distortion.double() - sum(_log_ratio(group.log_ratio) for group in output.groups)
    return ELBOTerms(one.distortion.double(), one.rates.double(), one.resolutions), log_weight


def _log_ratio(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("importance-weighted bound: the model returned no log-ratio for a latent group")
    return value.double()


@dataclass(frozen=True)
class Objective:
    """The loss: distortion + weight x rate, with warm-up, balancing and free bits.

    Args:
        beta: factor on the rate at the end of the warm-up (beta-VAE, Higgins et al. 2017).
        kl_constant: fraction of training before the warm-up starts.
        kl_warmup: fraction of training over which the weight rises linearly to beta.
        kl_floor: least weight during the warm-up.
        balancing: how rates are balanced over latent groups while the weight is below beta (NVAE, Vahdat & Kautz
            2021, appendix A): each group is weighted by its mean rate over alpha, alpha = 1, 2^i, sqrt(2^i) or
            4^i / groups at that resolution, for the i-th resolution from the coarsest.
        free_nats: rate per group and image (batch mean) that costs nothing (Kingma et al. 2016).
    """

    beta: float = bounded(1.0, WEIGHT)
    kl_constant: float = bounded(0.0, SHARE)
    kl_warmup: float = bounded(0.3, WEIGHT)
    kl_floor: float = bounded(1e-4, SHARE)
    balancing: Balancing = "none"
    free_nats: float = bounded(0.0, WEIGHT)

    def __post_init__(self) -> None:
        require_bounds(self)

    def kl_weight(self, progress: float) -> float:
        """Warm-up weight in [kl_floor, 1] at `progress` in [0, 1] of the training (beta not included)."""
        if self.kl_warmup == 0:
            return 1.0
        return max(min((progress - self.kl_constant) / self.kl_warmup, 1.0), min(self.kl_floor, 1.0))

    def balanced(self, progress: float) -> bool:
        """Whether rates are balanced over latent groups at `progress` in [0, 1] of the training."""
        return self.balancing != "none" and self.kl_weight(progress) < 1

    def loss(self, terms: ELBOTerms, progress: float) -> Tensor:
        """Scalar loss, nats per image, at `progress` in [0, 1] of the training."""
        return self.weighted(terms, self.beta * self.kl_weight(progress), self.balanced(progress))

    def weighted(self, terms: ELBOTerms, weight: float | Tensor, balanced: bool) -> Tensor:
        """Scalar loss, nats per image, with `weight` (a number, or () on the device) on the rates, free bits kept."""
        rates = terms.rates.mean(0)  # (G,)
        if balanced and len(terms.resolutions) > 1:
            rates = rates * balance(terms.rates, terms.resolutions, self.balancing)
        if self.free_nats:
            rates = rates.clamp_min(self.free_nats)
        return terms.distortion.mean() + weight * rates.sum()


def balance(rates: Tensor, resolutions: tuple[tuple[int, int], ...], rule: Balancing) -> Tensor:
    """Balancing coefficients (G,) of mean 1, without gradient, from rates (B, G)."""
    runs = ((value, len(list(run))) for value, run in itertools.groupby(_alpha(resolutions, rule)))
    alpha = torch.cat([rates.new_full((count,), value) for value, count in runs])  # a copy from the host would wait
    share = (rates.detach().abs().mean(0) + BALANCE_OFFSET) / alpha
    return share / share.mean()


def _alpha(resolutions: tuple[tuple[int, int], ...], rule: Balancing) -> list[float]:
    """Balancing alpha of each group, divided by the least."""
    levels = sorted(set(resolutions))
    exponent = {"none": 0.0, "equal": 0.0, "linear": 1.0, "sqrt": 0.5, "square": 2.0}[rule]
    values = [2.0 ** (exponent * levels.index(r)) for r in resolutions]
    if rule == "square":
        values = [value / resolutions.count(r) for value, r in zip(values, resolutions, strict=True)]
    return [value / min(values) for value in values]
