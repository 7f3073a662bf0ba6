"""An evaluation that dies late does not start again, and finds the same."""

import pytest
import torch

from benchmarks.base.batches import in_batches
from benchmarks.storage import parts
from benchmarks.storage.parts import Parts

N, SIZE = 23, 4


@pytest.fixture(autouse=True)
def keep_all(monkeypatch):
    monkeypatch.setattr(parts, "KEPT_SECONDS", -1.0)


def values(start, end):
    index = torch.arange(start, end)
    return {"float": torch.sin(index.double()) / 3, "bytes": index.to(torch.uint8).reshape(-1, 1)}


def dies_after(calls, error=RuntimeError):
    """`values`, until it has been called so often; `seen` are the batches asked for."""
    seen = []

    def compute(start, end):
        if len(seen) == calls:
            raise error
        seen.append((start, end))
        return values(start, end)

    return compute, seen


def assert_same(found):
    for name, expected in in_batches("", N, SIZE, values).items():
        assert torch.equal(found[name], expected)


def test_what_is_finished_is_read_back_bit_for_bit(tmp_path):
    compute, first = dies_after(4)
    with pytest.raises(RuntimeError):
        Parts(tmp_path / "parts")("key", N, SIZE, compute)
    compute, second = dies_after(9)
    assert_same(Parts(tmp_path / "parts")("key", N, SIZE, compute))
    assert first == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert second == [(16, 20), (20, 23)]


def test_an_interrupt_keeps_what_a_quick_loop_has_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "KEPT_SECONDS", 1e9)
    compute, _ = dies_after(3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path)("key", N, SIZE, compute)
    compute, second = dies_after(9)
    assert_same(Parts(tmp_path)("key", N, SIZE, compute))
    assert second[0] == (12, 16)


@pytest.mark.parametrize("other", [("another key", N, SIZE), ("key", N, SIZE + 1)])
def test_nothing_is_taken_for_another_content(other, tmp_path):
    Parts(tmp_path)("key", N, SIZE, values)
    compute, seen = dies_after(9)
    Parts(tmp_path)(*other, compute)
    assert seen[0][0] == 0


def test_a_damaged_part_is_said_and_computed_again(tmp_path, capsys):
    keep = Parts(tmp_path)
    keep("key", N, SIZE, values)
    (path,) = tmp_path.glob("*-8.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    compute, seen = dies_after(9)
    assert_same(keep("key", N, SIZE, compute))
    assert seen[0] == (8, 12)
    assert "that part is computed again" in capsys.readouterr().err
    keep.clear()
    assert not tmp_path.exists()
