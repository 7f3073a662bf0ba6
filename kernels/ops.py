"""The fused operations a VAE needs, as a typed interface.

`Ops` is a value that is passed to a model when it is built; it is never switched on globally. `REFERENCE`
(plain PyTorch, `kernels/reference/backend.py`) is the specification; `best_for(device)` picks the fastest backend
that runs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from kernels.cell_form import ActivatedConvolution, PackCell, ResidualCell, RunPacked


@dataclass(frozen=True)
class GaussianForm:
    """How raw network outputs become mean and scale of a diagonal Gaussian.

    Without a soft clamp, mean = raw mean and scale = exp(raw log scale). With `soft_clamp` c both raw
    values pass through v -> c tanh(v / c) first, and `scale_floor` is added to the scale. `residual`
    says that the posterior's raw values are offsets from the prior's raw values, added before the
    clamp (NVAE, Vahdat & Kautz 2021, section 3.2). A missing prior has raw values (0, 0) in the same
    form: N(0, 1) for `PLAIN`, N(0, 1.01^2) for the soft-clamped forms.
    """

    soft_clamp: float | None = None
    scale_floor: float = 0.0
    residual: bool = False


PLAIN = GaussianForm()
SOFT_CLAMPED = GaussianForm(soft_clamp=5.0, scale_floor=0.01)
RESIDUAL = GaussianForm(soft_clamp=5.0, scale_floor=0.01, residual=True)


class GaussianDraw(NamedTuple):
    """A draw from the posterior and what it costs.

    z (B, Z, h, w) in the dtype of the mean; kl (B,) float32 or wider, nats per image, analytic
    KL(posterior, prior); log_ratio (B,) likewise, log q(z) - log p(z) at this z, or None if not asked for.
    """

    z: Tensor
    kl: Tensor
    log_ratio: Tensor | None


class GaussianSampleKL(Protocol):
    """z ~ q, KL(q, p) and, on request, log q(z) - log p(z), of diagonal Gaussians; differentiable."""

    def __call__(
        self,
        mean: Tensor,
        log_scale: Tensor,
        prior_mean: Tensor | None,
        prior_log_scale: Tensor | None,
        *,
        seed: Tensor,
        group: int,
        form: GaussianForm = PLAIN,
        first_sample: int = 0,
        noise: Tensor | None = None,
        log_ratio: bool = False,
    ) -> GaussianDraw:
        """Draw.

        Args:
            mean, log_scale: raw posterior parameters (B, ...), any strides (two halves of one convolution
                output are read in place), float32, bfloat16, float16 or float64.
            prior_mean, prior_log_scale: raw prior parameters of the same shape (may be expanded over the
                batch), or both None for the form's prior of raw values (0, 0).
            seed: 0-d int64 tensor on the same device. Noise is keyed on (seed, group, sample, element // 4)
                by Philox 4x32-10, independent of batch and block size.
            group: index of the latent group in generation order.
            form: how raw values become mean and scale.
            first_sample: index of the batch's first image in its stream, so that an image draws the same noise
                in any batch.
            noise: external noise in place of the keyed one, of the mean's shape (zeros: z is the posterior mean).
            log_ratio: also return log q(z) - log p(z) per sample.
        """
        ...


class GaussianSample(Protocol):
    """z = mean + temperature * scale * noise: a draw from the prior."""

    def __call__(
        self,
        mean: Tensor,
        log_scale: Tensor,
        *,
        seed: Tensor,
        group: int,
        form: GaussianForm = PLAIN,
        temperature: float = 1.0,
        first_sample: int = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draw; arguments as in `GaussianSampleKL` (`form.residual` plays no part)."""
        ...


class LogisticMixtureLogProb(Protocol):
    """log p(x) of the discretised logistic mixture (Salimans et al. 2017), summed over pixels: (B,) nats."""

    def __call__(self, parameters: Tensor, x: Tensor, *, bits: int, published_edge: float | None = None) -> Tensor:
        """Evaluate; differentiable in `parameters`.

        Args:
            parameters: (B, P, H, W) with P = 10 K for 3 channels, 3 K for 1 channel. First K mixture logits;
                then per colour channel K means, K log scales (clamped below at -7) and, for 3 channels,
                K coefficient logits (tanh).
            x: (B, C, H, W), pixel levels k / (2^bits - 1) in [0, 1].
            bits: number of bits of a pixel value.
            published_edge: reproduce the rules of the published hierarchies' codes: x in [-1, 1] above the edge takes
                the open upper bin (NVAE 0.99, which catches level 254, so that the probabilities do not sum to one;
                VDVAE 0.999), below -0.999 the lower one, and bins of little mass their density times their width.
        """
        ...


class LogisticMixtureMean(Protocol):
    """Mean of the logistic mixture clamped to the pixels' range: (B, C, H, W) in [0, 1], float32 or wider."""

    def __call__(self, parameters: Tensor, *, channels: int) -> Tensor:
        """Evaluate; differentiable.

        Exact for the first channel, E[clamp(X, -1, 1)] = -1 + s (softplus((m + 1) / s) - softplus((m - 1) / s)) of
        each component; for green and blue the coupling uses each component's mean of the channels before.

        Args:
            parameters: as in `LogisticMixtureLogProb`.
            channels: 3 or 1.
        """
        ...


Activation = Literal["swish", "none"]


class NormSwish(Protocol):
    """swish(batch norm of x), swish(v) = v sigma(v); differentiable in x, weight and bias."""

    def __call__(
        self,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        training: bool,
        momentum: float = 0.1,
        eps: float = 1e-5,
        repeats: int = 1,
        activation: Activation = "swish",
    ) -> Tensor:
        """Normalise each channel over the batch and its pixels, then activate; arguments as `F.batch_norm`.

        Args:
            x: (B, C, h, w), channels-last or channels-first, float32, bfloat16, float16 or float64.
            running_mean, running_var: (C,), moved in place in training, used in evaluation.
            weight, bias: (C,).
            training: normalise by the batch's own mean and biased variance.
            momentum: share of the batch in the running statistics.
            eps: added to the variance.
            repeats: number of times that each pixel of the result will be repeated; counts in the unbiased variance
                that `running_var` moves towards, as if the pixels had been repeated before.
            activation: "none" leaves swish out.
        """
        ...


class BernoulliLogProb(Protocol):
    """log p(x) of independent Bernoulli pixels, summed over pixels: (B,) nats."""

    def __call__(self, logits: Tensor, x: Tensor) -> Tensor:
        """Evaluate for binary images x (B, C, H, W); differentiable in `logits` (B, C, H, W).

        Raises:
            ValueError: x holds other values than 0 and 1 (on a GPU an asynchronous assertion).
        """
        ...


class ImageLinear(Protocol):
    """x W + b for images x, which need no gradient and may be mostly zero."""

    def __call__(self, x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """(B, N), (N, M), (M,) -> (B, M): `rows` holds what each pixel contributes; differentiable in rows and bias."""
        ...


class WeightNorm(Protocol):
    """exp(log_norm) w / (|w| + floor) of many weights at once (Salimans & Kingma 2016); differentiable."""

    def __call__(self, weights: Sequence[Tensor], log_norms: Sequence[Tensor], floor: float) -> tuple[Tensor, ...]:
        """Weights (O, ...) with the norms exp(log_norm), (O, 1, ...), of their outputs."""
        ...


class SpectralNorms(Protocol):
    """Sum over many weights of the top singular value, by power iteration; the vectors carry no gradient."""

    def __call__(self, weights: Sequence[Tensor], left: Sequence[Tensor], rounds: int, floor: float) -> Tensor:
        """Sum of u^T W v over weights (O, ...) read as (O, rest); moves the left vectors (O,) in place.

        Of weights that `WeightNorm` made, the gradient may go past them to what they were made of.
        """
        ...


@dataclass(frozen=True)
class NetworkOps:
    """Operations of a network's layers."""

    residual_cell: ResidualCell
    pack_cell: PackCell
    run_packed: RunPacked
    convolution: ActivatedConvolution
    weight_norm: WeightNorm
    spectral_norms: SpectralNorms


@dataclass(frozen=True)
class Ops:
    """One backend: its name and its operations."""

    name: str
    gaussian_sample_kl: GaussianSampleKL
    gaussian_sample: GaussianSample
    logistic_mixture_log_prob: LogisticMixtureLogProb
    logistic_mixture_mean: LogisticMixtureMean
    norm_swish: NormSwish
    bernoulli_log_prob: BernoulliLogProb
    image_linear: ImageLinear
    network: NetworkOps
