"""CPU: maps channel by channel, as latents draw their noise, and pixel by pixel, as networks keep them."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu import library


def by_pixels(x: Tensor) -> bool:
    """Whether a map (B, C, h, w) in float32 lies pixel by pixel: whole, or some channels of a wider map."""
    if x.ndim != 4 or x.dtype != torch.float32 or x.shape[1] == 1:
        return False
    _, channel, line, pixel = x.stride()
    height, width = x.shape[2:]
    return channel == 1 and pixel >= x.shape[1] and (height == 1 or line == width * pixel) and height * width > 1


def to_planes(x: Tensor) -> Tensor:
    """The map (B, C, h, w) channel by channel: contiguous."""
    if not by_pixels(x):
        return x.contiguous()
    images, channels, height, width = x.shape
    out = torch.empty(x.shape)
    pixels, threads = height * width, library.threads_for(x.numel(), images)
    library.loaded().vaebench_to_planes(
        x.data_ptr(), x.stride(0), x.stride(3), out.data_ptr(), images, pixels, channels, threads
    )
    return out


def to_pixels(x: Tensor) -> Tensor:
    """The contiguous map (B, C, h, w) in float32 pixel by pixel: channels-last."""
    images, channels, height, width = x.shape
    out = torch.empty(x.shape, memory_format=torch.channels_last)
    pixels, threads = height * width, library.threads_for(x.numel(), images)
    library.loaded().vaebench_to_pixels(x.data_ptr(), out.data_ptr(), images, pixels, channels, threads)
    return out
