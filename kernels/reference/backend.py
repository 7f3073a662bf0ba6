"""REFERENCE, assembled: the operations in plain PyTorch, on any device. The specification and the test oracle."""

from __future__ import annotations

from kernels.ops import Ops
from kernels.reference.gaussian import gaussian_sample, gaussian_sample_kl
from kernels.reference.mixture import logistic_mixture_log_prob, logistic_mixture_mean
from kernels.reference.network import network_of
from kernels.reference.norm import norm_swish
from kernels.reference.pixels import bernoulli_log_prob, image_linear

REFERENCE = Ops(
    "reference",
    gaussian_sample_kl,
    gaussian_sample,
    logistic_mixture_log_prob,
    logistic_mixture_mean,
    norm_swish,
    bernoulli_log_prob,
    image_linear,
    network_of(),
)
