"""Memory that runs out for real, by a limit of the kernel's: what fresh processes save, a failed row if none can."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_run import records, run_here

HELPERS = Path(__file__).resolve().parents[2] / "helpers"
MIB = 200
"""Left for a training; the rows keep about 4, 60 and 1,500 MiB for an image, the last 500 if it must."""
SUITE = """
data = "npz:data.npz"
likelihood = { name = "bernoulli" }
training = { images = 4, batch_size = 4, validations = 0 }
evaluation = { iwae_samples = 1, batch_size = 1 }
[models]
"""
ROWS = {"fits": (4, 1), "fresh": (16, 8), "too large": (16, 200)}
"""Channels, and residual cells in front of the latents and behind them."""


def write_suite(folder):
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128), np.uint8)
    np.savez(folder / "data.npz", train=images, validation=images[:2], test=images[:2])
    sizes = "channels_encoder = {0}, channels_decoder = {0}, preprocess_cells = {1}, postprocess_cells = {1}"
    rows = [
        f'"{name}" = {{ name = "nvae", groups_fine_to_coarse = [1, 1], latent_channels = 2, channel_cap = 16, '
        f"{sizes.format(*size)} }}"
        for name, size in ROWS.items()
    ]
    (folder / "suite.toml").write_text(SUITE + "\n".join(rows))


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit counts as Linux counts")
def test_a_fresh_process_goes_on_and_a_row_that_finds_no_memory_in_any_way_fails(tmp_path, monkeypatch):
    write_suite(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    monkeypatch.setenv("SHORT_OF_MEMORY", str(MIB))
    done = run_here("run", "suite.toml", "--plugin", "short_of_memory", "--jobs", "1", "--out", "out")
    print(done.stderr)
    found = records(tmp_path / "out")
    assert {row: found[row]["status"] for row in ROWS} == {**dict.fromkeys(ROWS, "done"), "too large": "failed"}
    assert found["fits"]["notes"] == []
    (note,) = found["fresh"]["notes"]
    assert re.match(r"memory ran out: batches were taken in [24] passes after [12] starts of a fresh process, ", note)
    assert "fresh seed 0: out of memory at step 0: in a fresh process a batch takes 2 passes" in done.stderr
    given_up = "training of one image at a time ran out of memory, after 3 starts of a fresh process: "
    assert found["too large"]["error"].startswith(given_up)
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
