# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
"""Triton: batch norm and swish, forward and backward, with nothing kept but the input and each channel's moments.

Activations are read as lines of contiguous elements: channels-last, a line is a pixel and its elements are channels;
channels-first, it is one channel of one image and its elements are pixels. A program sweeps over some of the lines in
steps of `SWEEP.rows` lines, all of which it loads before it works on them; `kernels.gpu.norm_plan.Sweep` says how.

A field is (pointer, line stride, channel stride), strides and lengths in units of `SWEEP.unit` elements, so that the
compiler sees what they are divisible by. With u = weight (x - mean) / std + bias and s = sigma(u), swish is y = u s
and its slope s + y (1 - s): both passes compute them from x anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.device import LOG2_E, exp2, reciprocal


@triton.jit
def position(lines, units, steps, SWEEP: tl.constexpr):
    """This program's place: (first line, its elements of a line, channels, lines, length).

    Channels are as many as elements in the channels-last layout, else one.
    """
    length = units * SWEEP.unit
    part = tl.program_id(1)
    if SWEEP.layout == "channels_last":
        along = tl.program_id(0) * SWEEP.columns + tl.arange(0, SWEEP.columns)
        channel = along
    else:
        blocks = tl.cdiv(length, SWEEP.columns)
        along = part % blocks * SWEEP.columns + tl.arange(0, SWEEP.columns)
        channel = tl.program_id(0).to(tl.int64)
        part = part // blocks
    return part.to(tl.int64) * steps * SWEEP.rows, along, channel, lines, length


@triton.jit
def inside(place, step, SWEEP: tl.constexpr):
    """Mask of a step's elements inside the activations."""
    first, along, _, lines, length = place
    line = first + step * SWEEP.rows + tl.arange(0, SWEEP.rows)
    return (line < lines)[:, None] & (along < length)[None, :]


@triton.jit
def address(field, place, step, SWEEP: tl.constexpr):
    """Pointers to a step's elements, (rows, columns)."""
    pointer, stride, channel_stride = field
    first, along, channel, _, _ = place
    if SWEEP.layout == "channels_first":
        pointer += channel * channel_stride * SWEEP.unit
    pointer += (first + step * SWEEP.rows) * stride * SWEEP.unit
    row = tl.arange(0, SWEEP.rows).to(tl.int64) * stride * SWEEP.unit
    return pointer + (row[:, None] + along[None, :])


@triton.jit
def load(field, place, step, SWEEP: tl.constexpr):
    """A step's elements as float32; 0 outside."""
    source = address(field, place, step, SWEEP)
    value = tl.load(source) if SWEEP.full else tl.load(source, mask=inside(place, step, SWEEP), other=0.0)
    return value.to(tl.float32)


@triton.jit
def store(field, place, step, value, SWEEP: tl.constexpr):
    """Write a step's elements in the field's type."""
    mask = None if SWEEP.full else inside(place, step, SWEEP)
    tl.store(address(field, place, step, SWEEP), value, mask=mask)


@triton.jit
def by_lane(value, SWEEP: tl.constexpr):
    """A step's elements (rows, columns) as (turns, lanes, columns); a lane's are in one thread."""
    return tl.reshape(value, [SWEEP.turns, SWEEP.rows // SWEEP.turns, SWEEP.columns])


@triton.jit
def load_channels(pointer, place, SWEEP: tl.constexpr):
    """The place's channels of a contiguous (C,), as float32, to be broadcast against a turn's elements."""
    channel = place[2]
    if SWEEP.layout == "channels_first":
        value = tl.load(pointer + channel)
    elif SWEEP.full:
        value = tl.load(pointer + channel)[None, :]
    else:
        value = tl.load(pointer + channel, mask=channel < place[4], other=0.0)[None, :]
    return value.to(tl.float32)


@triton.jit
def summed(value, SWEEP: tl.constexpr):
    """Sum of each of the place's channels over (lanes, columns), to be broadcast as `load_channels`."""
    return tl.sum(value) if SWEEP.layout == "channels_first" else tl.sum(value, 0)[None, :]


@triton.jit
def rounded(product, kept):
    """A product to be summed over threads, 0 where it is not kept.

    A bare product would be fused into the first sum over threads: each adds its own, not yet rounded, to the rounded
    one of another, and threads that should hold one sum differ in its last bit.
    """
    return tl.where(kept, product, 0.0)


@triton.jit
def store_part(parts, plane, place, value, SWEEP: tl.constexpr):
    """Write this program's sums of its channels into a plane of parts (planes, programs, C)."""
    row = tl.cast(plane, tl.int64) * tl.num_programs(1) + tl.program_id(1)
    if SWEEP.layout == "channels_first":
        tl.store(parts + row * tl.num_programs(0) + place[2], value)
    else:
        channel, channels = place[2], place[4]
        at = parts + row * channels + channel
        tl.store(at, tl.reshape(value, [SWEEP.columns]), mask=None if SWEEP.full else channel < channels)


@triton.jit
def held(part, lines, length, steps, SWEEP: tl.constexpr):
    """Number of elements of one channel in a part, float32."""
    LINES: tl.constexpr = SWEEP.rows
    if SWEEP.layout == "channels_last":
        count = tl.minimum(lines - part * (steps * LINES), steps * LINES)
    else:
        blocks = tl.cdiv(length, SWEEP.columns)
        count = tl.minimum(lines - part // blocks * (steps * LINES), steps * LINES)
        count *= tl.minimum(length - part % blocks * SWEEP.columns, SWEEP.columns)
    return count.to(tl.float32)


@triton.jit
def count_by_lane(place, step, SWEEP: tl.constexpr):
    """How many of a step's elements inside the activations each lane holds, (lanes, columns)."""
    LANES: tl.constexpr = SWEEP.rows // SWEEP.turns
    first, along, _, lines, length = place
    left = tl.maximum(lines - (first + step * SWEEP.rows + tl.arange(0, LANES)), 0)
    held_lines = tl.minimum((left + (LANES - 1)) // LANES, SWEEP.turns).to(tl.float32)
    return tl.where((along < length)[None, :], held_lines[:, None], 0.0)


@triton.jit
def step_statistics(x, place, step, SWEEP: tl.constexpr):
    """Count, mean and sum of squared deviations of a step's elements, by lane."""
    value = by_lane(load(x, place, step, SWEEP), SWEEP)
    if SWEEP.full:
        count = SWEEP.turns * 1.0
        mean = tl.sum(value, 0) * (1.0 / SWEEP.turns)
        gap = value - mean[None, :, :]
    else:
        count = count_by_lane(place, step, SWEEP)
        mean = tl.sum(value, 0) * reciprocal(tl.maximum(count, 1.0), SWEEP.fast)
        turn = tl.arange(0, SWEEP.turns).to(tl.float32)[:, None, None]
        gap = tl.where(turn < count[None, :, :], value - mean[None, :, :], 0.0)
    return count, mean, tl.sum(gap * gap, 0)


@triton.jit(do_not_specialize=["lines", "units", "steps"])
def statistics(x, parts, lines, units, steps, SWEEP: tl.constexpr):
    """Write mean and sum of squared deviations of this program's elements, by channel, float32.

    Steps, and at the end lanes, are merged by Chan, Golub and LeVeque (1979): means of a and b elements with a gap g
    add g^2 a b / (a + b) to the squared deviations.
    """
    place = position(lines, units, steps, SWEEP)
    mean = tl.full([SWEEP.rows // SWEEP.turns, SWEEP.columns], 0.0, tl.float32)
    deviations = mean
    count = 0.0 if SWEEP.full else mean
    for step in range(steps):
        more, centre, squares = step_statistics(x, place, step, SWEEP)
        share = more * reciprocal(tl.maximum(count + more, 1.0), SWEEP.fast)
        gap = centre - mean
        mean += gap * share
        deviations += squares + gap * gap * (count * share)
        count += more
    total = held(tl.program_id(1), lines, units * SWEEP.unit, steps, SWEEP)
    centre = summed(rounded(count * mean, count > 0.0), SWEEP) / total
    gap = mean - centre
    store_part(parts, 0, place, centre, SWEEP)
    store_part(parts, 1, place, summed(deviations + count * gap * gap, SWEEP), SWEEP)


@triton.jit(do_not_specialize=["number", "channels", "lines", "units", "steps"])
def merge(
    parts,
    mean,
    inverse,
    running_mean,
    running_var,
    number,
    channels,
    lines,
    units,
    steps,
    momentum,
    unbiased,
    eps,
    SWEEP: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write mean and 1 / sqrt(variance + eps) of each channel from its `number` parts; move the running statistics.

    `unbiased` times the sum of squared deviations is the variance that `running_var` moves towards.
    """
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, PARTS)
    kept = channel < channels
    mask = (part < number)[:, None] & kept[None, :]
    at = parts + part[:, None] * channels + channel[None, :]
    means = tl.load(at, mask=mask, other=0.0)
    deviations = tl.load(at + tl.cast(number, tl.int64) * channels, mask=mask, other=0.0)
    count = tl.where(part < number, held(part, lines, units * SWEEP.unit, steps, SWEEP), 0.0)
    total = tl.sum(count)
    centre = tl.sum(rounded(count[:, None] * means, mask), 0) / total
    gap = means - centre[None, :]
    deviation = tl.sum(deviations + count[:, None] * gap * gap, 0)
    old_mean = tl.load(running_mean + channel, mask=kept, other=0.0).to(tl.float32)
    old_var = tl.load(running_var + channel, mask=kept, other=0.0).to(tl.float32)
    tl.debug_barrier()  # warps that hold the same channels have all read before one of them writes
    tl.store(mean + channel, centre, mask=kept)
    tl.store(inverse + channel, tl.rsqrt(deviation / total + eps), mask=kept)
    tl.store(running_mean + channel, old_mean + momentum * (centre - old_mean), mask=kept)
    tl.store(running_var + channel, old_var + momentum * (deviation * unbiased - old_var), mask=kept)


@triton.jit
def load_affine(affine, place, eps, SWEEP: tl.constexpr, NORM: tl.constexpr):
    """Mean, 1 / std, weight / std and bias of the place's channels."""
    mean, spread, weight, bias = affine
    inverse = load_channels(spread, place, SWEEP)
    if not NORM.training:
        inverse = tl.rsqrt(inverse + eps)
    scale = load_channels(weight, place, SWEEP) * inverse
    return load_channels(mean, place, SWEEP), inverse, scale, load_channels(bias, place, SWEEP)


@triton.jit
def sigmoid(u, FAST: tl.constexpr):
    """1 / (1 + e^-u)."""
    return reciprocal(1.0 + exp2(u * -LOG2_E, FAST), FAST)


@triton.jit(do_not_specialize=["lines", "units", "steps"])
def forward(x, y, affine, lines, units, steps, eps, SWEEP: tl.constexpr, NORM: tl.constexpr):
    """Write y; `affine` is (mean, 1 / std or, in evaluation, variance, weight, bias)."""
    place = position(lines, units, steps, SWEEP)
    mean, _, scale, bias = load_affine(affine, place, eps, SWEEP, NORM)
    for step in range(steps):
        u = (load(x, place, step, SWEEP) - mean) * scale + bias
        store(y, place, step, u * sigmoid(u, SWEEP.fast) if NORM.swish else u, SWEEP)


@triton.jit
def load_gradient(grad_y, x, place, step, mean, scale, bias, SWEEP: tl.constexpr, NORM: tl.constexpr):
    """A step's x - mean, and the gradient of what goes into the activation."""
    centred = load(x, place, step, SWEEP) - mean
    grad = load(grad_y, place, step, SWEEP)
    if NORM.swish:
        u = centred * scale + bias
        s = sigmoid(u, SWEEP.fast)
        y = u * s
        grad *= s + (y - y * s)
    return centred, grad


@triton.jit(do_not_specialize=["lines", "units", "steps"])
def backward_sums(grad_y, x, affine, parts, lines, units, steps, eps, SWEEP: tl.constexpr, NORM: tl.constexpr):
    """Write this program's parts of the gradients of bias, sum of d, and of weight, sum of d (x - mean) / std."""
    place = position(lines, units, steps, SWEEP)
    mean, inverse, scale, bias = load_affine(affine, place, eps, SWEEP, NORM)
    total = tl.full([SWEEP.rows // SWEEP.turns, SWEEP.columns], 0.0, tl.float32)
    product = total
    for step in range(steps):
        centred, d = load_gradient(grad_y, x, place, step, mean, scale, bias, SWEEP, NORM)
        total += tl.sum(by_lane(d, SWEEP), 0)
        product += tl.sum(by_lane(d * centred, SWEEP), 0)
    store_part(parts, 0, place, summed(total, SWEEP), SWEEP)
    store_part(parts, 1, place, summed(product, SWEEP) * inverse, SWEEP)


@triton.jit(do_not_specialize=["lines", "units", "steps"])
def backward(grad_y, x, grad_x, affine, sums, lines, units, steps, eps, share, SWEEP: tl.constexpr, NORM: tl.constexpr):
    """Write the gradient of x: weight / std (d - mean of d - xhat mean of (d xhat)), xhat = (x - mean) / std.

    `sums` are those of d and of d xhat, and `share` is 1 / count. In evaluation the two means do not appear.
    """
    place = position(lines, units, steps, SWEEP)
    mean, inverse, scale, bias = load_affine(affine, place, eps, SWEEP, NORM)
    if NORM.training:
        level = load_channels(sums[0], place, SWEEP) * share * scale
        tilt = load_channels(sums[1], place, SWEEP) * share * scale * inverse
    for step in range(steps):
        centred, d = load_gradient(grad_y, x, place, step, mean, scale, bias, SWEEP, NORM)
        value = d * scale
        if NORM.training:
            value -= centred * tilt + level
        store(grad_x, place, step, value, SWEEP)
