"""The verbs `reconstruct`, `interpolate` and `traverse`: what stands in their grids, and what they refuse."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cli.parser import run_command
from benchmarks.evaluation.evaluate import reconstruct
from benchmarks.evaluation.variations import Variations
from benchmarks.storage.weights import build_model, load_model, save_weights
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides
from models.output import Draw, ImageShape

CPU = torch.device("cpu")
N = 4
SMALL = ["channels_encoder=4", "channels_decoder=4", "channel_cap=8", "latent_channels=3"]
GROUPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained weights of an autoencoder and a small NVAE of grey levels, and images for them."""
    folder = tmp_path_factory.mktemp("weights")
    name, table = read_suite("quick")
    apply_overrides(table, [f"models.nvae.{field}" for field in SMALL] + ["likelihood.name=logistic-mixture"], None)
    for trial in build_suite(name, table, ["ae", "nvae"]).trials:
        save_weights(build_model(trial, ImageShape(1, 28, 28), CPU), trial, "hash", folder / f"{trial.row}.safetensors")
    pixels = torch.randint(0, 256, (N, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.savez(folder / "images.npz", images=pixels.numpy())
    return folder


@pytest.fixture
def images(folder):
    return torch.from_numpy(np.load(folder / "images.npz")["images"])[:, None]


@pytest.fixture
def variations(folder):
    return Variations(load_model(folder / "nvae.safetensors", CPU))


@pytest.fixture
def call(folder, tmp_path, monkeypatch, capsys):
    """`call(verb, row, ...)` on the images: exit code, images of the archive (R, H, W, C), last line of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(verb, row, *words):
        where = ["--data", f"npz:{folder / 'images.npz'}", "--npz", "made.npz", "--device", "cpu"]
        code = run_command([verb, str(folder / f"{row}.safetensors"), *map(str, words), *where])
        made = np.load("made.npz")["images"] if code == 0 else None
        return code, made, capsys.readouterr().err.strip().splitlines()[-1]

    return run


def test_reconstructions_stand_beside_their_originals(call, folder, images):
    for row in ("ae", "nvae"):
        code, made, said = call("reconstruct", row, 2, 0)
        assert code == 0
        assert said.startswith("2 rows of 2 images (original, reconstruction) in made.npz")
        loaded = load_model(folder / f"{row}.safetensors", CPU)
        expected, _ = reconstruct(loaded.model, loaded.trial, images[[2, 0]] / 255, lambda *_: None)
        found = torch.from_numpy(made).permute(0, 3, 1, 2)
        assert torch.equal(found[0::2], images[[2, 0]])
        assert torch.equal(found[1::2], expected)


def test_groups_that_are_redrawn_come_from_the_prior(variations, images):
    model = variations.loaded.model
    assert len(model.latent_shapes) == GROUPS
    everything = variations.redrawn(images[:1], range(GROUPS), 3)[0]
    draw = Draw(variations._draw(at_mean=False).seed)
    assert torch.equal(everything, (model.sample(3, draw).mean() * 255).round().clamp(0, 255).to(torch.uint8))
    assert torch.equal(variations.redrawn(images[:1], [], 1)[0], variations.reconstructed(images[:1]))


def test_coarse_groups_can_be_redrawn_while_fine_ones_stay(variations, images):
    """Of decoder states, in which an untrained model's differences show."""
    model, seed = variations.loaded.model, torch.tensor(0)
    latents = tuple(group.z for group in variations.groups(images[:1]))
    with torch.inference_mode():
        whole = model.sample_state(1, Draw(seed, latents=latents))
        coarse, again = (model.sample_state(1, Draw(seed, latents=(None, None, *latents[2:]))) for _ in range(2))
        other = model.sample_state(1, Draw(torch.tensor(1), latents=(None, None, *latents[2:])))
        moved = model.sample_state(1, Draw(seed, latents=(None, None, *latents[2:4], latents[4] + 1)))
        fine = model.sample_state(1, Draw(seed, latents=(*latents[:2], None, None, None)))
        cut = model.sample_state(1, Draw(seed, latents=latents[:2]))
    assert torch.equal(coarse, again)
    assert torch.equal(fine, cut)
    for one, another in ((coarse, whole), (coarse, other), (coarse, moved), (fine, whole)):
        assert not torch.equal(one, another)


def test_all_images_have_the_same_draws(variations, images):
    both = variations.redrawn(torch.cat([images[:1], images[:1]]), [3, 4], 2)
    assert torch.equal(both[0], both[1])
    assert not torch.equal(both[0, 0], both[0, 1])


def test_a_line_ends_at_the_reconstructions(call, variations, images):
    code, made, _ = call("interpolate", "nvae", 0, 1, 3, "--steps", 5)
    assert (code, made.shape) == (0, (2 * 7, 28, 28, 1))
    rows = torch.from_numpy(made).permute(0, 3, 1, 2).unflatten(0, (2, 7))
    assert torch.equal(rows[0, [0, 6]], images[[0, 1]])
    ends = variations.reconstructed(images[[0, 1, 3]])
    for found, expected in ((rows[0, 1], ends[0]), (rows[0, 5], ends[1]), (rows[1, 5], ends[2])):
        assert int((found.int() - expected.int()).abs().max()) <= 1  # a batch of another size rounds otherwise


def test_the_units_of_highest_rate_are_moved(call, variations, images):
    code, made, said = call("traverse", "nvae", 1, "--units", 3, "--steps", 5, "--group", 2)
    assert (code, made.shape) == (0, (15, 28, 28, 1))
    group = variations.groups(images[1:2])[1]
    expected = group.posterior.kl(group.prior).flatten().argsort(descending=True)[:3].tolist()
    assert f"units {', '.join(map(str, expected))} of group 2 " in said
    rows, units = variations.traversed(images[1:2], 1, 3, [0.0, 0.0, 2.0])
    assert units == expected
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert not torch.equal(rows[:, 0], rows[:, 2])


def test_files_are_images_too(call, tmp_path, images):
    Image.fromarray(images[1, 0].numpy()).save(tmp_path / "same.png")
    Image.new("L", (60, 40), 100).save(tmp_path / "large.png")
    code, made, said = call("reconstruct", "nvae", "same.png", 0, "large.png")
    assert code == 0, said
    found = torch.from_numpy(made).permute(0, 3, 1, 2)[0::2]
    assert torch.equal(found[:2], images[[1, 0]])
    assert (found[2] == 100).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("reconstruct", "nvae", N), "expected images 0 to 3 of npz:"),
        (("reconstruct", "nvae", "absent.png"), "expected an image file"),
        (("reconstruct", "nvae", "colour.png"), "expected a grey image, as the model was built for, got colour"),
        (("reconstruct", "nvae", 0, "--redraw", "6"), "expected latent groups from 1 (coarse) to 5"),
        (("reconstruct", "nvae", 0, "--redraw", "3-2"), "like 1 or 2-5, got '3-2'"),
        (("reconstruct", "ae", 0, "--redraw", "1"), "expected a model with latents"),
        (("interpolate", "ae", 0, 1), "expected a model with latents"),
        (("interpolate", "nvae", 0), "expected two images or more, got 1"),
        (("traverse", "nvae", 0, 1), "expected one image, got 2"),
        (("traverse", "nvae", 0, "--group", 0), "expected latent groups from 1 (coarse) to 5"),
    ],
)
def test_what_cannot_be_shown_is_one_line(call, tmp_path, words, said):
    Image.new("RGB", (28, 28), (255, 0, 0)).save(tmp_path / "colour.png")
    code, _, last = call(*words)
    assert code == 2
    assert said in last
    assert {path.name for path in tmp_path.iterdir()} == {"colour.png"}
