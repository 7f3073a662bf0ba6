"""PTX text as a list of instructions (PTX ISA, "Syntax" and "State Spaces, Types, and Variables").

One kernel a module, as Triton writes it. Inline assembly is text like any other; a region in braces has names of its
own. Debug sections and source lines are dropped.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass

from ptx.errors import UnsupportedError

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
SOURCE_LINE = re.compile(r"^\s*\.(?:loc|file)\b.*$", re.M)
PARAMETER = re.compile(r"\.param\s+\.(\w+)([^,()]*?)\s+([\w$%]+)(\[\d+\])?\s*(?=[,)]|$)")
RANGE = re.compile(r"([\w$%]+)<(\d+)>$")
VARIABLE = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?$")
LABEL = re.compile(r"\s*([\w$]+)\s*:")
GUARD = re.compile(r"@(!?)([\w$%]+)\s+")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
NAME = re.compile(r"%?[A-Za-z_$][\w$]*(?:\.[xyzw])?$")
WIDTHS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "b32": 32, "u32": 32}
WIDTHS |= {"s32": 32, "f32": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64, "bf16": 16, "f16x2": 32, "bf16x2": 32}
"""Bits of each fundamental type; a predicate counts as one."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its guard (register, whether negated), opcode in parts, operands as text, and its line."""

    guard: tuple[str, bool] | None
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter, with its type."""

    name: str
    kind: str


@dataclass(frozen=True)
class Program:
    """One kernel: parameters, widths of its registers in bits, shared variables' offsets, instructions and labels.

    `static_shared` are the bytes of shared variables with a size; dynamic ones start after them.
    """

    name: str
    target: str
    parameters: tuple[Parameter, ...]
    registers: dict[str, int]
    shared: dict[str, int]
    static_shared: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def without_comments(text: str) -> str:
    """The text up to its debug sections, lines kept, without comments and source positions."""
    code = re.split(r"^\s*\.section\b", text, maxsplit=1, flags=re.M)[0]
    code = COMMENT.sub(lambda found: "\n" * found[0].count("\n"), code)
    return SOURCE_LINE.sub("", code)


class Body:
    """Reads the statements of a kernel's body."""

    def __init__(self) -> None:
        self.registers: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        self.static_shared = 0
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.scopes: list[dict[str, str]] = []
        self.counter = itertools.count()

    def rename(self, text: str) -> str:
        """The text with the names of the regions that it stands in."""
        names = {old: new for scope in self.scopes for old, new in scope.items()}
        if not names:
            return text
        return re.sub(r"%?[A-Za-z_$][\w$]*", lambda found: names.get(found[0], found[0]), text)

    def declare(self, statement: str) -> None:
        """Registers: one, several, or a numbered range (PTX ISA, "Parameterized Variable Names")."""
        kind, names = statement.removeprefix(".reg").strip().split(None, 1)
        width = WIDTHS[kind.removeprefix(".")]
        for name in (part.strip() for part in names.split(",")):
            ranged = RANGE.match(name)
            for one in [f"{ranged[1]}{index}" for index in range(int(ranged[2]))] if ranged else [name]:
                inner = f"{one}#{next(self.counter)}" if self.scopes else one
                if self.scopes:
                    self.scopes[-1][one] = inner
                self.registers[inner] = width

    def variable(self, statement: str, line: int) -> None:
        """A variable in shared memory."""
        found = VARIABLE.search(statement)
        if found is None:
            raise UnsupportedError(f"line {line}: variable '{statement}'")
        align, kind, name, count = found.groups()
        align = int(align or WIDTHS[kind] // 8)
        self.static_shared = -(-self.static_shared // align) * align
        self.shared[name] = self.static_shared
        if ".extern" not in statement:
            self.static_shared += int(count or 1) * WIDTHS[kind] // 8

    def instruct(self, statement: str, line: int) -> None:
        """An instruction."""
        text = " ".join(statement.split())
        renamed, guard = self.rename(text), None
        if found := GUARD.match(renamed):
            guard, renamed = (found[2], bool(found[1])), renamed[found.end() :]
        opcode, _, rest = renamed.partition(" ")
        operands = tuple(part.strip() for part in OPERAND.findall(rest.replace("|", ", ")))
        parts = tuple(part for part in opcode.replace("::", "__").split(".") if part)
        self.instructions.append(Instruction(guard, parts, operands, line, text))

    def statement(self, statement: str, line: int) -> None:
        """One statement without its semicolon."""
        if statement.startswith(".reg"):
            self.declare(statement)
        elif ".shared" in statement and statement.startswith("."):
            self.variable(statement, line)
        elif statement.startswith(".pragma"):
            return
        elif statement.startswith("."):
            raise UnsupportedError(f"line {line}: directive '{statement}'")
        else:
            self.instruct(statement, line)

    def read(self, text: str, line: int) -> None:
        """A body from its opening brace on."""
        position = 0
        while position < len(text):
            character = text[position]
            if character in "\n \t;":
                line += character == "\n"
                position += 1
            elif character == "{":
                self.scopes.append({})
                position += 1
            elif character == "}":
                self.scopes.pop()
                position += 1
            elif found := LABEL.match(text, position):
                self.labels[self.rename(found[1])] = len(self.instructions)
                position = found.end()
            else:
                end = text.find(";", position)
                if end < 0:
                    raise UnsupportedError(f"line {line}: '{text[position:].strip()}' has no end")
                self.statement(text[position:end].strip(), line)
                line += text.count("\n", position, end)
                position = end


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The kernel of a module; a global constant is let pass until an instruction names it.

    Raises:
        UnsupportedError: a directive that this reader does not know, or not exactly one kernel.
    """
    code = without_comments(text)
    entries = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{]*\{", code))
    target = re.search(r"\.target\s+(\w+)", code)
    if len(entries) != 1 or target is None or ".func" in code:
        raise UnsupportedError("expected a module of one kernel and no functions")
    entry, body = entries[0], Body()
    for statement in code[: entry.start()].split(";")[:-1]:
        for row in filter(None, (row.strip() for row in statement.splitlines())):
            if ".shared" in row:
                body.variable(row, 0)
            elif not row.startswith((".version", ".target", ".address_size", ".visible", ".global")):
                raise UnsupportedError(f"'{row}' before the kernel")
    body.read(code[entry.end() : code.rindex("}")], code.count("\n", 0, entry.end()) + 1)
    parameters = tuple(parameter(row) for row in filter(None, (row.strip() for row in entry[2].split(","))))
    return Program(
        name=entry[1],
        target=target[1],
        parameters=parameters,
        registers=body.registers,
        shared=body.shared,
        static_shared=body.static_shared,
        instructions=tuple(body.instructions),
        labels=body.labels,
    )


def parameter(row: str) -> Parameter:
    """One parameter of a kernel."""
    found = PARAMETER.match(row)
    if found is None or found[4] or found[1] not in WIDTHS:
        raise UnsupportedError(f"parameter '{row}'")
    return Parameter(found[3], found[1])
