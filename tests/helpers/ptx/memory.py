"""Memory that knows who touched it: bounds, alignment, what was written, and who would race.

PTX ISA, "State Spaces", "Memory Consistency Model": accesses of two threads to a byte, one of them a write, are a data
race unless something orders them. Here that is a barrier of the block, and between blocks nothing; threads of one warp
are ordered by the lock step. Threads may write equal values to a byte, as Triton's compiled code does where a layout
holds a value more than once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ptx.errors import MisalignedError, OutOfBoundsError, RaceError, UnwrittenError

Lanes = NDArray[Any]
NOBODY, MANY = -1, -2
GAP = 1 << 40
"""Distance of the addresses of two allocations, so that no stray access of one ends in another."""
PAGE = 4096
"""Addresses keep what they are divisible by up to this."""


@dataclass(frozen=True)
class Threads:
    """Who executes an access: global numbers of lanes, their warps and blocks, and barriers passed by their block."""

    lane: Lanes
    warp: Lanes
    block: Lanes
    epoch: Lanes

    def at(self, place: Lanes) -> Threads:
        """Those at some places."""
        return Threads(self.lane[place], self.warp[place], self.block[place], self.epoch[place])


@dataclass
class Allocation:
    """Bytes with what is known of each: whether it was written, by whom and when, and who read it.

    `written` is None where everything was. Warps and barriers are those of the running launch.
    """

    name: str
    base: int
    data: NDArray[np.uint8]
    written: NDArray[np.bool_] | None = None
    writer: NDArray[np.int32] = field(init=False)
    writer_block: NDArray[np.int32] = field(init=False)
    written_at: NDArray[np.int32] = field(init=False)
    reader: NDArray[np.int32] = field(init=False)
    reader_block: NDArray[np.int32] = field(init=False)
    read_at: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A new launch begins: what came before is ordered."""
        self.writer, self.writer_block, self.written_at = (np.full(len(self.data), NOBODY, np.int32) for _ in range(3))
        self.reader, self.reader_block, self.read_at = (np.full(len(self.data), NOBODY, np.int32) for _ in range(3))

    def place(self, address: Lanes, size: int, who: Threads) -> Lanes:
        """Indices (lanes, size) of the bytes at these addresses.

        Raises:
            OutOfBoundsError, MisalignedError: with the first lane's address.
        """
        offset = address.astype(np.int64) - self.base
        crooked = address % size != 0
        if crooked.any():
            first = int(np.argmax(crooked))
            raise MisalignedError(
                f"{size} bytes at offset {offset[first]} of {self.name} (address modulo {size} is "
                f"{int(address[first]) % size}); {self.of(who, first)}"
            )
        outside = (offset < 0) | (offset + size > len(self.data))
        if outside.any():
            first = int(np.argmax(outside))
            span = f"bytes {offset[first]} to {offset[first] + size} of {self.name}, {len(self.data)} bytes"
            raise OutOfBoundsError(f"{span}; {self.of(who, first)}")
        return offset[:, None] + np.arange(size)

    def of(self, who: Threads, index: int) -> str:
        """A thread in words."""
        return f"block {who.block[index]}, warp {who.warp[index]}, lane {who.lane[index]} of the launch"

    def clash(self, verb: str, other: str, rows: Lanes, where: Lanes, who: Threads) -> None:
        """Report the first of the bytes where lanes race, if there is one."""
        if rows.any():
            lane, byte = (int(one[0]) for one in np.nonzero(rows))
            raise RaceError(
                f"byte {where[lane, byte]} of {self.name} is {verb} by {self.of(who, lane)} and {other} by another "
                f"thread, with no barrier in between"
            )

    def hazard(self, warp: Lanes, block: Lanes, when: Lanes, who: Threads) -> Lanes:
        """Where an earlier access, of a warp and block at some barrier, is not ordered before this one."""
        stranger = (warp != NOBODY) & (warp != who.warp[:, None])
        return stranger & ((block != who.block[:, None]) | (when == who.epoch[:, None]))

    def written_by(self, where: Lanes) -> tuple[Lanes, Lanes, Lanes]:
        """Warp, block and barrier of the last write."""
        return self.writer[where], self.writer_block[where], self.written_at[where]

    def load(self, address: Lanes, size: int, who: Threads) -> Lanes:
        """Bytes (lanes, size).

        Raises:
            UnwrittenError, RaceError, and those of `place`.
        """
        where = self.place(address, size, who)
        if self.written is not None and not self.written[where].all():
            lane, byte = (int(one[0]) for one in np.nonzero(~self.written[where]))
            text = f"byte {where[lane, byte]} of {self.name} is read and was never written; {self.of(who, lane)}"
            raise UnwrittenError(text)
        self.clash("read", "written", self.hazard(*self.written_by(where), who), where, who)
        self.note_readers(where, who)
        return self.data[where]

    def note_readers(self, where: Lanes, who: Threads) -> None:
        """Keep who read: a warp and a block since its last barrier, or that there were many."""
        warp, block, epoch = (one[:, None] for one in (who.warp, who.block, who.epoch))
        others, other_block, at = self.reader[where], self.reader_block[where], self.read_at[where]
        foreign = (others != NOBODY) & (other_block != block)
        crowd = foreign | ((others != NOBODY) & (others != warp) & (at == epoch))
        self.reader[where], self.reader_block[where], self.read_at[where] = warp, block, epoch
        self.reader[where[crowd | (self.reader[where] != warp)]] = MANY
        self.reader_block[where[foreign | (self.reader_block[where] != block)]] = MANY

    def store(self, address: Lanes, values: Lanes, who: Threads) -> None:
        """Write bytes (lanes, size).

        Raises:
            RaceError, and those of `place`.
        """
        where = self.place(address, values.shape[1], who)
        changed = self.data[where] != values
        self.clash("written", "written", changed & self.hazard(*self.written_by(where), who), where, who)
        earlier = self.reader[where], self.reader_block[where], self.read_at[where]
        self.clash("written", "read", self.hazard(*earlier, who), where, who)
        self.data[where] = values
        self.clash("written", "in the same instruction written", self.data[where] != values, where, who)
        self.writer[where] = who.warp[:, None]
        self.writer_block[where], self.written_at[where] = who.block[:, None], who.epoch[:, None]
        if self.written is not None:
            self.written[where] = True


class GlobalMemory:
    """Allocations far from each other; each lies at an address as divisible as its own."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []

    def add(self, name: str, host_address: int, data: NDArray[np.uint8], written: bool) -> Allocation:
        """A new allocation over some bytes."""
        base = (len(self.allocations) + 1) * GAP + host_address % PAGE
        known = None if written else np.zeros(len(data), np.bool_)
        self.allocations.append(Allocation(name, base, data, known))
        return self.allocations[-1]

    def parts(self, address: Lanes, who: Threads) -> list[tuple[Allocation, Lanes]]:
        """The allocations that addresses point to, with the places of the lanes that point there."""
        number = ((address + GAP // 2) // GAP).astype(np.int64) - 1
        outside = (number < 0) | (number >= len(self.allocations))
        if outside.any():
            first = int(np.argmax(outside))
            raise OutOfBoundsError(f"no tensor at address {int(address[first]):#x}; lane {who.lane[first]}")
        if (number == number[0]).all():
            return [(self.allocations[number[0]], np.arange(len(number)))]
        return [(self.allocations[one], np.nonzero(number == one)[0]) for one in np.unique(number)]

    def load(self, address: Lanes, size: int, who: Threads) -> Lanes:
        """Bytes (lanes, size) of each lane's allocation."""
        values = np.empty((len(address), size), np.uint8)
        for allocation, place in self.parts(address, who):
            values[place] = allocation.load(address[place], size, who.at(place))
        return values

    def store(self, address: Lanes, values: Lanes, who: Threads) -> None:
        """Write bytes (lanes, size) to each lane's allocation."""
        for allocation, place in self.parts(address, who):
            allocation.store(address[place], values[place], who.at(place))


class SharedMemory:
    """The shared memory of some blocks from the first on, all in one allocation; a block sees its own."""

    def __init__(self, first: int, blocks: int, size: int) -> None:
        self.first = first
        self.size, self.stride = size, -(-size // 128) * 128
        data = np.zeros(blocks * self.stride, np.uint8)
        self.bytes = Allocation("shared memory", 0, data, np.zeros(len(data), np.bool_))

    def inside(self, address: Lanes, size: int, who: Threads) -> Lanes:
        """Addresses in the common allocation."""
        address = address.astype(np.int64)
        if (address + size > self.size).any():
            first = int(np.argmax(address + size > self.size))
            span = f"bytes {address[first]} to {address[first] + size}"
            raise OutOfBoundsError(f"{span} of {self.size} bytes of shared memory; lane {who.lane[first]}")
        crooked = address % size != 0
        if crooked.any():
            raise MisalignedError(f"{size} bytes at {address[np.argmax(crooked)]} of shared memory")
        return address + (who.block - self.first).astype(np.int64) * self.stride

    def load(self, address: Lanes, size: int, who: Threads) -> Lanes:
        """Bytes (lanes, size) of each lane's block."""
        return self.bytes.load(self.inside(address, size, who), size, who)

    def store(self, address: Lanes, values: Lanes, who: Threads) -> None:
        """Write bytes (lanes, size) to each lane's block."""
        self.bytes.store(self.inside(address, values.shape[1], who), values, who)
