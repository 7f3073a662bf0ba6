"""CPU, assembled: the operations on a CPU, with gradients written by hand, in C where there is a compiler."""

from __future__ import annotations

from kernels.cpu import pixels
from kernels.cpu.cells.packed import pack_cell, run_packed
from kernels.cpu.cells.trainable import convolution, residual_cell
from kernels.cpu.gaussian import gaussian_sample, gaussian_sample_kl
from kernels.cpu.mixture import logistic_mixture_log_prob, logistic_mixture_mean
from kernels.cpu.weights import spectral_norms, weight_norm
from kernels.ops import NetworkOps, Ops
from kernels.reference.norm import norm_swish

NETWORK = NetworkOps(residual_cell, pack_cell, run_packed, convolution, weight_norm, spectral_norms)
CPU = Ops(
    "cpu",
    gaussian_sample_kl,
    gaussian_sample,
    logistic_mixture_log_prob,
    logistic_mixture_mean,
    norm_swish,
    pixels.bernoulli_log_prob,
    pixels.image_linear,
    NETWORK,
)
