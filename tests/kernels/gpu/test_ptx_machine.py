"""The interpreter of PTX itself: arithmetic against exact values, control flow, warps, and what it must refuse."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx.arithmetic import bfloat16, decoded, encoded, operation
from ptx.errors import DivergenceError, OutOfBoundsError, RaceError, UnsupportedError, UnwrittenError
from ptx.functions import APPROXIMATIONS, approximate, divide
from ptx.machine import Grid, execute
from ptx.memory import GlobalMemory
from ptx.parser import WIDTHS, parse

GENERATOR = np.random.default_rng(0)
WORDS = np.concatenate([GENERATOR.integers(0, 2**32, 4000, dtype=np.uint32), np.uint32([0, 1, 2**31, 2**32 - 1])])


def computed(opcode, *operands):
    """An operation on unsigned bits."""
    chosen = operation(tuple(opcode.replace("::", "__").split(".")), "nearest")
    given = [decoded(np.asarray(bits), kind) for bits, kind in zip(operands, chosen.operands, strict=True)]
    with np.errstate(all="ignore"):
        return encoded(chosen.compute(*given), chosen.result)


def floats(*values):
    return np.asarray(values, np.float32).view(np.uint32)


def test_bfloat16_is_rounded_as_torch_rounds():
    values = WORDS.view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16()
    with np.errstate(invalid="ignore"):
        ours = torch.from_numpy(bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours.nan_to_num(), expected.nan_to_num())
    assert torch.equal(ours.isnan(), expected.isnan())


def nearest(value):
    """The float32 nearest to a fraction, ties to even."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(around, key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(np.uint32)) & 1))


def test_multiply_add_is_rounded_once():
    a, b = (GENERATOR.normal(size=2000).astype(np.float32) for _ in range(2))
    c = (-a * b * (1 + GENERATOR.integers(-3, 4, 2000) * 2.0**-22)).astype(np.float32)
    c[::2] *= np.float32(2.0**-30)
    found = computed("fma.rn.f32", *(one.view(np.uint32) for one in (a, b, c))).view(np.float32)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert [float(one) for one in found] == [float(nearest(one)) for one in exact]


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u16"])
def test_integers_are_exact(kind):
    width = WIDTHS[kind]
    a, b = (GENERATOR.integers(0, 2**width, 200, dtype=np.uint64).astype(f"uint{width}") for _ in range(2))
    b[:20] = GENERATOR.integers(1, 9, 20)
    x, y = ([int(one) for one in decoded(bits, kind)] for bits in (a, b))
    modulus = 2**width

    def check(opcode, exact, given=(a, b)):
        assert [int(one) for one in computed(opcode, *given)] == [int(value) % modulus for value in exact], opcode

    check(f"add.{kind}", [p + q for p, q in zip(x, y, strict=True)])
    check(f"sub.{kind}", [p - q for p, q in zip(x, y, strict=True)])
    check(f"mul.lo.{kind}", [p * q for p, q in zip(x, y, strict=True)])
    check(f"mul.hi.{kind}", [p * q >> width for p, q in zip(x, y, strict=True)])
    check(f"min.{kind}", [min(p, q) for p, q in zip(x, y, strict=True)])
    quotients = [(abs(p) // abs(q)) * (1 if (p < 0) == (q < 0) else -1) for p, q in zip(x, y, strict=True)]
    check(f"div.{kind}", quotients)
    check(f"rem.{kind}", [p - q * n for p, q, n in zip(x, y, quotients, strict=True)])
    amounts = GENERATOR.integers(0, 2 * width, 200).astype(np.uint32)
    check(f"shr.{kind}", [p >> int(by) for p, by in zip(x, amounts, strict=True)], (a, amounts))
    unsigned = [int(one) for one in a]
    check(f"shl.b{width}", [p << int(by) for p, by in zip(unsigned, amounts, strict=True)], (a, amounts))
    if width < 64:
        wide = computed(f"mul.wide.{kind}", a, b)
        assert [int(one) for one in wide] == [p * q % modulus**2 for p, q in zip(x, y, strict=True)]


def field(word, start, count, signed):
    """`bfe.u32`, `bfe.s32` as the PTX ISA writes them."""
    sign = word >> min(start + count - 1, 31) & 1 if signed and count else 0
    return sum((word >> start + i & 1 if i < count and start + i <= 31 else sign) << i for i in range(32))


def test_fields_of_bits():
    words, starts, counts = WORDS[:500], *(GENERATOR.integers(0, 40, 500).astype(np.uint32) for _ in range(2))
    for kind, signed in (("u32", False), ("s32", True)):
        expected = [field(*(int(one) for one in row), signed) for row in zip(words, starts, counts, strict=True)]
        assert computed(f"bfe.{kind}", words, starts, counts).tolist() == expected
    inserted = computed("bfi.b32", words, WORDS[500:1000], np.uint32(5), np.uint32(9))
    mask = np.uint32(0x1FF << 5)
    assert np.array_equal(inserted, (words << np.uint32(5)) & mask | WORDS[500:1000] & ~mask)


def test_words_are_permuted_and_shifted():
    low, top = np.uint32([0x33221100]), np.uint32([0x77665584])
    assert computed("prmt.b32", low, top, np.uint32([0x4567])).tolist() == [0x84556677]
    assert computed("prmt.b32", low, top, np.uint32([0xC000])).tolist() == [0xFF000000]
    assert computed("shf.l.wrap.b32", low, top, np.uint32([36])).tolist() == [0x76655843]
    assert computed("shf.r.clamp.b32", low, top, np.uint32([40])).tolist() == [0x77665584]
    assert computed("lop3.b32", low, top, np.uint32([0xFFFF]), np.uint32(0xE8)).tolist() == [
        (0x33221100 & 0x77665584) | (0x33221100 & 0xFFFF) | (0x77665584 & 0xFFFF)
    ]
    assert computed("popc.b32", np.uint32([0xF0F])).tolist() == [8]
    assert computed("clz.b32", np.uint32([0xF0F, 0])).tolist() == [20, 32]
    assert computed("brev.b32", np.uint32([3])).tolist() == [0xC0000000]


def test_conversions():
    values = floats(2.5, -2.5, 3e9, -3e9, np.nan)
    assert computed("cvt.rni.s32.f32", values).view(np.int32).tolist() == [2, -2, 2**31 - 1, -(2**31), 0]
    assert computed("cvt.rzi.u32.f32", values).tolist() == [2, 0, 3000000000, 0, 0]
    assert computed("cvt.rn.f32.u64", np.uint64([2**63 + 2**39 + 1])).view(np.float32)[0] == np.float32(2.0**63 + 2**40)
    assert computed("cvt.u32.u64", np.uint64([2**40 + 7])).tolist() == [7]
    assert computed("cvt.s64.s32", np.uint32([2**32 - 5])).view(np.int64).tolist() == [-5]
    assert computed("cvt.rn.bf16x2.f32", floats(1.0), floats(-2.0)).tolist() == [0x3F80C000]
    assert computed("cvt.f32.bf16", np.uint16([0xC000])).view(np.float32).tolist() == [-2.0]


def test_comparisons_with_nan_and_zero():
    a, b = floats(1, np.nan, -0.0), floats(2, 1, 0.0)
    assert computed("setp.lt.f32", a, b).tolist() == [True, False, False]
    assert computed("setp.ltu.f32", a, b).tolist() == [True, True, False]
    assert computed("setp.num.f32", a, b).tolist() == [True, False, True]
    assert computed("max.f32", a, b).tolist() == floats(2, 1, 0.0).tolist()
    assert computed("min.f32", a, b).tolist() == floats(1, 1, -0.0).tolist()
    assert np.isnan(computed("max.NaN.f32", a, b).view(np.float32)).tolist() == [False, True, False]
    assert computed("setp.hi.u32", np.uint32([2**31]), np.uint32([1])).tolist() == [True]
    assert computed("setp.gt.s32", np.uint32([2**31]), np.uint32([1])).tolist() == [False]


ARGUMENTS = np.concatenate([GENERATOR.uniform(-6, 6, 4000), 2.0 ** GENERATOR.uniform(-80, 80, 2000)])
DOMAIN = {"ex2": (-120, 120), "sin": (-6, 6), "cos": (-6, 6), "tanh": (-9, 9)}


@pytest.mark.parametrize(("name", "kind"), [key for key in APPROXIMATIONS if key[1] == "f32"], ids=str)
def test_approximate_functions_stay_within_their_error(name, kind):
    low, high = DOMAIN.get(name, (2.0**-90, 2.0**90))
    x = ARGUMENTS[np.abs(ARGUMENTS - (low + high) / 2) < (high - low) / 2].astype(np.float32)
    wide = x.astype(np.float64)
    exact = APPROXIMATIONS[name, kind].function(wide)
    bound = APPROXIMATIONS[name, kind].error(wide, exact)
    found = {how: approximate(name, kind, x, how, ftz=True) for how in ("nearest", "up", "down", "scattered")}
    half_ulp = np.spacing(np.abs(exact).astype(np.float32)) / 2
    for values in found.values():
        assert (np.abs(values - exact) <= np.maximum(bound, half_ulp) * (1 + 1e-9)).all()
    assert (found["up"] >= found["nearest"]).all()
    assert (found["down"] <= found["nearest"]).all()
    assert (found["up"] > found["down"]).mean() > 0.9
    assert ((found["scattered"] == found["up"]) | (found["scattered"] == found["down"])).all()
    assert 0.2 < (found["scattered"] == found["up"]).mean() < 0.8


def test_special_values_of_approximate_functions():
    with np.errstate(all="ignore"):
        x = np.float32([0, -0.0, np.inf, -np.inf, 1e-40])
        assert approximate("rcp", "f32", x, "up", True).tolist() == [np.inf, -np.inf, 0, 0, np.inf]
        assert approximate("ex2", "f32", x, "down", True).tolist() == [1, 1, np.inf, 0, 1]
        assert approximate("lg2", "f32", x[[0, 2]], "up", True).tolist() == [-np.inf, np.inf]
        assert approximate("cos", "f32", x[:1], "up", True).tolist() == [1]
        assert divide(np.float32([1, 6]), np.float32([0, 3]), "nearest", False).tolist() == [np.inf, 2]


HEAD = """
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel(.param .u64 .ptr .global .align 1 kernel_param_0)
{
 .reg .pred %p<9>;
 .reg .b16 %rs<9>;
 .reg .b32 %r<99>;
 .reg .b64 %rd<9>;
 ld.param.b64 %rd1, [kernel_param_0];
 mov.u32 %r1, %tid.x;
 mul.wide.u32 %rd2, %r1, 4;
 add.s64 %rd3, %rd1, %rd2;
"""
TAIL = " st.global.b32 [%rd3], %r2;\n ret;\n}\n"


def run(body, threads=32, shared=512, written=False, blocks=1):
    """A kernel that writes one word a thread."""
    out, memory = np.zeros(threads, np.uint32), GlobalMemory()
    allocation = memory.add("out", 0, out.view(np.uint8), written)
    grid = Grid((blocks, 1, 1), threads, shared)
    execute(parse(HEAD + body + TAIL), grid, [np.uint64(allocation.base).tobytes()], memory, "nearest")
    return out.tolist()


COLLATZ = """
 add.s32 %r3, %r1, 1;
 mov.b32 %r2, 0;
$L_loop:
 setp.eq.s32 %p1, %r3, 1;
 @%p1 bra $L_end;
 and.b32 %r4, %r3, 1;
 setp.eq.s32 %p2, %r4, 0;
 @%p2 bra $L_even;
 mad.lo.s32 %r3, %r3, 3, 1;
 bra.uni $L_next;
$L_even:
 shr.s32 %r3, %r3, 1;
$L_next:
 add.s32 %r2, %r2, 1;
 bra.uni $L_loop;
$L_end:
"""


def steps_to_one(number):
    return 0 if number == 1 else 1 + steps_to_one(3 * number + 1 if number % 2 else number // 2)


def test_threads_take_their_own_branches():
    assert run(COLLATZ, 64) == [steps_to_one(lane + 1) for lane in range(64)]


def test_threads_meet_again_after_a_branch():
    body = COLLATZ + " shfl.sync.bfly.b32 %r2, %r2, 31, 31, -1;\n"
    assert run(body) == [steps_to_one(32 - lane) for lane in range(32)]


@pytest.mark.parametrize(
    ("mode", "by", "clamp", "source"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("up", 3, 0, lambda lane: max(lane - 3, lane if lane < 3 else 0)),
        ("down", 3, 31, lambda lane: lane + 3 if lane < 29 else lane),
        ("idx", 2, 0x181F, lambda lane: lane & 24 | 2),
    ],
)
def test_shuffles(mode, by, clamp, source):
    assert run(f" shfl.sync.{mode}.b32 %r2, %r1, {by}, {clamp}, -1;\n") == [source(lane) for lane in range(32)]


def test_votes_and_reductions():
    assert run(" setp.lt.u32 %p1, %r1, 3;\n vote.sync.ballot.b32 %r2, %p1, -1;\n", 64) == [7] * 32 + [0] * 32
    assert (
        run(" setp.lt.u32 %p1, %r1, 31;\n vote.sync.any.pred %p2, !%p1, -1;\n selp.b32 %r2, 4, 5, %p2;\n") == [4] * 32
    )
    assert run(" redux.sync.add.s32 %r2, %r1, -1;\n") == [496] * 32


MATRIX = """
 mov.b32 %r5, memory;
 shl.b32 %r3, %r1, 2;
 add.s32 %r4, %r5, %r3;
 st.shared.b32 [%r4], %r1;
 bar.sync 0;
 and.b32 %r6, %r1, 7;
 shl.b32 %r6, %r6, 4;
 add.s32 %r6, %r5, %r6;
"""


def test_matrices_are_loaded_and_stored():
    assert run(MATRIX + " ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r6];\n") == list(range(32))
    transposed = np.arange(32, dtype=np.uint32).view(np.uint16).reshape(8, 8).T.copy().view(np.uint32).ravel()
    load = " ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r2}, [%r6];\n"
    assert run(MATRIX + load) == transposed.tolist()
    store = " stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r6], {%r2};\n bar.sync 0;\n ld.shared.b32 %r2, [%r4];\n"
    assert run(MATRIX + load + store) == list(range(32))


def test_regions_in_braces_have_names_of_their_own():
    body = " mov.b32 %r2, 5;\n{ .reg .b32 %t; mov.b32 %t, 7; add.s32 %r2, %r2, %t; }\n"
    assert run(body + "{ .reg .b32 %t; mov.b32 %t, 1; add.s32 %r2, %r2, %t; }\n")[0] == 13


EXCHANGE = """
 mov.b32 %r5, memory;
 shl.b32 %r3, %r1, 2;
 add.s32 %r4, %r5, %r3;
 st.shared.b32 [%r4], %r1;
{barrier}
 xor.b32 %r6, %r3, {other};
 add.s32 %r6, %r5, %r6;
 ld.shared.b32 %r2, [%r6];
"""


def test_a_barrier_orders_warps():
    assert run(EXCHANGE.format(barrier=" bar.sync 0;", other=128), 64) == [lane ^ 32 for lane in range(64)]
    assert run(EXCHANGE.format(barrier="", other=4), 64) == [lane ^ 1 for lane in range(64)]  # within a warp
    with pytest.raises(RaceError, match=r"is read by .* written by another"):
        run(EXCHANGE.format(barrier="", other=128), 64)


def test_blocks_are_not_ordered():
    with pytest.raises(RaceError, match="of out is written"):
        run(" mov.u32 %r2, %ctaid.x;\n", blocks=2)


def test_different_values_in_one_place_are_a_race():
    body = " mov.b32 %r5, memory;\n st.shared.b32 [%r5], {value};\n bar.sync 0;\n ld.shared.b32 %r2, [%r5];\n"
    assert run(body.format(value=7)) == [7] * 32
    with pytest.raises(RaceError, match="in the same instruction"):
        run(body.format(value="%r1"))


def test_a_barrier_that_some_threads_miss():
    with pytest.raises(DivergenceError, match="ends before a barrier"):
        run(" setp.lt.u32 %p1, %r1, 3;\n @%p1 ret;\n bar.sync 0;\n mov.b32 %r2, 0;\n")


def test_a_shuffle_that_some_lanes_miss():
    with pytest.raises(DivergenceError, match="member mask"):
        run(" setp.lt.u32 %p1, %r1, 3;\n mov.b32 %r2, 0;\n @%p1 shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;\n")


def test_memory_is_checked():
    with pytest.raises(UnwrittenError, match="byte 0 of out"):
        run(" ld.global.b32 %r2, [%rd3];\n")
    assert run(" ld.global.b32 %r2, [%rd3];\n", written=True) == [0] * 32
    with pytest.raises(UnwrittenError, match="shared memory"):
        run(" mov.b32 %r5, memory;\n ld.shared.b32 %r2, [%r5];\n")
    with pytest.raises(OutOfBoundsError, match="bytes 512 to 516 of 512"):
        run(" mov.b32 %r5, memory;\n ld.shared.b32 %r2, [%r5+512];\n")
    with pytest.raises(OutOfBoundsError, match="bytes -4 to 0 of out"):
        run(" ld.global.b32 %r2, [%rd1+-4];\n", written=True)


@pytest.mark.parametrize(
    "line",
    [
        "wgmma.fence.sync.aligned;",
        "add.rz.f32 %r2, %r1, %r1;",
        "atom.global.add.u32 %r2, [%rd3], 1;",
        "bar.sync 1, 64;",
        "ld.shared::cluster.b32 %r2, [%r1];",
        "mov.u32 %r2, %clusterid.x;",
        "sin.approx.f64 %rd2, %rd2;",
        "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r1, %r1;",
    ],
)
def test_what_is_not_known_is_refused_by_name(line):
    with pytest.raises(UnsupportedError) as raised:
        run(f" mov.b32 %r2, 0;\n {line}\n")
    assert line.split()[0].rstrip(";") in str(raised.value)


def test_registers_that_nobody_wrote_are_poison():
    assert run(" add.f32 %r2, %r9, 0f3F800000;\n")[0] & 0x7FC00000 == 0x7FC00000
    with pytest.raises(OutOfBoundsError):
        run(" ld.global.b32 %r2, [%rd7];\n", written=True)
