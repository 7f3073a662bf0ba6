"""How images come to the device of the steps: they stay there where they take little of it, else batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.data import picked

MOST_SHARE = 0.25
"""Of a GPU's memory: images that take no more stay there."""


def stays(nbytes: int, memory: int) -> bool:
    """Whether images of so many bytes stay on a device that has so much memory."""
    return nbytes <= MOST_SHARE * memory


def placed(images: UInt8[Tensor, "N C H W"], device: torch.device) -> UInt8[Tensor, "N C H W"]:
    """The images where batches are drawn from: on the device if they may stay there, else where they are."""
    if device.type == "cuda" and not stays(images.numel(), torch.cuda.get_device_properties(device).total_memory):
        return images
    return images.to(device)


def batch_of(images: Tensor, index: Tensor, device: torch.device) -> UInt8[Tensor, "B C H W"]:
    """The images at the index (B,), on the device."""
    chosen = picked(images, index)
    if chosen.device == device:
        return chosen
    return chosen.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else chosen.to(device)


def supplied(images: Tensor, order: Iterator[Tensor], device: torch.device) -> Iterator[UInt8[Tensor, "B C H W"]]:
    """The batches of an order, on the device.

    Where the images are not there, the next batch is on its way while the step of this one is taken.
    """
    if images.device == device or device.type != "cuda":
        yield from (batch_of(images, index, device) for index in order)
        return
    ahead = torch.cuda.Stream(device)
    waiting = _begun(images, next(order), device, ahead)
    for index in order:
        torch.cuda.current_stream(device).wait_stream(ahead)
        current, waiting = waiting, _begun(images, index, device, ahead)
        current.record_stream(torch.cuda.current_stream(device))
        yield current


def _begun(images: Tensor, index: Tensor, device: torch.device, ahead: torch.cuda.Stream) -> Tensor:
    """A batch whose copy is begun on that stream."""
    with torch.cuda.stream(ahead):
        return batch_of(images, index, device)
