"""Choosing a backend: no Triton is imported before it is needed, and a refusal says why and what to do."""

import os
import subprocess
import sys

import pytest
import torch

from kernels.backends import FusedUnavailable, best_for, fused, why_unavailable


def test_fused_on_the_cpu_is_one_clear_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(FusedUnavailable, match=r"need a CUDA or ROCm device, got 'cpu'; use best_for\('cpu'\)"):
        fused("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fused_without_a_gpu_says_so():
    with pytest.raises(FusedUnavailable, match="torch finds no CUDA or ROCm device"):
        fused("cuda")


def test_missing_triton_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "pip install triton" in str(why_unavailable(torch.device("cuda")))


def test_best_for_the_cpu_needs_no_triton():
    code = "import sys; from kernels.backends import best_for; print(best_for('cpu').name, 'triton' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    name, imported = result.stdout.split()
    assert imported == "False"
    assert name == best_for("cpu").name != "fused"
