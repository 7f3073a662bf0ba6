"""A run without a C compiler: said once on stderr, with the same table in the end."""

from __future__ import annotations

import torch

from benchmarks.machine.environment import note_missing_kernels
from kernels.cpu import library


def test_the_missing_compiler_is_named(monkeypatch, capsys):
    monkeypatch.setattr(library, "load", lambda: library.Found(None, "no C compiler (cc, gcc, clang) was found"))
    note_missing_kernels(torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no C compiler" in said


def test_nothing_is_said_where_the_kernels_are_used(monkeypatch, capsys):
    monkeypatch.setattr(library, "load", lambda: library.Found(object(), ""))
    note_missing_kernels(torch.device("cpu"))
    assert capsys.readouterr().err == ""
