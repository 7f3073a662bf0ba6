"""The README's Python runs as it is printed, its own model included."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITE = """
data = "mnist-5k"
[likelihood]
name = "bernoulli"
[training]
images = 64
validations = 1
[evaluation]
iwae_samples = 1
images = 40
[models.linear]
latent_size = 4
"""


@pytest.fixture(scope="module")
def blocks():
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)


def python(*arguments, folder):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_example_runs(blocks, tmp_path):
    result = python("-c", blocks[0], folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "torch.Size([8, 4])" in result.stdout
    assert len(blocks[0].strip().splitlines()) <= 13


def test_latents_go_out_and_in_in_three_lines(blocks, tmp_path):
    lines = [line for line in blocks[1].strip().splitlines() if line and not line.startswith("from ")]
    assert len(lines) == 3
    model = "model.eval()\nwhole = model(x, Draw(torch.tensor(0), at_mean=True)).likelihood.mean()\n"
    shown = "print(torch.equal(whole, reconstruction), torch.equal(whole, variations), variations.shape)"
    result = python("-c", "\n".join((blocks[0], model, blocks[1], shown)), folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("True False torch.Size([8, 1, 28, 28])\n")


def test_a_model_of_ones_own_runs_beside_the_others(blocks, tmp_path):
    (tmp_path / "mine.py").write_text(blocks[2])
    (tmp_path / "my.toml").write_text(SUITE)
    result = python("-m", "benchmarks", "run", "my.toml", "--plugin", "mine", "--out", "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^\| linear +\|", result.stdout, re.M)


def test_an_absent_plugin_is_one_line(tmp_path):
    result = python("-m", "benchmarks", "list", "models", "--plugin", "absent", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --plugin absent")
    assert len(result.stderr.strip().splitlines()) == 1


def test_suites_and_verbs_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    suites = {path.stem for path in (ROOT / "benchmarks" / "suites").glob("*.toml")}
    assert suites <= set(re.findall(r"^\| `([\w-]+)`", text, re.M))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.M) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
