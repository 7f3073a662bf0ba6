# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
"""Triton: reparameterised draw of a diagonal Gaussian with its KL, forward and backward.

One program works on `WALK.block` latents of one sample. The noise is drawn in the kernel, and drawn again in the
backward pass: it is never stored. A program writes its own part of its sample's KL, so the sum needs no atomics.

A field of latents is (pointer, strides), a pair is (mean pointer, log-scale pointer, strides); strides are (sample,
channel, pixel) in units of `WALK.unit` elements, so that the compiler sees what they are divisible by. None leaves a
part out: no prior, no external noise, no KL, no log ratio, no gradient of the prior. `kernels.gpu.latent_plan.Walk`
describes the layouts in which a sample is walked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.device import LN_2, LOG2_E, clamped, exp2, four_normals, in_order, in_order_by_two, log2, reciprocal


@triton.jit
def position(units, pixels, WALK: tl.constexpr):
    """This program's place: (sample, indices of the walk, their end, pixels).

    A step of the channels-last walk is one channel of four pixels, else it is one latent.
    """
    LATENTS: tl.constexpr = 4 if WALK.layout == "channels_last" else 1
    STEPS: tl.constexpr = WALK.block // LATENTS
    walked = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    return tl.program_id(0).to(tl.int64), walked, units * WALK.unit // LATENTS, pixels


@triton.jit
def inside(place):
    """Mask of the latents inside the sample."""
    return place[1] < place[2]


@triton.jit
def address(pointer, strides, place, lane, WALK: tl.constexpr):
    """Pointers to the walked latents; `lane` counts the four pixels of the channels-last walk."""
    row, walked, _, pixels = place
    ALIGNMENT: tl.constexpr = WALK.alignment
    start = tl.multiple_of(pointer + row * strides[0] * WALK.unit, ALIGNMENT)
    if WALK.layout == "channels_last":
        offset = (walked // WALK.channels * 4 + lane) * (strides[2] * WALK.unit) + walked % WALK.channels
    elif WALK.layout == "strided":
        offset = (walked // pixels).to(tl.int64) * strides[1] + (walked % pixels).to(tl.int64) * strides[2]
    else:
        offset = walked
    return start + offset


@triton.jit
def load(pointer, strides, place, lane, WALK: tl.constexpr):
    """Latents as float32; 0 outside the sample."""
    source = address(pointer, strides, place, lane, WALK)
    value = tl.load(source) if WALK.full else tl.load(source, mask=inside(place), other=0.0)
    return value.to(tl.float32)


@triton.jit
def store(pointer, strides, place, lane, value, WALK: tl.constexpr):
    """Write latents in the pointer's type."""
    tl.store(address(pointer, strides, place, lane, WALK), value, mask=None if WALK.full else inside(place))


@triton.jit
def noise_along_sample(key, sample, group, WALK: tl.constexpr):
    """The keyed noise of a flat or strided walk, so laid out that a thread holds neighbours."""
    QUADS: tl.constexpr = WALK.neighbours // 4
    THREADS: tl.constexpr = WALK.block // WALK.neighbours
    quad = (tl.program_id(1) * THREADS + tl.arange(0, THREADS)) * QUADS
    normals = four_normals(key, quad, sample, group, WALK.fast)
    if QUADS == 2:
        noise = in_order_by_two(normals, four_normals(key, quad + 1, sample, group, WALK.fast))
    else:
        noise = in_order(normals)
    return noise


@triton.jit
def channel_normals(key, step, sample, pixels, group, WALK: tl.constexpr):
    """The four normals, by pixel, of steps of the channels-last walk."""
    quad = step % WALK.channels * (pixels // 4) + step // WALK.channels
    return four_normals(key, quad, sample, group, WALK.fast)


@triton.jit
def four_channels(key, step, sample, pixels, group, WALK: tl.constexpr):
    """Normals of four steps from `step` on: for each of four pixels a tuple of the four steps."""
    a0, a1, a2, a3 = channel_normals(key, step, sample, pixels, group, WALK)
    b0, b1, b2, b3 = channel_normals(key, step + 1, sample, pixels, group, WALK)
    c0, c1, c2, c3 = channel_normals(key, step + 2, sample, pixels, group, WALK)
    d0, d1, d2, d3 = channel_normals(key, step + 3, sample, pixels, group, WALK)
    return (a0, b0, c0, d0), (a1, b1, c1, d1), (a2, b2, c2, d2), (a3, b3, c3, d3)


@triton.jit
def noise_along_channels(key, sample, pixels, group, WALK: tl.constexpr):
    """The keyed noise of the channels-last walk: one tensor for each of four pixels, neighbours in a thread."""
    THREADS: tl.constexpr = WALK.block // 4 // WALK.neighbours
    step = (tl.program_id(1) * THREADS + tl.arange(0, THREADS)) * WALK.neighbours
    p0, p1, p2, p3 = four_channels(key, step, sample, pixels, group, WALK)
    if WALK.neighbours == 8:
        q0, q1, q2, q3 = four_channels(key, step + 4, sample, pixels, group, WALK)
        noise = in_order_by_two(p0, q0), in_order_by_two(p1, q1), in_order_by_two(p2, q2), in_order_by_two(p3, q3)
    else:
        noise = in_order(p0), in_order(p1), in_order(p2), in_order(p3)
    return noise


@triton.jit
def keyed_noise(seed, sample, pixels, group, WALK: tl.constexpr):
    """The keyed noise, a tuple with one tensor for each lane of the walk."""
    key = tl.load(seed)
    if WALK.layout == "channels_last":
        lanes = noise_along_channels(key, sample, pixels, group, WALK)
    else:
        lanes = (noise_along_sample(key, sample, group, WALK),)
    return lanes


@triton.jit
def load_raw(posterior, prior, place, lane, FORM: tl.constexpr, WALK: tl.constexpr):
    """Raw posterior mean and log scale (residual offsets added), raw prior mean and log scale (0 without one)."""
    mean = load(posterior[0], posterior[2], place, lane, WALK)
    log_scale = load(posterior[1], posterior[2], place, lane, WALK)
    prior_mean, prior_log_scale = 0.0, 0.0
    if prior is not None:
        prior_mean = load(prior[0], prior[2], place, lane, WALK)
        prior_log_scale = load(prior[1], prior[2], place, lane, WALK)
        if FORM.residual:
            mean += prior_mean
            log_scale += prior_log_scale
    return mean, log_scale, prior_mean, prior_log_scale


@triton.jit
def read_posterior(mean, log_scale, FORM: tl.constexpr, FAST: tl.constexpr):
    """Mean, scale, log2 of the scale before the floor; slopes of mean and log scale in the raw values."""
    mean, mean_slope = clamped(mean, FORM.soft_clamp, 1.0, FAST)
    bits, slope = clamped(log_scale, FORM.soft_clamp, LOG2_E, FAST)
    narrow = exp2(bits, FAST)
    scale = narrow
    if FORM.scale_floor != 0.0:
        scale = narrow + FORM.scale_floor
        slope = slope * narrow * reciprocal(scale, FAST)
    return mean, scale, bits, mean_slope, slope


@triton.jit
def read_prior(mean, log_scale, LEARNED: tl.constexpr, FORM: tl.constexpr, FAST: tl.constexpr):
    """As `read_posterior`, with 1 / scale in place of the scale; a prior that is not learned has raw values (0, 0)."""
    if not LEARNED:
        mean, inverse, bits, mean_slope, slope = 0.0, 1.0 / (1.0 + FORM.scale_floor), 0.0, 0.0, 0.0
    else:
        mean, mean_slope = clamped(mean, FORM.soft_clamp, 1.0, FAST)
        bits, slope = clamped(log_scale, FORM.soft_clamp, LOG2_E, FAST)
        if FORM.scale_floor != 0.0:
            narrow = exp2(bits, FAST)
            inverse = reciprocal(narrow + FORM.scale_floor, FAST)
            slope = slope * narrow * inverse
        else:
            inverse = exp2(-bits, FAST)
    return mean, inverse, bits, mean_slope, slope


@triton.jit
def kept(value, place, WALK: tl.constexpr):
    """The value inside the sample, 0 outside."""
    return value if WALK.full else tl.where(inside(place), value, 0.0)


@triton.jit(do_not_specialize=["pixels", "group", "first_sample"])
def forward(
    posterior,
    prior,
    noise,
    seed,
    z,
    kl,
    log_ratio,
    units,
    pixels,
    group,
    first_sample,
    temperature,
    FORM: tl.constexpr,
    WALK: tl.constexpr,
):
    """Write z, and this program's part of the KL and of the log ratio of its sample.

    With shift = (m_q - m_p) / s_p, ratio = s_q / s_p and d = (z - m_p) / s_p:
    KL = (shift^2 + ratio^2 - 1) / 2 - log ratio; log q(z) - log p(z) = (d^2 - eps^2) / 2 - log ratio.
    Both are summed in bits and written in nats.
    """
    HALF: tl.constexpr = 0.5 * LOG2_E
    LEARNED: tl.constexpr = prior is not None
    place = position(units, pixels, WALK)
    row = place[0]
    if noise is None:
        keyed = keyed_noise(seed, row + first_sample, pixels, group, WALK)
    total, total_ratio = 0.0, 0.0
    for lane in tl.static_range(4 if WALK.layout == "channels_last" else 1):
        mean, log_scale, prior_mean, prior_log_scale = load_raw(posterior, prior, place, lane, FORM, WALK)
        m_q, s_q, bits_q, _, _ = read_posterior(mean, log_scale, FORM, WALK.fast)
        eps = keyed[lane] if noise is None else load(noise[0], noise[1], place, lane, WALK)
        draw = m_q + (s_q if temperature is None else s_q * temperature) * eps
        store(z[0], z[1], place, lane, draw, WALK)
        if kl is not None:
            m_p, inverse, bits_p, _, _ = read_prior(prior_mean, prior_log_scale, LEARNED, FORM, WALK.fast)
            shift, ratio = (m_q - m_p) * inverse, s_q * inverse
            gap = log2(ratio, WALK.fast) if FORM.scale_floor != 0.0 else bits_q - bits_p
            total += kept((shift * shift + ratio * ratio - 1.0) * HALF - gap, place, WALK)
        if log_ratio is not None:
            d = (draw - m_p) * inverse
            total_ratio += kept((d * d - eps * eps) * HALF - gap, place, WALK)
    part = row * tl.num_programs(1) + tl.program_id(1)
    if kl is not None:
        tl.store(kl + part, tl.sum(total) * LN_2)
    if log_ratio is not None:
        tl.store(log_ratio + part, tl.sum(total_ratio) * LN_2)


@triton.jit
def gradients(g, k, r, m_q, s_q, step, m_p, inverse):
    """Gradients of m_q, log s_q, m_p and log s_p, from those of z (g), KL (k) and log ratio (r or None).

    With shift, ratio and d as in `forward`, and z moving everything by g' = g + r d / s_p:
    g' + k shift / s_p,  g' s_q eps + k (ratio^2 - 1) - r,  -(k shift + r d) / s_p,
    k (1 - shift^2 - ratio^2) + r (1 - d^2).
    """
    shift, ratio = (m_q - m_p) * inverse, s_q * inverse
    weighted = k * shift
    pull = weighted * inverse
    d_log = k * (ratio * ratio) - k
    p_mean, p_log = -pull, -(weighted * shift + d_log)
    if r is not None:
        d = (m_q + step - m_p) * inverse
        drift = r * d * inverse
        g, p_mean = g + drift, p_mean - drift
        d_log, p_log = d_log - r, p_log + r * (1.0 - d * d)
    return g + pull, g * step + d_log, p_mean, p_log


@triton.jit(do_not_specialize=["pixels", "group", "first_sample"])
def backward(
    posterior,
    prior,
    noise,
    seed,
    grad_z,
    grad_kl,
    grad_log_ratio,
    grad_posterior,
    grad_prior,
    units,
    pixels,
    group,
    first_sample,
    temperature,
    FORM: tl.constexpr,
    WALK: tl.constexpr,
):
    """Write the gradients of the raw values."""
    LEARNED: tl.constexpr = prior is not None
    place = position(units, pixels, WALK)
    row = place[0]
    if noise is None:
        keyed = keyed_noise(seed, row + first_sample, pixels, group, WALK)
    k = None if grad_kl is None else tl.load(grad_kl + row)
    r = None if grad_log_ratio is None else tl.load(grad_log_ratio + row)
    for lane in tl.static_range(4 if WALK.layout == "channels_last" else 1):
        mean, log_scale, prior_mean, prior_log_scale = load_raw(posterior, prior, place, lane, FORM, WALK)
        m_q, s_q, _, q_mean_slope, q_slope = read_posterior(mean, log_scale, FORM, WALK.fast)
        eps = keyed[lane] if noise is None else load(noise[0], noise[1], place, lane, WALK)
        g = load(grad_z[0], grad_z[1], place, lane, WALK)
        step = (s_q if temperature is None else s_q * temperature) * eps
        if k is None:
            d_mean, d_log = g, g * step
        else:
            m_p, inverse, _, p_mean_slope, p_slope = read_prior(prior_mean, prior_log_scale, LEARNED, FORM, WALK.fast)
            d_mean, d_log, p_mean, p_log = gradients(g, k, r, m_q, s_q, step, m_p, inverse)
        d_mean, d_log = d_mean * q_mean_slope, d_log * q_slope
        store(grad_posterior[0], grad_posterior[2], place, lane, d_mean, WALK)
        store(grad_posterior[1], grad_posterior[2], place, lane, d_log, WALK)
        if grad_prior is not None:
            p_mean, p_log = p_mean * p_mean_slope, p_log * p_slope
            if FORM.residual:
                p_mean, p_log = p_mean + d_mean, p_log + d_log
            store(grad_prior[0], grad_prior[2], place, lane, p_mean, WALK)
            store(grad_prior[1], grad_prior[2], place, lane, p_log, WALK)
