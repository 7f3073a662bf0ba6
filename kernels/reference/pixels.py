"""REFERENCE: binary pixels: their draws, their log-likelihood, linear layers over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.reference.precision import wide

NOT_BINARY = "Bernoulli likelihood: expected binary images (0 and 1), got other values; binarise them"


def require_binary(x: Tensor) -> None:
    """Raise ValueError unless x holds zeros and ones only, the squares of themselves; a GPU is not waited for."""
    squares = x * x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async((squares == x).all(), NOT_BINARY)  # pyright: ignore[reportPrivateImportUsage]
    elif not torch.equal(squares, x):
        raise ValueError(NOT_BINARY)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.BernoulliLogProb`."""
    require_binary(x)
    logits = logits.to(wide(logits.dtype))
    return -F.binary_cross_entropy_with_logits(logits, x.to(logits), reduction="none").flatten(1).sum(1)


def image_linear(x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """The product x W + b; see `kernels.ops.ImageLinear`."""
    return F.linear(x, rows.t(), bias)
