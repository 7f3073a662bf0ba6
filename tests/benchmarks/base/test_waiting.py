"""How long threads wait awake."""

from __future__ import annotations

import os

import pytest

from benchmarks.base.waiting import BRIEFLY, POLICIES, SPIN_COUNT, as_found, spin_briefly


def test_threads_spin_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    spin_briefly()
    assert os.environ[SPIN_COUNT] == BRIEFLY
    assert as_found(os.environ) == {"PATH": "/bin"}


@pytest.mark.parametrize("name", POLICIES)
def test_what_the_user_set_stands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "environ", {name: "7"})
    spin_briefly()
    assert os.environ == as_found(os.environ) == {name: "7"}
