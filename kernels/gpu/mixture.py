# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
"""Triton: log-likelihood of the discretised logistic mixture, forward and backward.

One program works on `TILE.block` pixels of one image and loops over the mixture, so that nothing larger than a pixel's
two log-sum-exps is written. With p, m = (x - mean +- half) / scale and w = p - m = 2 half / scale, the probability of
an interior level is sigma(p) sigma(-m) (1 - e^-w), which needs no threshold; the lowest level keeps sigma(p), the
highest sigma(-m). Logarithms are kept in bits: p, m and w are scaled by log2 e, so that e^-|p| is one instruction.

A field is (pointer, strides) with strides (sample, channel, row, column) in elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.device import LN_2, LOG2_E, clamped, exp2, log2, reciprocal

MIN_LOG_SCALE = tl.constexpr(-7.0)
LOG2_LOG2_E = tl.constexpr(0.5287663729448977)


@triton.jit
def position(size, TILE: tl.constexpr):
    """This program's place: (image, pixels, their number)."""
    pixel = tl.program_id(1) * TILE.block + tl.arange(0, TILE.block)
    return tl.program_id(0).to(tl.int64), pixel, size


@triton.jit
def inside(place):
    """Mask of the pixels inside the image."""
    return place[1] < place[2]


@triton.jit
def address(field, place, channel, columns, TILE: tl.constexpr):
    """Pointers to one channel of this program's pixels."""
    pointer, strides = field
    start = pointer + place[0] * strides[0] + tl.cast(channel, tl.int64) * strides[1]
    if TILE.contiguous:
        offset = place[1]
    else:
        offset = (place[1] // columns).to(tl.int64) * strides[2] + (place[1] % columns).to(tl.int64) * strides[3]
    return start + offset


@triton.jit
def load(field, place, channel, columns, TILE: tl.constexpr):
    """One channel of this program's pixels as float32."""
    source = address(field, place, channel, columns, TILE)
    value = tl.load(source) if TILE.full else tl.load(source, mask=inside(place), other=0.0)
    return value.to(tl.float32)


@triton.jit
def store(field, place, channel, columns, value, TILE: tl.constexpr):
    """Write one channel of this program's pixels."""
    tl.store(address(field, place, channel, columns, TILE), value, mask=None if TILE.full else inside(place))


@triton.jit
def one_minus_exp(w, t):
    """1 - t for t = e^-w, from its series where w is small."""
    series = w * (1.0 - w * (0.5 - w * (0.16666667 - w * (0.041666668 - w * 0.008333334))))
    return tl.where(w < 0.125, series, 1.0 - t)


@triton.jit
def colour(mean, log_scale, x, TILE: tl.constexpr):
    """One colour of one component.

    Returns:
        linear, factor: the level's log probability in bits is linear + log2 factor.
        d_mean, d_log_scale: its gradients, nats per unit.
    """
    clipped = tl.maximum(log_scale, MIN_LOG_SCALE, propagate_nan=tl.PropagateNan.ALL)
    inverse = exp2(clipped * -LOG2_E + LOG2_LOG2_E, TILE.fast)
    upper, lower = (x - mean + TILE.half) * inverse, (x - mean - TILE.half) * inverse
    above_lowest = tl.where(x < TILE.half - 1.0, 0.0, 1.0)
    below_highest = tl.where(x > 1.0 - TILE.half, 0.0, 1.0)
    interior = above_lowest * below_highest
    edge = 1.0 - interior
    width = inverse * (2.0 * TILE.half)
    shrunk = exp2(-width, TILE.fast)
    bin_width = one_minus_exp(width * LN_2, shrunk) * interior + edge
    above = exp2(-tl.abs(upper), TILE.fast) * below_highest
    below = exp2(-tl.abs(lower), TILE.fast) * above_lowest
    linear = tl.minimum(upper, 0.0) * below_highest - tl.maximum(lower, 0.0) * above_lowest
    above_one, below_one = above + 1.0, below + 1.0
    joint = reciprocal(above_one * below_one * bin_width, TILE.fast)
    tail = tl.where(upper > 0.0, above, below_highest) * (joint * below_one * bin_width)  # sigma(-p)
    head = tl.where(lower > 0.0, above_lowest, below) * (joint * above_one * bin_width)  # sigma(m)
    narrowing = width * shrunk * (joint * above_one * below_one) * interior
    d_mean = (head - tail) * inverse * LN_2
    d_log_scale = (head * lower - tail * upper - narrowing) * LN_2
    d_log_scale = tl.where(log_scale < MIN_LOG_SCALE, 0.0, d_log_scale)
    return linear, joint * bin_width * bin_width, d_mean, d_log_scale


@triton.jit
def log_add(top, rest, value, TILE: tl.constexpr):
    """log2(2^top rest + 2^value) as a new pair (top, rest)."""
    gap = value - top
    shrunk = exp2(-tl.abs(gap), TILE.fast)
    grown = gap > 0.0
    return tl.where(grown, value, top), tl.where(grown, rest * shrunk + 1.0, rest + shrunk)


@triton.jit
def load_colour(parameters, place, k, colour_index, columns, TILE: tl.constexpr):
    """Mean and log scale of one colour of component k."""
    first = TILE.components + colour_index * TILE.per_colour * TILE.components + k
    return load(parameters, place, first, columns, TILE), load(
        parameters, place, first + TILE.components, columns, TILE
    )


@triton.jit
def load_coefficient(parameters, place, k, colour_index, columns, TILE: tl.constexpr):
    """The coefficient tanh(logit) stored under one colour of component k, and its slope."""
    logit = load(parameters, place, (3 + 3 * colour_index) * TILE.components + k, columns, TILE)
    return clamped(logit, 1.0, 1.0, TILE.fast)


@triton.jit
def component(parameters, place, k, red, green, blue, columns, TILE: tl.constexpr):
    """Component k: its logit and log probability in bits; gradients of (mean, log scale) of each colour; slopes.

    The slopes are those of the three coefficients in their logits.
    """
    logit = load(parameters, place, k, columns, TILE) * LOG2_E
    mean, log_scale = load_colour(parameters, place, k, 0, columns, TILE)
    bits, factor, d_red, d_red_scale = colour(mean, log_scale, red, TILE)
    d_green, d_green_scale, d_blue, d_blue_scale, s0, s1, s2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if TILE.colours == 3:
        c0, s0 = load_coefficient(parameters, place, k, 0, columns, TILE)
        mean, log_scale = load_colour(parameters, place, k, 1, columns, TILE)
        more, other, d_green, d_green_scale = colour(mean + c0 * red, log_scale, green, TILE)
        bits, factor = bits + more, factor * other
        c1, s1 = load_coefficient(parameters, place, k, 1, columns, TILE)
        c2, s2 = load_coefficient(parameters, place, k, 2, columns, TILE)
        mean, log_scale = load_colour(parameters, place, k, 2, columns, TILE)
        more, other, d_blue, d_blue_scale = colour(mean + c1 * red + c2 * green, log_scale, blue, TILE)
        bits, factor = bits + more, factor * other
    gradients = (d_red, d_red_scale), (d_green, d_green_scale), (d_blue, d_blue_scale)
    return logit, bits + log2(factor, TILE.fast), gradients, (s0, s1, s2)


@triton.jit
def load_colours(x, place, columns, TILE: tl.constexpr):
    """The colours of this program's pixels in [-1, 1]; of a grey image the one channel, three times."""
    red = load(x, place, 0, columns, TILE) * 2.0 - 1.0
    green, blue = red, red
    if TILE.colours == 3:
        green = load(x, place, 1, columns, TILE) * 2.0 - 1.0
        blue = load(x, place, 2, columns, TILE) * 2.0 - 1.0
    return red, green, blue


@triton.jit
def forward(parameters, x, log_prob, normaliser, evidence, size, columns, TILE: tl.constexpr):
    """Write the log probability (nats) of this program's pixels, and for each pixel two log-sum-exps in bits.

    `normaliser` is that of the mixture logits, `evidence` that of logits plus component log probabilities; they are
    (B, size) contiguous.
    """
    place = position(size, TILE)
    red, green, blue = load_colours(x, place, columns, TILE)
    top = tl.full([TILE.block], -float("inf"), tl.float32)
    rest = tl.full([TILE.block], 0.0, tl.float32)
    prior_top, prior_rest = top, rest
    for k in range(TILE.components):
        logit, bits, _, _ = component(parameters, place, k, red, green, blue, columns, TILE)
        top, rest = log_add(top, rest, logit + bits, TILE)
        prior_top, prior_rest = log_add(prior_top, prior_rest, logit, TILE)
    total, prior_total = top + log2(rest, TILE.fast), prior_top + log2(prior_rest, TILE.fast)
    at = place[0] * size + place[1]
    tl.store(evidence + at, total, mask=None if TILE.full else inside(place))
    tl.store(normaliser + at, prior_total, mask=None if TILE.full else inside(place))
    value = total - prior_total if TILE.full else tl.where(inside(place), total - prior_total, 0.0)
    tl.store(log_prob + place[0] * tl.num_programs(1) + tl.program_id(1), tl.sum(value) * LN_2)


@triton.jit
def store_colour(gradient, place, k, colour_index, columns, pair, responsibility, TILE: tl.constexpr):
    """Write the gradients of mean and log scale of one colour of component k; that of the mean comes back."""
    first = TILE.components + colour_index * TILE.per_colour * TILE.components + k
    d_mean = responsibility * pair[0]
    store(gradient, place, first, columns, d_mean, TILE)
    store(gradient, place, first + TILE.components, columns, responsibility * pair[1], TILE)
    return d_mean


@triton.jit
def backward(parameters, x, gradient, upstream, normaliser, evidence, size, columns, TILE: tl.constexpr):
    """Write the gradient of the parameters; `upstream` (B,) is the gradient of each image's log probability.

    The responsibility of a component is the ratio of its probability to the mixture's; a logit's gradient is
    responsibility - weight, and the rest is the component's own gradient times its responsibility.
    """
    place = position(size, TILE)
    g = tl.load(upstream + place[0])
    red, green, blue = load_colours(x, place, columns, TILE)
    at = place[0] * size + place[1]
    total = tl.load(evidence + at, mask=None if TILE.full else inside(place))
    prior_total = tl.load(normaliser + at, mask=None if TILE.full else inside(place))
    for k in range(TILE.components):
        logit, bits, gradients, slopes = component(parameters, place, k, red, green, blue, columns, TILE)
        responsibility = g * exp2(logit + bits - total, TILE.fast)
        weight = g * exp2(logit - prior_total, TILE.fast)
        store(gradient, place, k, columns, responsibility - weight, TILE)
        store_colour(gradient, place, k, 0, columns, gradients[0], responsibility, TILE)
        if TILE.colours == 3:
            d_green = store_colour(gradient, place, k, 1, columns, gradients[1], responsibility, TILE)
            d_blue = store_colour(gradient, place, k, 2, columns, gradients[2], responsibility, TILE)
            store(gradient, place, 3 * TILE.components + k, columns, d_green * red * slopes[0], TILE)
            store(gradient, place, 6 * TILE.components + k, columns, d_blue * red * slopes[1], TILE)
            store(gradient, place, 9 * TILE.components + k, columns, d_blue * green * slopes[2], TILE)
