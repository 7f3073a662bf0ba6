# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
"""Triton: elementary functions and the keyed noise on the device.

`FAST` picks approximate instructions: CUDA those of NVIDIA (PTX `*.approx.ftz`, at most 2^-20.5 off), HIP AMD's
reciprocal (v_rcp_f32, 1 ulp), where division after IEEE 754 takes ten instructions. The portable branch serves the
interpreter, and AMD for all else. The words of the noise are always those of `kernels/reference/philox.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.hip import libdevice as hip

CUDA, HIP = tl.constexpr(1), tl.constexpr(2)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
UNIFORM_STEP = tl.constexpr(2.0**-32)
ANGLE_STEP = tl.constexpr(3.141592653589793 * 2.0**-31)
SIN_3, SIN_5, SIN_7 = tl.constexpr(-1.666665494e-1), tl.constexpr(8.332178130e-3), tl.constexpr(-1.951729703e-4)
COS_4, COS_6 = tl.constexpr(4.166127852e-2), tl.constexpr(-1.365244812e-3)


@triton.jit
def approximate(INSTRUCTION: tl.constexpr, x):
    """One PTX instruction on float32."""
    return tl.inline_asm_elementwise(INSTRUCTION + ".approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """2^x."""
    return approximate("ex2", x) if FAST == CUDA else tl.exp2(x)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """Logarithm to base 2."""
    return approximate("lg2", x) if FAST == CUDA else tl.log2(x)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """1 / x."""
    if FAST == CUDA:
        return approximate("rcp", x)
    return hip.fast_dividef(1.0, x) if FAST == HIP else 1.0 / x


@triton.jit
def with_sign_of(magnitude, value):
    """A magnitude >= 0 with the sign of `value`."""
    sign = value.to(tl.int32, bitcast=True) & -0x80000000
    return (magnitude.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def clamped(value, CLAMP: tl.constexpr, UNIT: tl.constexpr, FAST: tl.constexpr):
    """UNIT c tanh(v / c), and the slope of c tanh(v / c); None stands for no clamp.

    With t = e^(-2 |v| / c): tanh = (1 - t) / (1 + t) and its slope 4 t / (1 + t)^2, accurate from 0 to saturation.
    """
    if CLAMP is None:
        result, slope = value * UNIT, 1.0
    else:
        t = exp2(tl.abs(value) * (-2.0 / CLAMP * LOG2_E), FAST)
        inverse = reciprocal(1.0 + t, FAST)
        result = with_sign_of((t * -(UNIT * CLAMP) + UNIT * CLAMP) * inverse, value)
        slope = 4.0 * t * inverse * inverse
    return result, slope


@triton.jit
def turn(word, FAST: tl.constexpr):
    """Cosine and sine of the angle pi 2^-31 times `word` read as a signed integer.

    Portable: the quarter turns are taken off in integers, then minimax polynomials on [-pi/4, pi/4].
    """
    if FAST == CUDA:
        angle = word.to(tl.int32, bitcast=True).to(tl.float32) * ANGLE_STEP
        return approximate("cos", angle), approximate("sin", angle)
    quarters = (word + 0x20000000) >> 30
    x = (word - (quarters << 30)).to(tl.int32, bitcast=True).to(tl.float32) * ANGLE_STEP
    square = x * x
    sine = x + x * square * (square * (square * SIN_7 + SIN_5) + SIN_3)
    cosine = 1.0 - 0.5 * square + square * square * (square * COS_6 + COS_4)
    swap = (quarters & 1) != 0
    horizontal, vertical = tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
    left, down = ((quarters + 1) & 2) != 0, (quarters & 2) != 0
    return tl.where(left, -horizontal, horizontal), tl.where(down, -vertical, vertical)


@triton.jit
def box_muller(radius_word, angle_word, FAST: tl.constexpr):
    """Two independent standard normals from two words; the modulus keeps -log u >= 0 under approximation."""
    uniform = radius_word.to(tl.float32) * UNIFORM_STEP + 0.5 * UNIFORM_STEP
    square = tl.abs(log2(uniform, FAST)) * (2.0 * LN_2)
    radius = approximate("sqrt", square) if FAST == CUDA else tl.sqrt(square)
    cosine, sine = turn(angle_word, FAST)
    return radius * cosine, radius * sine


@triton.jit
def multiply(word, FACTOR: tl.constexpr):
    """High and low word of a product: one wide multiplication instead of two."""
    product = word.to(tl.uint64) * FACTOR
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Four words of Philox 4x32-10 for uint32 counters and an int64 seed."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = multiply(c0, 0xD2511F53)
        high1, low1 = multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def four_normals(seed, quad, sample, group, FAST: tl.constexpr):
    """Standard normals of elements 4 quad .. 4 quad + 3: four tensors of the shape of `quad`."""
    zero = tl.full([], 0, tl.uint32)
    w0, w1, w2, w3 = philox(quad.to(tl.uint32), sample.to(tl.uint32), zero + group, zero, seed)
    n0, n1 = box_muller(w0, w1, FAST)
    n2, n3 = box_muller(w2, w3, FAST)
    return n0, n1, n2, n3


@triton.jit
def in_order(normals):
    """The four normals of each quad side by side, flat."""
    n0, n1, n2, n3 = normals
    return tl.join(tl.join(n0, n2), tl.join(n1, n3)).reshape([4 * n0.numel])


@triton.jit
def in_order_by_two(even, odd):
    """The eight normals of an even quad and its odd neighbour side by side, flat."""
    n0, n1 = tl.join(even[0], odd[0]), tl.join(even[1], odd[1])
    n2, n3 = tl.join(even[2], odd[2]), tl.join(even[3], odd[3])
    return in_order((n0, n1, n2, n3))
