"""What one instruction makes of registers: integers, floats, logic, comparisons and conversions.

Each function here reads an opcode's parts and gives an `Operation` on lanes (PTX ISA, "Integer Arithmetic
Instructions", "Floating Point Instructions", "Half Precision Floating Point Instructions", "Comparison and Selection
Instructions", "Logic and Shift Instructions", "Data Movement and Conversion Instructions"). Floats are rounded to the
nearest, `fma` once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ptx.errors import UnsupportedError
from ptx.functions import Rounding, approximate, divide, flushed
from ptx.parser import WIDTHS

Lanes = NDArray[Any]
Parts = tuple[str, ...]
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = ("f16", "bf16", "f32", "f64")
PACKED = {"f16x2": "f16", "bf16x2": "bf16"}


class Operation(NamedTuple):
    """Types of result and operands, and the functions to the result and, where there is one, to a second."""

    result: str
    operands: tuple[str, ...]
    compute: Callable[..., Lanes]
    second: Callable[..., Lanes] | None = None


def decoded(bits: Lanes, kind: str) -> Lanes:
    """Values of a type from unsigned bits of its width; 16-bit floats come as float32, packed ones stay bits."""
    if kind in ("pred",) or (kind[0] in "bu" and kind not in FLOATS) or kind in PACKED:
        return bits
    if kind[0] == "s":
        return bits.view(SIGNED[WIDTHS[kind]])
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32 if kind == "f32" else np.float64)


def encoded(values: Lanes, kind: str) -> Lanes:
    """Unsigned bits of values; floats are rounded once to the nearest."""
    values = np.asarray(values)
    width = UNSIGNED[WIDTHS[kind]]
    if kind == "bf16":
        return bfloat16(values)
    if kind in FLOATS:
        return values.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]).view(width)
    return values if values.dtype == width else values.view(width) if values.dtype != np.bool_ else values.astype(width)


def to_odd(values: Lanes) -> Lanes:
    """Float64 as float32 rounded to odd: rounding it again to fewer bits is as rounding once."""
    rounded = values.astype(np.float32)
    bits = rounded.view(np.uint32)
    inexact = (rounded.astype(np.float64) != values) & ~np.isnan(values)
    bits = np.where(inexact & (np.abs(rounded) > np.abs(values)), bits - np.uint32(1), bits)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def bfloat16(values: Lanes) -> Lanes:
    """Bits of the nearest bfloat16."""
    bits = to_odd(values.astype(np.float64)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def fused(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """A b + c of factors of at most 26 bits in float64, rounded to odd."""
    a, b, c = (np.asarray(one, np.float64) for one in (a, b, c))
    product = a * b
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    even = (lost != 0) & np.isfinite(total) & np.isfinite(lost) & ((bits & 1) == 0)
    return np.where(even, bits + np.where((lost > 0) == (total > 0), 1, -1), bits).view(np.float64)


def check(parts: Parts, allowed: Iterable[str], last: int = 1) -> set[str]:
    """The modifiers between a name and its types.

    Raises:
        UnsupportedError: one that is not allowed.
    """
    rest = set(parts[1 : len(parts) - last])
    if not rest <= set(allowed):
        raise UnsupportedError(".".join(parts))
    return rest


def by_halves(operation: Operation, packed: str) -> Operation:
    """An operation on 16-bit floats, on both halves of 32 bits."""
    kind = PACKED[packed]

    def compute(*operands: Lanes) -> Lanes:
        def half(by: int) -> Lanes:
            given = (decoded((one >> np.uint32(by)).astype(np.uint16), kind) for one in operands)
            return encoded(operation.compute(*given), kind).astype(np.uint32)

        return half(0) | (half(16) << np.uint32(16))

    return Operation(packed, (packed,) * len(operation.operands), compute)


def floating(parts: Parts, count: int, function: Callable[..., Lanes], allowed: str = "rn ftz sat") -> Operation:
    """An operation on floats of one type; 16-bit types are computed in float64."""
    kind, modifiers = parts[-1], check(parts, allowed.split())
    inner = PACKED.get(kind, kind)
    if inner not in FLOATS:
        raise UnsupportedError(".".join(parts))
    ftz = "ftz" in modifiers and kind == "f32"

    def compute(*operands: Lanes) -> Lanes:
        given = [np.asarray(one, np.float64) if inner in ("f16", "bf16") else one for one in operands]
        result = np.asarray(function(*(flushed(one) if ftz else one for one in given)))
        result = flushed(result.astype(np.float32)) if ftz else result
        return np.where(np.isnan(result), 0, np.clip(result, 0, 1)) if "sat" in modifiers else result

    operation = Operation(inner, (inner,) * count, compute)
    return by_halves(operation, kind) if kind in PACKED else operation


def same(parts: Parts, count: int, function: Callable[..., Lanes], allowed: str = "") -> Operation:
    """An operation on integers or bits of one type."""
    check(parts, allowed.split())
    return Operation(parts[-1], (parts[-1],) * count, function)


def is_float(parts: Parts) -> bool:
    """Whether the operation's type is a float."""
    return parts[-1] in FLOATS or parts[-1] in PACKED


def add(parts: Parts, _: Rounding) -> Operation:
    """`add`."""
    return floating(parts, 2, np.add) if is_float(parts) else same(parts, 2, np.add)


def subtract(parts: Parts, _: Rounding) -> Operation:
    """`sub`."""
    return floating(parts, 2, np.subtract) if is_float(parts) else same(parts, 2, np.subtract)


def wide(kind: str) -> str:
    """The integer type of twice the width."""
    return f"{kind[0]}{2 * WIDTHS[kind]}"


def dtype(kind: str) -> Any:
    """NumPy's type of an integer type."""
    return (SIGNED if kind[0] == "s" else UNSIGNED)[WIDTHS[kind]]


def high(a: Lanes, b: Lanes, kind: str) -> Lanes:
    """High half of a product."""
    if WIDTHS[kind] < 64:
        product = a.astype(dtype(wide(kind))) * b.astype(dtype(wide(kind)))
        return (product >> np.asarray(WIDTHS[kind], product.dtype)).astype(dtype(kind))
    product = np.asarray(a, object) * np.asarray(b, object)
    return np.asarray((product >> 64) & (2**64 - 1), np.uint64).view(dtype(kind))


def multiply(parts: Parts, _: Rounding) -> Operation:
    """`mul`, of integers `mul.lo`, `mul.hi` or `mul.wide`."""
    if is_float(parts):
        return floating(parts, 2, np.multiply)
    kind, (half,) = parts[-1], check(parts, ("lo", "hi", "wide"))
    if half == "wide":
        up = dtype(wide(kind))
        return Operation(wide(kind), (kind, kind), lambda a, b: a.astype(up) * b.astype(up))
    return Operation(kind, (kind, kind), np.multiply if half == "lo" else lambda a, b: high(a, b, kind))


def multiply_add(parts: Parts, rounding: Rounding) -> Operation:
    """`mad` of integers."""
    product = multiply(("mul", *parts[1:]), rounding)
    operands = (*product.operands, product.result)
    return Operation(product.result, operands, lambda a, b, c: product.compute(a, b) + c)


def fma(parts: Parts, _: Rounding) -> Operation:
    """`fma`; `fma.relu` and float64 are not known."""
    if parts[-1] == "f64":
        raise UnsupportedError(".".join(parts))
    return floating(parts, 3, fused)


def quotient(a: Lanes, b: Lanes) -> Lanes:
    """Integer quotient towards zero; 0 where the divisor is 0, as PTX leaves it unspecified."""
    found = np.floor_divide(a, b)
    return np.where((b != 0) & (found < 0) & (found * b != a), found + np.asarray(1, found.dtype), found)


def division(parts: Parts, rounding: Rounding) -> Operation:
    """`div`."""
    if not is_float(parts):
        return same(parts, 2, quotient)
    modifiers = check(parts, ("rn", "full", "approx", "ftz"))
    if modifiers & {"full", "approx"}:
        return Operation("f32", ("f32", "f32"), lambda a, b: divide(a, b, rounding, "ftz" in modifiers))
    return floating(parts, 2, np.divide)


def remainder(parts: Parts, _: Rounding) -> Operation:
    """`rem`."""
    return same(parts, 2, lambda a, b: a - quotient(a, b) * b)


def extreme(parts: Parts, _: Rounding) -> Operation:
    """`min` and `max`: a number rather than NaN unless `.NaN` asks for it; -0 is below 0."""
    low = parts[0] == "min"
    if not is_float(parts):
        return same(parts, 2, np.minimum if low else np.maximum)
    spreads_nan, prefers_numbers = (np.minimum, np.fmin) if low else (np.maximum, np.fmax)
    chosen = spreads_nan if "NaN" in parts else prefers_numbers

    def compute(a: Lanes, b: Lanes) -> Lanes:
        zeros = (a == 0) & (b == 0)
        sign = np.signbit(a) | np.signbit(b) if low else np.signbit(a) & np.signbit(b)
        return np.where(zeros, np.where(sign, -0.0, 0.0).astype(np.asarray(a).dtype), chosen(a, b))

    return floating(parts, 2, compute, "ftz NaN")


def absolute(parts: Parts, _: Rounding) -> Operation:
    """`abs`."""
    return floating(parts, 1, np.abs, "ftz") if is_float(parts) else same(parts, 1, np.abs)


def negate(parts: Parts, _: Rounding) -> Operation:
    """`neg`."""
    return floating(parts, 1, np.negative, "ftz") if is_float(parts) else same(parts, 1, np.negative)


def copy_sign(parts: Parts, _: Rounding) -> Operation:
    """`copysign`: the sign of the first operand, the magnitude of the second."""
    return floating(parts, 2, lambda a, b: np.copysign(b, a), "")


EXACT: dict[str, Callable[[Lanes], Lanes]] = {"rcp": np.reciprocal, "sqrt": np.sqrt}


def function(parts: Parts, rounding: Rounding) -> Operation:
    """`ex2`, `lg2`, `rcp`, `sqrt`, `rsqrt`, `sin`, `cos` and `tanh`: `.approx`, or `.rn`."""
    name, kind, modifiers = parts[0], parts[-1], check(parts, ("approx", "ftz", "rn"))
    if "rn" in modifiers and name in EXACT:
        return floating(parts, 1, EXACT[name])
    inner = PACKED.get(kind, kind)
    if "approx" not in modifiers or (inner in ("f32", "f64") and inner != "f32"):
        raise UnsupportedError(".".join(parts))
    ftz = "ftz" in modifiers
    operation = Operation(inner, (inner,), lambda x: approximate(name, inner, np.asarray(x), rounding, ftz))
    return by_halves(operation, kind) if kind in PACKED else operation


def logic(parts: Parts, _: Rounding) -> Operation:
    """`and`, `or`, `xor`."""
    chosen = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return same(parts, 2, chosen[parts[0]])


def invert(parts: Parts, _: Rounding) -> Operation:
    """`not`."""
    return same(parts, 1, np.invert)


def lop3(parts: Parts, _: Rounding) -> Operation:
    """`lop3`: any function of three bits, given by its table."""

    def compute(a: Lanes, b: Lanes, c: Lanes, table: Lanes) -> Lanes:
        result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
        for row in range(8):
            if int(table) >> row & 1:
                bits = (one if row >> place & 1 else ~one for one, place in ((a, 2), (b, 1), (c, 0)))
                result = result | np.bitwise_and.reduce(np.broadcast_arrays(*bits))
        return result

    check(parts, ())
    return Operation("b32", ("b32",) * 4, compute)


def shift(parts: Parts, _: Rounding) -> Operation:
    """`shl` and `shr`; amounts beyond the width count as the width."""
    kind, width = parts[-1], WIDTHS[parts[-1]]
    check(parts, ())

    def compute(a: Lanes, amount: Lanes) -> Lanes:
        inside = np.minimum(amount, width - 1).astype(a.dtype)
        if parts[0] == "shl":
            return np.where(amount >= width, np.asarray(0, a.dtype), a << inside)
        return a >> inside if kind[0] == "s" else np.where(amount >= width, np.asarray(0, a.dtype), a >> inside)

    return Operation(kind, (kind, "u32"), compute)


def funnel(parts: Parts, _: Rounding) -> Operation:
    """`shf`: the high (left) or low (right) word of 64 bits shifted."""
    modifiers = check(parts, ("l", "r", "wrap", "clamp"))

    def compute(low: Lanes, top: Lanes, amount: Lanes) -> Lanes:
        by = (amount & np.uint32(31) if "wrap" in modifiers else np.minimum(amount, 32)).astype(np.uint64)
        both = low.astype(np.uint64) | (top.astype(np.uint64) << np.uint64(32))
        result = (both << by) >> np.uint64(32) if "l" in modifiers else both >> by
        return result.astype(np.uint32)

    return Operation("b32", ("b32", "b32", "u32"), compute)


def ones(count: Lanes) -> Lanes:
    """Words of 64 bits whose lowest `count` are set."""
    low = (np.uint64(1) << np.minimum(count, 63).astype(np.uint64)) - np.uint64(1)
    return np.where(np.asarray(count) >= 64, ~np.uint64(0), low)


def extract(parts: Parts, _: Rounding) -> Operation:
    """`bfe`: a field of bits; a signed one is extended by its highest bit."""
    kind, width = parts[-1], WIDTHS[parts[-1]]
    check(parts, ())

    def compute(a: Lanes, position: Lanes, length: Lanes) -> Lanes:
        start, count = ((one & np.uint32(255)).astype(np.int64) for one in (position, length))
        word = a.view(UNSIGNED[width]).astype(np.uint64)
        kept = ones(np.clip(np.minimum(count, width - start), 0, 64))
        field = (word >> np.minimum(start, 63).astype(np.uint64)) & kept
        highest = np.clip(start + count - 1, 0, width - 1).astype(np.uint64)
        negative = ((word >> highest) & np.uint64(1) == 1) & (count > 0) & (kind[0] == "s")
        return np.where(negative, field | ~kept, field).astype(UNSIGNED[width]).view(dtype(kind))

    return Operation(kind, (kind, "u32", "u32"), compute)


def insert(parts: Parts, _: Rounding) -> Operation:
    """`bfi`: a field of bits written into another word."""
    kind, width = parts[-1], WIDTHS[parts[-1]]
    check(parts, ())

    def compute(a: Lanes, b: Lanes, position: Lanes, length: Lanes) -> Lanes:
        start, count = ((one & np.uint32(255)).astype(np.int64) for one in (position, length))
        by = np.minimum(start, 63).astype(np.uint64)
        mask = np.where(start >= width, np.uint64(0), ones(count) << by)
        return (((a.astype(np.uint64) << by) & mask) | (b.astype(np.uint64) & ~mask)).astype(UNSIGNED[width])

    return Operation(kind, (kind, kind, "u32", "u32"), compute)


def permute(parts: Parts, _: Rounding) -> Operation:
    """`prmt.b32` in its default mode: four bytes out of eight."""
    check(parts, ())

    def compute(a: Lanes, b: Lanes, selection: Lanes) -> Lanes:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        result = np.zeros(np.broadcast(a, b, selection).shape, np.uint32)
        for index in range(4):
            chosen = (selection >> np.uint32(4 * index)) & np.uint32(15)
            start = (chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = (both >> start).astype(np.uint32) & np.uint32(255)
            byte = np.where(chosen & 8, np.where(byte & 128, np.uint32(255), np.uint32(0)), byte)
            result = result | (byte << np.uint32(8 * index))
        return result

    return Operation("b32", ("b32",) * 3, compute)


def count_bits(parts: Parts, _: Rounding) -> Operation:
    """`popc`, `clz`, `brev`."""
    kind, width = parts[-1], WIDTHS[parts[-1]]
    check(parts, ())

    def compute(a: Lanes) -> Lanes:
        bits = (np.asarray(a)[..., None] >> np.arange(width, dtype=a.dtype)) & np.asarray(1, a.dtype)
        if parts[0] == "popc":
            return bits.sum(-1).astype(np.uint32)
        if parts[0] == "clz":
            return np.where(a == 0, width, np.argmax(bits[..., ::-1], -1)).astype(np.uint32)
        return (bits[..., ::-1] << np.arange(width, dtype=a.dtype)).sum(-1).astype(a.dtype)

    return Operation(kind if parts[0] == "brev" else "u32", (kind,), compute)


ORDERED = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt}
ORDERED |= {"ge": operator.ge, "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def comparison(name: str, floats: bool) -> Callable[[Lanes, Lanes], Lanes]:
    """A comparison; of floats an ordered one is false, an unordered one (`equ`, ...) true, where one is NaN."""
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    base = name[:-1] if floats and name.endswith("u") and len(name) == 3 else name
    if base not in ORDERED:
        raise UnsupportedError(f"comparison {name}")
    compare = ORDERED[base]
    if not floats:
        return compare
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), name != base, compare(a, b))


def predicate(parts: Parts, _: Rounding) -> Operation:
    """`setp`, with a Boolean operator over a third operand where there is one.

    The second result is of the negated comparison; of packed floats the results are those of low and high halves.
    """
    kind, name = parts[-1], parts[1]
    rest = check((parts[0], *parts[2:]), ("and", "or", "xor", "ftz")) - {"ftz"}
    inner = PACKED.get(kind, kind)
    compare, ftz = comparison(name, inner in FLOATS), "ftz" in parts and kind == "f32"
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}

    def result(half: int, negated: bool) -> Callable[..., Lanes]:
        def compute(a: Lanes, b: Lanes, *third: Lanes) -> Lanes:
            if kind in PACKED:
                a, b = (decoded((one >> np.uint32(16 * half)).astype(np.uint16), inner) for one in (a, b))
            a, b = (flushed(a), flushed(b)) if ftz else (a, b)
            found = np.asarray(compare(a, b), np.bool_) ^ negated
            return combine[next(iter(rest))](found, third[0]) if rest else found

        return compute

    second = result(1, negated=False) if kind in PACKED else result(0, negated=True)
    return Operation("pred", (kind, kind, *(["pred"] if rest else [])), result(0, negated=False), second)


def select(parts: Parts, _: Rounding) -> Operation:
    """`selp`."""
    kind = f"b{WIDTHS[parts[-1]]}"
    check(parts, ())
    return Operation(kind, (kind, kind, "pred"), lambda a, b, chosen: np.where(chosen, a, b))


ROUNDED: dict[str, Callable[[Lanes], Lanes]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integer(values: Lanes, kind: str) -> Lanes:
    """Integers of rounded floats, kept to their range; NaN is 0."""
    info = np.iinfo(dtype(kind))
    low, high_ = float(info.min), float(info.max)
    inside = np.where(np.isnan(values), 0, np.clip(values.astype(np.float64), low, high_))
    top = inside >= high_
    return np.where(top, np.asarray(info.max, dtype(kind)), np.where(top, 0, inside).astype(dtype(kind)))


def convert(parts: Parts, _: Rounding) -> Operation:
    """`cvt`; two float32 become a packed pair, the first its high half."""
    target, source = parts[-2:]
    modifiers = check(parts, ("rn", "rni", "rzi", "rmi", "rpi", "ftz"), last=2)
    ftz = "ftz" in modifiers and "f32" in (source, target)
    rounds = next((ROUNDED[one] for one in modifiers if one in ROUNDED), None)
    if target in PACKED and source == "f32":
        half = PACKED[target]

        def pack(a: Lanes, b: Lanes) -> Lanes:
            upper, lower = (encoded(one, half).astype(np.uint32) for one in (a, b))
            return (upper << np.uint32(16)) | lower

        return Operation(target, ("f32", "f32"), pack)
    if source not in WIDTHS or target not in WIDTHS or source in PACKED or target in PACKED:
        raise UnsupportedError(".".join(parts))
    if source not in FLOATS and target not in FLOATS:
        return Operation(target, (source,), lambda a: a.astype(dtype(target)))
    if source not in FLOATS:
        through = np.float32 if target == "f32" else np.float64
        return Operation(target, (source,), lambda a: a.astype(through))

    def compute(a: Lanes) -> Lanes:
        a = flushed(a) if ftz and source == "f32" else a
        a = rounds(a) if rounds else a
        if target not in FLOATS:
            return to_integer(a, target)
        return flushed(a.astype(np.float32)) if ftz and target == "f32" else a

    if target not in FLOATS and rounds is None:
        raise UnsupportedError(".".join(parts))
    return Operation(target, (source,), compute)


Reader = Callable[[Parts, Rounding], Operation]
OPERATIONS: dict[str, Reader] = {"add": add, "sub": subtract, "mul": multiply, "mad": multiply_add, "fma": fma}
OPERATIONS |= {"div": division, "rem": remainder, "min": extreme, "max": extreme, "abs": absolute, "neg": negate}
OPERATIONS |= dict.fromkeys(("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"), function)
OPERATIONS |= dict.fromkeys(("and", "or", "xor"), logic) | {"not": invert, "lop3": lop3, "copysign": copy_sign}
OPERATIONS |= {"shl": shift, "shr": shift, "shf": funnel, "bfe": extract, "bfi": insert, "prmt": permute}
OPERATIONS |= dict.fromkeys(("popc", "clz", "brev"), count_bits)
OPERATIONS |= {"setp": predicate, "selp": select, "cvt": convert}


def operation(parts: Parts, rounding: Rounding) -> Operation:
    """The operation of an opcode.

    Raises:
        UnsupportedError: it is not known, or not with these modifiers.
    """
    reader = OPERATIONS.get(parts[0])
    if reader is None or (parts[-1] not in WIDTHS):
        raise UnsupportedError(".".join(parts))
    return reader(parts, rounding)
