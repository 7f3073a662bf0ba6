"""Reads compiled kernels: SASS of NVIDIA's cubin and the assembly of AMD's code objects. Imports no Triton.

Every instruction is counted once and those of a loop as often as it turns, so that counts are upper bounds of the hot
path: a branch around an instruction is taken as not taken.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SASS_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<text>[A-Z][^;]*)")
SASS_LABEL = re.compile(r"^(?P<label>\.L_x_\d+):")
SASS_TARGET = re.compile(r"\((?P<label>\.L_x_\d+)\)")
AMD_LINE = re.compile(r"^\s+(?P<text>(?:v|s|global|buffer|flat|scratch|ds)_\w+.*)")
AMD_LABEL = re.compile(r"^(?P<label>\.LBB\d+_\d+):")
AMD_TARGET = re.compile(r"s_c?branch\w*\s+(?P<label>\.LBB\d+_\d+)")
AMD_SPECIAL = re.compile(r"v_(exp|log|sqrt|rsq|rcp|sin|cos)_f32")
AMD_WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "ushort": 16, "ubyte": 8}


class ToolsMissing(RuntimeError):  # noqa: N818
    """A tool needed to read compiled code is missing; the message says which."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text and how often a thread executes it."""

    text: str
    times: int

    @property
    def opcode(self) -> str:
        """The mnemonic with its modifiers."""
        return self.text.split()[0]


@dataclass(frozen=True)
class Code:
    """What a compiled kernel uses, for one thread.

    Args:
        instructions: executed instructions.
        special: those of the special-function unit (and on sm_80 integer to float conversions, which share it).
        load_bits, store_bits: width of the global accesses that move most bytes.
        bytes_moved: bytes of global accesses of at least that width (scalars such as the seed are narrower).
        registers: per thread.
        spills: instructions that spill to or fill from local memory.
        local_memory_bytes: per thread.
        barriers: static count.
    """

    instructions: int
    special: int
    load_bits: int
    store_bits: int
    bytes_moved: float
    registers: int
    spills: int
    local_memory_bytes: int
    barriers: int


END = "s_endpgm"
"""Last instruction of an AMD program."""


def unrolled(lines: Iterable[str], line: re.Pattern[str], label: re.Pattern[str], target: re.Pattern[str], turns: int):
    """The instructions with how often they run, where every loop turns `turns` times.

    A jump back from behind the program's end is no loop: a branch that the compiler moved out of the way returns.
    """
    texts: list[str] = []
    labels: dict[str, int] = {}
    for text in lines:
        if match := label.match(text):
            labels[match["label"]] = len(texts)
        elif match := line.match(text):
            texts.append(match["text"].strip())
    times = [1] * len(texts)
    for last, text in enumerate(texts):
        match = target.search(text)
        first = labels.get(match["label"], len(texts)) if match else len(texts)
        if first < last and END not in texts[first:last]:
            times[first : last + 1] = [turns] * (last + 1 - first)
    return [Instruction(text, count) for text, count in zip(texts, times, strict=True)]


def count(instructions: Iterable[Instruction], pattern: str) -> int:
    """How many executed instructions have an opcode that matches."""
    return sum(one.times for one in instructions if re.match(pattern, one.opcode))


def main_width(widths: Counter[int]) -> int:
    """The access width that moves most bytes, in bits; 0 without accesses."""
    return max(widths, key=lambda bits: bits * widths[bits], default=0)


def moved(loads: Counter[int], stores: Counter[int]) -> float:
    """Bytes of the accesses of at least the main widths."""
    floor = min(main_width(loads), main_width(stores))
    return sum(bits // 8 * times for widths in (loads, stores) for bits, times in widths.items() if bits >= floor)


def sass_widths(instructions: Iterable[Instruction], opcode: str) -> Counter[int]:
    """Executed global accesses by width in bits."""
    widths: Counter[int] = Counter()
    for one in instructions:
        if one.opcode.startswith(opcode):
            match = re.search(r"\.(?:[US]?)(128|64|16|8)\b", one.opcode)
            widths[int(match[1]) if match else 32] += one.times
    return widths


def amd_widths(instructions: Iterable[Instruction], kind: str) -> Counter[int]:
    """Executed global accesses by width in bits."""
    widths: Counter[int] = Counter()
    for one in instructions:
        if match := re.match(rf"(?:global|buffer)_{kind}_(\w+)", one.opcode):
            size = next((bits for name, bits in AMD_WIDTHS.items() if match[1].startswith(name)), 32)
            widths[size] += one.times
    return widths


def tool(name: str) -> Path:
    """Path of a CUDA tool in Triton's wheel.

    Raises:
        ToolsMissing: it is not there.
    """
    spec = importlib.util.find_spec("triton")
    root = Path(spec.origin).parent if spec is not None and spec.origin else None
    path = root / "backends" / "nvidia" / "bin" / name if root else None
    if path is None or not path.exists():
        raise ToolsMissing(f"{name} is missing: it comes in Triton's Linux wheel; pip install triton")
    return path


def disassemble(cubin: bytes) -> tuple[str, str]:
    """SASS and resource usage of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        outputs = [
            subprocess.run([str(tool(name)), option, str(path)], capture_output=True, text=True, check=True).stdout
            for name, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        ]
    return outputs[0], outputs[1]


def read_cubin(cubin: bytes, turns: int = 1) -> Code:
    """Facts of an NVIDIA kernel whose loop turns `turns` times."""
    sass, usage = disassemble(cubin)
    instructions = unrolled(sass.splitlines(), SASS_LINE, SASS_LABEL, SASS_TARGET, turns)
    instructions = [one for one in instructions if not one.opcode.startswith("NOP")]
    loads, stores = sass_widths(instructions, "LDG"), sass_widths(instructions, "STG")
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Code(
        instructions=sum(one.times for one in instructions),
        special=count(instructions, r"MUFU|I2F(?!P)"),
        load_bits=main_width(loads),
        store_bits=main_width(stores),
        bytes_moved=moved(loads, stores),
        registers=used["REG"],
        spills=count(instructions, "LDL|STL"),
        local_memory_bytes=used["STACK"] + used.get("LOCAL", 0),
        barriers=count(instructions, r"BAR"),
    )


def read_amdgcn(assembly: str, turns: int = 1) -> Code:
    """Facts of an AMD kernel whose loop turns `turns` times."""
    instructions = unrolled(assembly.splitlines(), AMD_LINE, AMD_LABEL, AMD_TARGET, turns)
    loads, stores = amd_widths(instructions, "load"), amd_widths(instructions, "store")
    used = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    return Code(
        instructions=sum(one.times for one in instructions),
        special=count(instructions, AMD_SPECIAL.pattern),
        load_bits=main_width(loads),
        store_bits=main_width(stores),
        bytes_moved=moved(loads, stores),
        registers=used["vgpr_count"],
        spills=used["vgpr_spill_count"] + used["sgpr_spill_count"],
        local_memory_bytes=used["private_segment_fixed_size"],
        barriers=count(instructions, "s_barrier"),
    )
