"""Executes a parsed kernel over the lanes of its blocks in lock step.

The lanes that stand at the earliest instruction run next, until they branch, wait or meet others; so threads that took
different branches meet again. Whatever a device would leave undefined is an error: a shuffle from a lane that is not
there, a barrier that some threads never reach (PTX ISA, "Control Flow Instructions", "Parallel Synchronization and
Communication Instructions", "Data Movement and Conversion Instructions").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ptx.arithmetic import UNSIGNED, Operation, decoded, encoded, operation
from ptx.errors import DivergenceError, OutOfBoundsError, PtxError, UnsupportedError, UnwrittenError
from ptx.functions import Rounding
from ptx.memory import GlobalMemory, SharedMemory, Threads
from ptx.parser import WIDTHS, Instruction, Program

Lanes = NDArray[Any]
Step = Callable[[Lanes | None], None]
WARP = 32
MOST_LANES = 8192
"""Lanes that run together, at least one block."""
MOST_SEGMENTS = 1_000_000
"""Straight runs of instructions before a launch counts as endless."""
ADDRESS = re.compile(r"\[\s*([%\w$#.]+)\s*(?:\+\s*(-?\d+)\s*)?\]$")
INTEGER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?$")
FLOAT = re.compile(r"(-?)0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})$")
CACHE = {"nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "weak", "volatile", "relaxed", "gpu", "cta", "sys"}
CACHE |= {f"L1__{how}" for how in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")}
CACHE |= {"L2__64B", "L2__128B", "L2__256B"}
CONTROL = {"bra", "ret", "exit", "bar", "barrier"}
NO_EFFECT = {"membar", "fence"}


@dataclass(frozen=True)
class Grid:
    """Blocks and threads of a launch, and bytes of dynamic shared memory."""

    blocks: tuple[int, int, int]
    threads: int
    dynamic_shared: int


def literal(text: str, width: int) -> int | None:
    """Bits of a constant, or None (PTX ISA, "Constants")."""
    if found := FLOAT.match(text):
        bits = int(found[3], 16)
        return bits ^ (1 << (4 * len(found[3]) - 1)) if found[1] else bits
    if found := INTEGER.match(text):
        octal = found[2][0] == "0" and found[2].isdigit()
        value = int(found[2], 8 if octal else 0)
        return (-value if found[1] else value) & (2**width - 1)
    return None


def vector(operand: str) -> list[str]:
    """Names of a vector operand, or the one name."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


class Machine:
    """Some blocks of a launch."""

    def __init__(
        self,
        program: Program,
        grid: Grid,
        blocks: range,
        parameters: dict[str, bytes],
        memory: GlobalMemory,
        rounding: Rounding,
    ) -> None:
        self.program, self.memory, self.parameters = program, memory, parameters
        self.rounding: Rounding = rounding
        count = len(blocks) * grid.threads
        lane = np.arange(count) + blocks.start * grid.threads
        block, thread = lane // grid.threads, lane % grid.threads
        warps = -(-grid.threads // WARP)
        warp = block * warps + thread // WARP
        self.epoch = np.zeros(count, np.int32)
        self.who = Threads(lane.astype(np.int32), warp.astype(np.int32), block.astype(np.int32), self.epoch)
        self.warp_start = np.arange(count) // WARP * WARP
        self.specials = self.special_registers(grid, block, thread)
        self.shared = SharedMemory(blocks.start, len(blocks), program.static_shared + grid.dynamic_shared)
        self.lanes, self.threads = count, grid.threads
        self.registers: dict[str, Lanes] = {}
        self.place = np.zeros(count, np.int64)
        self.done, self.waiting = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        self.leaders = set(program.labels.values())
        self.steps = [self.prepare(one) for one in program.instructions]

    def special_registers(self, grid: Grid, block: Lanes, thread: Lanes) -> dict[str, Lanes]:
        """Special registers (PTX ISA, "Special Registers"); blocks have one dimension."""
        x, y, z = grid.blocks
        found = {"%tid.x": thread, "%ctaid.x": block % x, "%ctaid.y": block // x % y, "%ctaid.z": block // (x * y)}
        found |= {"%laneid": thread % WARP, "%warpid": thread // WARP, "%ntid.x": grid.threads}
        found |= {"%nctaid.x": x, "%nctaid.y": y, "%nctaid.z": z, "%tid.y": 0, "%tid.z": 0, "%ntid.y": 1, "%ntid.z": 1}
        return {name: np.broadcast_to(np.asarray(value, np.uint32), block.shape) for name, value in found.items()}

    # Registers

    def read(self, name: str, width: int, active: Lanes | None) -> Lanes:
        """Bits of an operand: a register, a special one, a constant or the address of a shared variable."""
        if name.startswith("!") and width == 1:
            return ~self.read(name[1:].strip(), 1, active)
        constant = literal(name, width)
        if constant is not None:
            return np.asarray(constant, UNSIGNED[width])
        if name in self.specials:
            return self.specials[name].astype(UNSIGNED[width])
        if name in self.program.shared:
            return np.asarray(self.program.shared[name], UNSIGNED[width])
        if name in ("WARP_SZ", "%WARP_SZ"):
            return np.asarray(WARP, UNSIGNED[width])
        if name not in self.program.registers:
            raise UnsupportedError(f"operand '{name}'")
        if name not in self.registers:
            if self.program.registers[name] == 1:
                raise UnwrittenError(f"predicate {name} is read and was never written")
            self.registers[name] = self.poison(self.program.registers[name])
        bits = self.registers[name]
        own = self.program.registers[name]
        if own < width or (1 in (own, width) and own != width):
            raise UnsupportedError(f"register {name} of {own} bits where {width} are read")
        return bits if own == width else bits.astype(UNSIGNED[width])

    def value(self, name: str, kind: str, active: Lanes | None) -> Lanes:
        """An operand as a value of a type."""
        return decoded(self.read(name, WIDTHS[kind], active), kind)

    def write(self, name: str, bits: Lanes, active: Lanes | None, signed: bool = False) -> None:
        """Set a register of the active lanes; bits narrower than it are extended."""
        if name == "_":
            return
        own = self.program.registers.get(name)
        if own is None:
            raise UnsupportedError(f"destination '{name}'")
        if bits.dtype != UNSIGNED[own]:
            if bits.dtype.itemsize * 8 > own or 1 in (own, bits.dtype.itemsize * 8):
                raise UnsupportedError(f"register {name} of {own} bits cannot hold {bits.dtype}")
            source = bits.view(bits.dtype.name.removeprefix("u")) if signed else bits
            bits = source.astype(UNSIGNED[own])
        bits = np.broadcast_to(bits, (self.lanes,))
        if active is None:
            self.registers[name] = bits
        else:
            self.registers[name] = np.where(active, bits, self.registers.get(name, self.poison(own)))

    def poison(self, width: int) -> Lanes:
        """What a register holds that nobody wrote: NaN, and no address.

        Compilers let lanes read such registers where the result is not used; where it is, it shows.
        """
        if width == 1:
            return np.zeros(self.lanes, np.bool_)
        return np.full(self.lanes, np.iinfo(UNSIGNED[width]).max, UNSIGNED[width])

    # Instructions

    def prepare(self, instruction: Instruction) -> Step:
        """The step of an instruction.

        Raises:
            UnsupportedError: it is not known, whether it is reached or not.
        """
        try:
            return self.step(instruction)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.program.name}, {instruction}: {error}") from error

    def step(self, instruction: Instruction) -> Step:
        """The step of an instruction, that is what it does to the active lanes."""
        name = instruction.opcode[0]
        if name in CONTROL:
            return lambda active: None
        own = {"mov": self.move, "ld": self.load, "st": self.store, "shfl": self.shuffle, "vote": self.vote}
        own |= {"cvta": self.address, "activemask": self.active_mask, "redux": self.reduce}
        own |= {"ldmatrix": self.matrix, "stmatrix": self.matrix}
        if name in own:
            handler = own[name]
            return lambda active: handler(instruction, active)
        if name in NO_EFFECT:
            return lambda active: None
        chosen = operation(instruction.opcode, self.rounding)
        return lambda active: self.compute(instruction, chosen, active)

    def compute(self, instruction: Instruction, chosen: Operation, active: Lanes | None) -> None:
        """An operation on registers."""
        results = len(instruction.operands) - len(chosen.operands)
        if results not in (1, 2) or (results == 2 and chosen.second is None):
            raise UnsupportedError("number of operands")
        names = instruction.operands[results:]
        given = [self.value(name, kind, active) for name, kind in zip(names, chosen.operands, strict=True)]
        bits = encoded(chosen.compute(*given), chosen.result)
        signed = chosen.result[0] == "s"
        self.write(instruction.operands[0], bits, active, signed)
        if results == 2 and chosen.second is not None:
            self.write(instruction.operands[1], encoded(chosen.second(*given), chosen.result), active)

    def move(self, instruction: Instruction, active: Lanes | None) -> None:
        """`mov`, also between a register and the parts of it."""
        target, source = instruction.operands
        kind = instruction.opcode[-1]
        width = WIDTHS[kind]
        if len(instruction.opcode) != 2:
            raise UnsupportedError(".".join(instruction.opcode))
        if target.startswith("{"):
            names, bits = vector(target), self.read(source, width, active)
            part = width // len(names)
            for index, name in enumerate(names):
                shifted = bits >> np.asarray(index * part, bits.dtype)
                self.write(name, shifted.astype(UNSIGNED[part]), active)
        elif source.startswith("{"):
            names = vector(source)
            part, dtype = width // len(names), UNSIGNED[width]
            bits: Lanes = np.zeros(self.lanes, dtype)
            for index, name in enumerate(names):
                bits = bits | (self.read(name, part, active).astype(dtype) << np.asarray(index * part, dtype))
            self.write(target, bits, active)
        else:
            self.write(target, self.read(source, width, active), active)

    def address(self, instruction: Instruction, active: Lanes | None) -> None:
        """`cvta` of global memory, whose generic addresses are its own."""
        if "global" not in instruction.opcode:
            raise UnsupportedError(".".join(instruction.opcode))
        self.write(instruction.operands[0], self.read(instruction.operands[1], 64, active), active)

    def access(self, instruction: Instruction) -> tuple[str, int, str]:
        """Space, number of elements and their type of a load or store."""
        _, *modifiers, kind = instruction.opcode
        spaces = [one for one in modifiers if one in ("global", "shared", "shared__cta", "param")]
        counts = [int(one[1:]) for one in modifiers if one in ("v2", "v4", "v8")]
        if len(spaces) != 1 or set(modifiers) - CACHE - {spaces[0], "v2", "v4", "v8"} or len(instruction.operands) != 2:
            raise UnsupportedError(".".join(instruction.opcode))
        return spaces[0].removesuffix("__cta"), counts[0] if counts else 1, kind

    def pointer(self, operand: str, space: str, active: Lanes | None) -> Lanes:
        """Addresses of all lanes."""
        found = ADDRESS.match(operand)
        if found is None:
            raise UnsupportedError(f"address '{operand}'")
        name, offset = found[1], int(found[2] or 0)
        width = 32 if self.program.registers.get(name, 32) == 32 and space == "shared" else 64
        bits = self.read(name, width, active).astype(np.uint64)
        return np.broadcast_to(bits + np.asarray(offset, np.int64).astype(np.uint64), (self.lanes,))

    def load(self, instruction: Instruction, active: Lanes | None) -> None:
        """`ld`."""
        space, count, kind = self.access(instruction)
        names, size = vector(instruction.operands[0]), WIDTHS[kind] // 8
        if len(names) != count:
            raise UnsupportedError(f"{len(names)} registers for {count} elements")
        if space == "param":
            self.load_parameter(instruction.operands[1], names[0], kind, active)
            return
        chosen = np.arange(self.lanes) if active is None else np.nonzero(active)[0]
        source = self.shared if space == "shared" else self.memory
        pointer = self.pointer(instruction.operands[1], space, active)[chosen]
        found = source.load(pointer, count * size, self.who.at(chosen))
        elements = np.ascontiguousarray(found).view(UNSIGNED[8 * size])
        for index, name in enumerate(names):
            bits = np.zeros(self.lanes, UNSIGNED[8 * size])
            bits[chosen] = elements[:, index]
            self.write(name, bits, active, kind[0] == "s")

    def load_parameter(self, operand: str, name: str, kind: str, active: Lanes | None) -> None:
        """`ld.param`."""
        found = ADDRESS.match(operand)
        if found is None or found[1] not in self.parameters:
            raise UnsupportedError(f"parameter '{operand}'")
        given, offset, size = self.parameters[found[1]], int(found[2] or 0), WIDTHS[kind] // 8
        if offset + size > len(given):
            raise OutOfBoundsError(f"bytes {offset} to {offset + size} of parameter {found[1]}, {len(given)} bytes")
        bits = np.frombuffer(given[offset : offset + size], UNSIGNED[8 * size])[0]
        self.write(name, np.asarray(bits), active, kind[0] == "s")

    def store(self, instruction: Instruction, active: Lanes | None) -> None:
        """`st`."""
        space, count, kind = self.access(instruction)
        names, width = vector(instruction.operands[1]), WIDTHS[kind]
        if len(names) != count or space == "param":
            raise UnsupportedError(".".join(instruction.opcode))
        chosen = np.arange(self.lanes) if active is None else np.nonzero(active)[0]
        pointer = self.pointer(instruction.operands[0], space, active)[chosen]
        given = [np.broadcast_to(self.read(name, width, active), (self.lanes,))[chosen] for name in names]
        values = np.ascontiguousarray(np.stack(given, 1)).view(np.uint8)
        (self.shared if space == "shared" else self.memory).store(pointer, values, self.who.at(chosen))

    def matrix(self, instruction: Instruction, active: Lanes | None) -> None:
        """`ldmatrix` and `stmatrix` of 8 by 8 elements of 16 bits; eight lanes give the addresses of a matrix's rows.

        Lane t holds two neighbours of row t / 4, of the transposed matrix with `.trans`.
        """
        name, *modifiers = instruction.opcode
        counts = [int(one[1:]) for one in modifiers if one in ("x1", "x2", "x4")]
        if set(modifiers) - {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared__cta", "b16"}:
            raise UnsupportedError(".".join(instruction.opcode))
        here, loads = self.members(np.asarray(2**32 - 1, np.uint32), active), name == "ldmatrix"
        operands = instruction.operands if loads else instruction.operands[::-1]
        names, pointer = vector(operands[0]), self.pointer(operands[1], "shared", active)
        if len(counts) != 1 or len(names) != counts[0]:
            raise UnsupportedError(f"{len(names)} registers of {'.'.join(instruction.opcode)}")
        whole = np.nonzero(here)[0]
        for index, register in enumerate(names):
            rows = whole[(whole - self.warp_start[whole]) // 8 == index]
            if loads:
                found = np.ascontiguousarray(self.shared.load(pointer[rows], 16, self.who.at(rows))).view(np.uint16)
                found = found.reshape(-1, 8, 8)
                found = found.swapaxes(1, 2) if "trans" in modifiers else found
                bits = np.zeros(self.lanes, np.uint32)
                bits[whole] = np.ascontiguousarray(found).view(np.uint32).reshape(-1)
                self.write(register, bits, active)
            else:
                bits = np.broadcast_to(self.read(register, 32, active), (self.lanes,))[whole]
                values = np.ascontiguousarray(bits).view(np.uint16).reshape(-1, 8, 8)
                values = values.swapaxes(1, 2) if "trans" in modifiers else values
                flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 16)
                self.shared.store(pointer[rows], flat, self.who.at(rows))

    # Warps

    def members(self, mask: Lanes, active: Lanes | None) -> Lanes:
        """Which lanes execute; they must be those of their warp's member mask (or a device waits or guesses).

        Raises:
            DivergenceError: they are not.
        """
        lane = (np.arange(self.lanes) - self.warp_start).astype(np.uint32)
        named = (np.broadcast_to(mask, (self.lanes,)) >> lane) & np.uint32(1) == 1
        here = np.ones(self.lanes, np.bool_) if active is None else active
        warp = np.zeros(-(-self.lanes // WARP), np.bool_)
        np.logical_or.at(warp, np.arange(self.lanes) // WARP, here)
        expected = named & warp[np.arange(self.lanes) // WARP]
        if (expected != here).any():
            lane = int(np.argmax(expected != here))
            named, runs = ("" if one else "not " for one in (expected[lane], here[lane]))
            raise DivergenceError(f"lane {lane} is {named}in the member mask and does {runs}execute")
        return here

    def shuffle(self, instruction: Instruction, active: Lanes | None) -> None:
        """`shfl.sync`."""
        _, sync, mode, kind = instruction.opcode
        targets, rest = instruction.operands[:-4], instruction.operands[-4:]
        if sync != "sync" or kind != "b32" or mode not in ("up", "down", "bfly", "idx") or len(targets) not in (1, 2):
            raise UnsupportedError(".".join(instruction.opcode))
        value, by, clamp, mask = (np.broadcast_to(self.read(name, 32, active), (self.lanes,)) for name in rest)
        here = self.members(mask, active)
        lane = np.arange(self.lanes) - self.warp_start
        segment, limit, step = ((one & np.uint32(31)).astype(np.int64) for one in (clamp >> np.uint32(8), clamp, by))
        last = (lane & segment) | (limit & ~segment & 31)
        source = {"up": lane - step, "down": lane + step, "bfly": lane ^ step}.get(
            mode, (lane & segment) | (step & ~segment & 31)
        )
        inside = source >= last if mode == "up" else source <= last
        source = self.warp_start + np.where(inside, source, lane)
        absent = here & ~here[np.minimum(source, self.lanes - 1)]
        if absent.any():
            raise DivergenceError(f"lane {int(np.argmax(absent))} shuffles from a lane that does not take part")
        self.write(targets[0], value[np.minimum(source, self.lanes - 1)], active)
        if len(targets) == 2:
            self.write(targets[1], inside, active)

    def by_warp(self, values: Lanes, here: Lanes, start: int, combine: Any) -> Lanes:
        """A reduction over the executing lanes of each warp, for each lane."""
        warps = np.arange(self.lanes) // WARP
        result = np.full(warps[-1] + 1, start, values.dtype)
        combine.at(result, warps[here], np.broadcast_to(values, (self.lanes,))[here])
        return result[warps]

    def vote(self, instruction: Instruction, active: Lanes | None) -> None:
        """`vote.sync`."""
        _, _, mode, _ = instruction.opcode
        target, source, mask = instruction.operands
        here = self.members(self.read(mask, 32, active), active)
        given = self.read(source, 1, active)
        bit = np.uint32(1) << (np.arange(self.lanes) - self.warp_start).astype(np.uint32)
        ballot = self.by_warp(np.where(given, bit, np.uint32(0)), here, 0, np.bitwise_or)
        everyone = self.by_warp(bit, here, 0, np.bitwise_or)
        found = {"ballot": ballot, "any": ballot != 0, "all": ballot == everyone}
        found["uni"] = (ballot == 0) | (ballot == everyone)
        self.write(target, found[mode], active)

    def active_mask(self, instruction: Instruction, active: Lanes | None) -> None:
        """`activemask.b32`."""
        here = np.ones(self.lanes, np.bool_) if active is None else active
        bit = np.uint32(1) << (np.arange(self.lanes) - self.warp_start).astype(np.uint32)
        self.write(instruction.operands[0], self.by_warp(bit, here, 0, np.bitwise_or), active)

    def reduce(self, instruction: Instruction, active: Lanes | None) -> None:
        """`redux.sync` of integers."""
        _, _, name, kind = instruction.opcode
        target, source, mask = instruction.operands
        here = self.members(self.read(mask, 32, active), active)
        values = np.broadcast_to(self.value(source, kind, active), (self.lanes,))
        combine = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
        combine |= {"xor": np.bitwise_xor}
        ends = np.iinfo(values.dtype)
        start = {"min": ends.max, "max": ends.min, "and": int(values.dtype.type(-1) if kind[0] == "s" else ends.max)}
        if name not in combine:
            raise UnsupportedError(".".join(instruction.opcode))
        self.write(target, encoded(self.by_warp(values, here, start.get(name, 0), combine[name]), kind), active)

    # Control

    def guarded(self, instruction: Instruction, active: Lanes | None) -> Lanes | None:
        """The active lanes whose guard holds; None stands for all."""
        if instruction.guard is None:
            return active
        name, negated = instruction.guard
        holds = np.broadcast_to(self.read(name, 1, active), (self.lanes,)) ^ negated
        holds = holds if active is None else holds & active
        return None if holds.all() else holds

    def barrier(self, instruction: Instruction) -> None:
        """Check that a barrier is one of the whole block (PTX ISA, "bar, barrier")."""
        rest = set(instruction.opcode[1:]) - {"sync", "cta", "aligned"}
        operands = instruction.operands
        whole = len(operands) == 1 or (len(operands) == 2 and literal(operands[1], 32) == self.threads)
        if rest or "sync" not in instruction.opcode or operands[0] != "0" or not whole:
            raise UnsupportedError(f"{'.'.join(instruction.opcode)} {', '.join(operands)}")

    def control(self, index: int, instruction: Instruction, active: Lanes | None, guarded: Lanes | None) -> None:
        """A branch, an exit or a barrier: where its lanes go on."""
        here = slice(None) if active is None else active
        there = slice(None) if guarded is None else guarded
        self.place[here] = index + 1
        name = instruction.opcode[0]
        if name == "bra":
            if set(instruction.opcode[1:]) - {"uni"}:
                raise UnsupportedError(".".join(instruction.opcode))
            self.place[there] = self.program.labels[instruction.operands[0]]
        elif name in ("ret", "exit"):
            self.done[there] = True
        else:
            self.barrier(instruction)
            self.waiting[there] = True

    def segment(self, start: int, active: Lanes | None) -> None:
        """Run lanes on from an instruction until they branch, wait, end or may meet others."""
        index = start
        while True:
            if index >= len(self.steps):
                raise UnsupportedError("the kernel ends without ret")
            instruction = self.program.instructions[index]
            try:
                guarded = self.guarded(instruction, active)
                if instruction.opcode[0] in CONTROL:
                    self.control(index, instruction, active, guarded)
                    return
                if guarded is None or guarded.any():
                    self.steps[index](guarded)
            except PtxError as error:
                raise type(error)(f"{self.program.name}, {instruction}: {error}") from error
            index += 1
            if index in self.leaders and active is not None:
                self.place[active] = index
                return

    def release(self) -> None:
        """Let every block go on whose threads all wait.

        Raises:
            DivergenceError: some have ended instead.
        """
        gone = self.done.reshape(-1, self.threads)
        waits = self.waiting.reshape(-1, self.threads)
        stuck = waits.any(1) & gone.any(1)
        if stuck.any():
            block = int(np.argmax(stuck))
            thread = int(np.argmax(gone[block]))
            raise DivergenceError(f"{self.program.name}: thread {thread} of block {block} ends before a barrier")
        self.epoch[self.waiting] += 1
        self.waiting[:] = False

    def run(self) -> None:
        """Run until every lane has ended."""
        for _ in range(MOST_SEGMENTS):
            ready = ~(self.done | self.waiting)
            if not ready.any():
                if self.done.all():
                    return
                self.release()
                continue
            start = int(self.place[ready].min())
            active = ready & (self.place == start)
            self.segment(start, None if active.all() else active)
        raise DivergenceError(f"{self.program.name} does not end within {MOST_SEGMENTS} segments")


def execute(
    program: Program, grid: Grid, parameters: Sequence[bytes], memory: GlobalMemory, rounding: Rounding
) -> None:
    """Run a launch on memory, some blocks at a time.

    Raises:
        PtxError: what a device would not carry out as meant.
    """
    names = [one.name for one in program.parameters]
    for one, given in zip(program.parameters, parameters, strict=True):
        if WIDTHS[one.kind] // 8 != len(given):
            raise UnsupportedError(f"parameter {one.name} is {one.kind}, got {len(given)} bytes")
    for allocation in memory.allocations:
        allocation.forget()
    count, together = int(np.prod(grid.blocks)), max(1, MOST_LANES // grid.threads)
    with np.errstate(all="ignore"):
        for first in range(0, count, together):
            blocks = range(first, min(first + together, count))
            Machine(program, grid, blocks, dict(zip(names, parameters, strict=True)), memory, rounding).run()
