"""The scripts under examples/ run as they are, and end with what they promise."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """What an example prints, run in an empty folder."""

    def printed(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [name])
        with torch.enable_grad():  # whatever the script switches is switched back
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return printed


def test_every_example_is_tested_and_in_cells():
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix} == {"latents.py", "own_model.py"}
    for path in EXAMPLES.glob("*.py"):
        assert path.read_text().count("# %% ") > 3


def test_latents_say_less_the_fewer_are_kept(run, tmp_path):
    said = run("latents.py")
    errors = [float(value) for value in re.findall(r"MSE (\d\.\d+)", said)]
    assert len(errors) == 6
    assert errors == sorted(errors)
    assert np.asarray(Image.open(tmp_path / "latents.png")).shape[:2] == (7 * 30 + 2, 8 * 30 + 2)


@pytest.mark.slow
def test_the_model_of_ones_own_learns_and_is_compared(run):
    said = run("own_model.py")
    bounds = [float(value) for value in re.findall(r"ELBO (-\d+\.\d) nats", said)]
    assert len(bounds) == 2
    assert min(bounds) > -150
    assert re.search(r"two-groups - vae: [+-]\d+\.\d nats, 95 % interval", said)
