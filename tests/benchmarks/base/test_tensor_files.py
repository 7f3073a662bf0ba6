"""Safetensors files written tensor by tensor: safetensors reads them, and memory holds no copy of what they hold."""

import faulthandler
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from short_of_memory import held

from benchmarks.base.tensor_files import TYPES, write_tensors

ROOT = Path(__file__).parents[3]
SIZE, LEFT = 64 << 20, 16 << 20
"""Bytes of a tensor, and those that a process may take beyond what it holds."""
TENSORS = {
    **{f"of {name}": torch.ones(3, dtype=kind) for name, kind in TYPES.items()},
    "number": torch.tensor(2.5),
    "nothing": torch.zeros(0, 4),
    "across": torch.arange(6.0).reshape(2, 3).T,
    "within": torch.arange(6.0)[2:4],
    'épaisseur "1"\n': torch.arange(5, dtype=torch.uint8),
    "to be learnt": torch.nn.Parameter(torch.ones(2)),
}


def test_safetensors_reads_what_is_written(tmp_path):
    metadata = {"key": '{"a": "é"}'}
    write_tensors(tmp_path / "file", TENSORS, metadata)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor)


def test_it_is_the_file_that_safetensors_writes(tmp_path):
    tensors = {"weight": torch.randn(3, 5), "bias": torch.randn(3), "steps": torch.tensor(7)}
    write_tensors(tmp_path / "file", tensors, {"key": "value"})
    assert (tmp_path / "file").read_bytes() == safetensors.torch.save(tensors, {"key": "value"})


def ended_without_memory(call):
    """The exit code of a fork that may hold little more than it does, and calls `call`."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (held() + LEFT,) * 2)
        call()
        os._exit(0)
    finally:
        os._exit(1)


def halves():
    """Two tensors of SIZE bytes together."""
    return {"half": torch.ones(SIZE // 8), "other half": torch.ones(SIZE // 8)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit counts as Linux counts")
def test_what_fits_into_memory_once_is_written(tmp_path):
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers")))
    command = [sys.executable, __file__, str(tmp_path / "file")]  # a process that has freed nothing it could use again
    ends = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    copied, written = map(int, ends.stdout.split())
    assert copied != 0  # the limit holds
    assert written == 0
    found = safetensors.torch.load_file(tmp_path / "file")
    assert all(torch.equal(found[name], tensor) for name, tensor in halves().items())


if __name__ == "__main__":
    tensors = halves()
    copied = ended_without_memory(lambda: safetensors.torch.save(tensors))
    print(copied, ended_without_memory(lambda: write_tensors(Path(sys.argv[1]), tensors, {})))
