"""CPU: the structures that the C kernels take (`source/layout.h` and the headers beside it), and addresses."""

from __future__ import annotations

import ctypes

from torch import Tensor

MOST_LAYERS = 8
"""Layers of a cell that is described as a whole (`MOST_LAYERS` in `layer.h`)."""
MOST_NORMS = MOST_LAYERS + 1
MOST_TENSORS = 2 * MOST_NORMS + 2 * MOST_LAYERS + 4
"""Weight and bias of each norm and layer, and the gate's four."""


def pointer(tensor: Tensor | None) -> int | None:
    """Address of the first value; None is a null pointer."""
    return None if tensor is None else tensor.data_ptr()


class Form(ctypes.Structure):
    """How raw values become Gaussians; 0 stands for no clamp and no floor."""

    _fields_ = (("clamp", ctypes.c_float), ("floor", ctypes.c_float), ("residual", ctypes.c_int32))


class Raw(ctypes.Structure):
    """Raw mean and log scale, the distance of two samples, and of two pixels; null pointers stand for zeros.

    Samples lie channel by channel where the distance of pixels is 0.
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("mean", "log_scale")),
        *((name, ctypes.c_int64) for name in ("row", "step")),
    )


class Shape(ctypes.Structure):
    """Latents of a sample: maps of so many channels and pixels."""

    _fields_ = (("channels", ctypes.c_int64), ("pixels", ctypes.c_int64))


class Layer(ctypes.Structure):
    """A layer on maps of given shapes."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "c_in", "c_out", "out_height", "out_width")),
        *((name, ctypes.c_int32) for name in ("kernel", "stride", "dilation", "repeat", "depthwise", "activation")),
    )


class Upstream(ctypes.Structure):
    """A gradient as a linear form of two maps: scale * gradient + output_scale * output + shift."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gradient", "output", "scale", "output_scale", "shift")),
        ("per_image", ctypes.c_int64),
    )


class TrainableCell(ctypes.Structure):
    """A cell on maps of given shapes, its tensors in the order of `CellTensors.flat`, and their gradients.

    `normed`: whether there is a norm before each layer and after the last, of which `constants` are epsilon, momentum
    and repeats, `running` mean and variance; `hidden` units of the gate, 0 without.
    """

    _fields_ = (
        ("count", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("gain", ctypes.c_float),
        ("normed", ctypes.c_int32 * MOST_NORMS),
        ("layers", Layer * MOST_LAYERS),
        ("constants", ctypes.c_double * (3 * MOST_NORMS)),
        ("running", ctypes.c_void_p * (2 * MOST_NORMS)),
        *((name, ctypes.c_void_p * MOST_TENSORS) for name in ("tensors", "gradients")),
    )


class Cell(ctypes.Structure):
    """A packed cell on maps of given shapes."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("gain", ctypes.c_float),
        ("layers", Layer * MOST_LAYERS),
        ("packed", ctypes.c_void_p * MOST_LAYERS),
        ("start", ctypes.c_void_p * MOST_LAYERS),
        ("norms", ctypes.c_void_p * (MOST_LAYERS + 1)),
        ("gate", ctypes.c_void_p * 4),
    )


class Weight(ctypes.Structure):
    """A weight as a matrix, and what belongs to it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "log_norm", "gradient", "out", "norm", "d_log_norm")),
        *((name, ctypes.c_void_p) for name in ("left", "right", "d_spectral")),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


class Matrix(ctypes.Structure):
    """A weight as a matrix, its top singular value and vectors, and the gradient of that value."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "left", "kept", "right", "sigma", "gradient")),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


class Parameter(ctypes.Structure):
    """A parameter of so many values, and what Adamax keeps of it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "gradient", "average", "largest", "steps")),
        ("count", ctypes.c_int64),
    )
