"""The C kernels built for 64-bit ARM (NEON) and run by an emulator, call by call: a pytest plugin, `-p emulated`.

Tests call the kernels as ever; each call becomes a run of a small program under `qemu-aarch64`. What its pointers lead
to is copied into a file, which the program maps at an address of its own, and copied back. So the tests of the kernels
hold on a processor that is not here; how fast they are there, nobody learns.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from kernels.cpu import library
from kernels.cpu.structures import Matrix, Parameter, Weight

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
BASE = 0x1000_0000_0000
"""Where the program maps the file: pointers are moved there."""
TABLES = {
    "adamax": Parameter,
    **dict.fromkeys(("weight_norm", "weight_norm_backward"), Weight),
    **dict.fromkeys(("spectral_norms", "spectral_norms_backward"), Matrix),
}
"""Entries of the tables that functions take first, which Python makes with numpy."""
HEAD, LINE = 1024, 64
"""Bytes for the function's number, its result and arguments; blocks keep their place in a cache line."""
NAMES = {
    ctypes.c_void_p: "void *",
    ctypes.c_int64: "int64_t",
    ctypes.c_int32: "int32_t",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_float: "float",
    ctypes.c_double: "double",
}
MAIN = """
int main(int count, char **words)
{{
    int file = open(words[1], O_RDWR);
    struct stat found;
    fstat(file, &found);
    char *base = mmap((void *){base}, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (count != 2 || base == MAP_FAILED)
        return 1;
    struct {{ int64_t function, result; char text[48]; }} *head = (void *)base;
    switch (head->function) {{
{cases}
    default:
        return 2;
    }}
    return 0;
}}
"""


class Head(ctypes.Structure):
    """What stands before the arguments."""

    _fields_ = (("function", ctypes.c_int64), ("result", ctypes.c_int64), ("text", ctypes.c_char * 48))


def missing():
    """What is not installed of what this needs."""
    return [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]


def c_type(kind):
    """The C name of a type."""
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
        return f"struct {kind.__name__}"
    return NAMES.get(kind, "void *")


def c_fields(fields):
    """The members of a structure in C."""
    said = []
    for name, kind in fields:
        is_array = issubclass(kind, ctypes.Array)
        said.append(f"{c_type(kind._type_ if is_array else kind)} {name}{f'[{kind._length_}]' if is_array else ''};")
    return " ".join(said)


class Function:
    """A function of the library; `library.declared` sets what it takes and gives."""

    argtypes, restype = (), None

    def __init__(self, name, call):
        self.name, self.call = name, call

    @functools.cached_property
    def arguments(self):
        """A structure of its arguments; pointers to structures are plain ones."""
        plain = [one if one in NAMES or issubclass(one, ctypes.Structure) else ctypes.c_void_p for one in self.argtypes]
        fields = [(f"a{index}", one) for index, one in enumerate(plain)]
        return type(f"{self.name}_arguments", (ctypes.Structure,), {"_fields_": fields})

    def declaration(self):
        """Its prototype in C."""
        result = {None: "void", ctypes.c_char_p: "const char *"}.get(self.restype) or c_type(self.restype)
        takes = ", ".join(c_type(kind) for _, kind in self.arguments._fields_) or "void"
        return f"{result} vaebench_{self.name}({takes});"

    def case(self, number):
        """Its call in the program."""
        given = ", ".join(f"a->{name}" for name, _ in self.arguments._fields_)
        call = f"vaebench_{self.name}({given})"
        if self.restype is ctypes.c_char_p:
            call = f"strncpy(head->text, {call}, sizeof head->text - 1)"
        elif self.restype is not None:
            call = f"head->result = {call}"
        members = c_fields(self.arguments._fields_) or "char none;"
        return f"case {number}: {{ struct {{ {members} }} *a = (void *)(base + {LINE}); (void)a; {call}; break; }}"

    def __call__(self, *given):
        return self.call(self, given)


class Emulated:
    """The library, as ctypes would give it, whose functions run elsewhere."""

    def __init__(self, folder):
        self.folder, self.functions, self.storages = folder, {}, {}
        library.declared(self)
        self.program = self._built()

    def __getattr__(self, name):
        if not name.startswith("vaebench_"):
            raise AttributeError(name)
        return self.functions.setdefault(name, Function(name.removeprefix("vaebench_"), self._run))

    def _built(self):
        """The program, with all kernels in it."""
        functions = list(self.functions.values())
        structures = dict.fromkeys(
            kind for one in functions for _, kind in one.arguments._fields_ if issubclass(kind, ctypes.Structure)
        )
        lines = [f"#include <{name}.h>" for name in ("fcntl", "stdint", "string", "sys/mman", "sys/stat")]
        lines += [f"{c_type(kind)} {{ {c_fields(kind._fields_)} }};" for kind in structures]
        lines += [one.declaration() for one in functions]
        cases = "\n".join(one.case(number) for number, one in enumerate(functions))
        source, program = self.folder / "main.c", self.folder / "kernels"
        source.write_text("\n".join(lines) + MAIN.format(base=hex(BASE), cases=cases))
        flags = [flag for flag in library.FLAGS if flag not in ("-shared", "-fPIC")]
        command = [COMPILER, *flags, library.OPENMP, "-static", *map(str, (source, *library.SOURCES)), "-lm"]
        subprocess.run([*command, "-o", str(program)], check=True)
        return program

    def note(self, tensor):
        """Remember where a tensor's values lie, and keep them there."""
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage

    def _run(self, function, given):
        """The function's result."""
        file = Blocks(self.storages)
        arguments = function.arguments()
        for (name, kind), value in zip(function.arguments._fields_, given, strict=True):
            if name == "a0" and function.name in TABLES:
                value = (TABLES[function.name] * given[1]).from_address(value)
            setattr(arguments, name, file.argument(kind, value))
        assert LINE + ctypes.sizeof(arguments) <= HEAD
        head = Head(list(self.functions.values()).index(function))
        path = self.folder / "memory"
        path.write_bytes(bytes(head).ljust(LINE, b"\0") + bytes(arguments).ljust(HEAD - LINE, b"\0") + file.content())
        subprocess.run([EMULATOR, str(self.program), str(path)], check=True)
        found = path.read_bytes()
        file.take_back(found)
        head = Head.from_buffer_copy(found)
        return {None: None, ctypes.c_char_p: head.text}.get(function.restype, head.result)


class Blocks:
    """Memory of this process as a file has it, by the address where it begins."""

    def __init__(self, storages):
        self.storages, self.copied, self.parts, self.size = storages, {}, [], 0

    def argument(self, kind, value):
        """An argument whose pointers lead into the file."""
        value = getattr(value, "_obj", value)  # what `byref` refers to
        if isinstance(value, ctypes.Array) or (kind is ctypes.c_void_p and isinstance(value, ctypes.Structure)):
            return self._added(bytes(self._moved(type(value).from_buffer_copy(value))))
        if isinstance(value, ctypes.Structure):
            return self._moved(type(value).from_buffer_copy(value))
        return self._place(value) if kind is ctypes.c_void_p and value else value

    def content(self):
        """The blocks, one after the other."""
        return b"".join(self.parts)

    def take_back(self, found):
        """Copy the blocks from the file into this process."""
        for start, (offset, size) in self.copied.items():
            ctypes.memmove(start, found[offset : offset + size], size)

    def _place(self, address):
        """Where the program finds what lies at an address here."""
        start = max((one for one in self.storages if one <= address), default=0)
        size = self.storages[start].nbytes() if start else 0
        assert address <= start + size, f"no tensor is known at {address:x}"
        if start not in self.copied:
            moved = self._added(ctypes.string_at(start, size), start % LINE)
            self.copied[start] = moved - BASE, size
        return BASE + self.copied[start][0] + address - start

    def _added(self, content, place=0):
        """The address of a new block, so far into its cache line."""
        content = b"\0" * place + content
        offset = HEAD + self.size
        padded = content.ljust(-(-len(content) // LINE) * LINE + LINE, b"\0")
        self.parts.append(padded)
        self.size += len(padded)
        return BASE + offset + place

    def _moved(self, value):
        """The structure or array, its pointers and those inside moved."""
        if isinstance(value, ctypes.Array):
            for index in range(len(value)):
                value[index] = self._moved_field(value._type_, value[index])
        else:
            for name, kind in value._fields_:
                setattr(value, name, self._moved_field(kind, getattr(value, name)))
        return value

    def _moved_field(self, kind, value):
        if isinstance(value, ctypes.Structure | ctypes.Array):
            return self._moved(value)
        return self._place(value) if kind is ctypes.c_void_p and value else value


def pytest_configure(config):
    """Put the emulated kernels in the place of this processor's, for the whole session."""
    config.emulated_folder = tempfile.TemporaryDirectory()
    emulated = config.emulated = Emulated(Path(config.emulated_folder.name))
    library.load = lambda: library.Found(emulated)
    address = torch.Tensor.data_ptr

    def noted(tensor):
        emulated.note(tensor)
        return address(tensor)

    torch.Tensor.data_ptr = noted


def pytest_runtest_teardown(item):
    """Let go of a test's tensors."""
    item.config.emulated.storages.clear()


def pytest_report_header(config):
    """What the tests run on."""
    return f"C kernels: emulated, {config.emulated.vaebench_instruction_set().decode()}"


def pytest_unconfigure(config):
    """Remove the program."""
    config.emulated_folder.cleanup()
