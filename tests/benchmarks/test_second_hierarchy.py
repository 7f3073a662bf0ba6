"""A second hierarchical model comes in through registries alone: everything that is asked of a model works for it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.cli.info import described_models
from benchmarks.cli.parser import run_command
from benchmarks.data import DataSet, model_input, to_uint8
from benchmarks.speed.baseline.registry import BASELINES
from benchmarks.speed.target import resolve
from benchmarks.speed.work import job_of, train, verbs_of
from benchmarks.storage.published import registry as readers
from benchmarks.storage.published.checkpoint import PublishedModel, PublishedReader
from benchmarks.storage.weights import build_model, load_model, save_weights
from benchmarks.suites.config import build_suite, to_dict, trial_from_dict
from benchmarks.training import loop
from kernels.ops import Ops
from kernels.reference.network import gated_residual
from models.fields import added_later
from models.layers.convolutions import ActivatedConv2d
from models.layers.squeeze_excitation import SqueezeExcitation
from models.likelihoods import LIKELIHOODS, ConfiguredLikelihood, LogisticMixtureSpec
from models.output import (
    Draw,
    Encoding,
    ImageShape,
    LatentShape,
    Likelihood,
    LikelihoodSpec,
    Model,
    Temperature,
    draw_group,
    sample_group,
)
from models.presets import ModelSetup, Preset, Recipe
from models.registry import MODELS, ModelEntry

CPU = torch.device("cpu")
IMAGE = ImageShape(1, 8, 8)
SURPLUS = 0.028  # nats a pixel: probabilities of the levels that sum to 1.028


@dataclasses.dataclass(frozen=True)
class SurplusMixture:
    """A mixture of logistics whose mass is larger than one."""

    inner: Likelihood
    surplus: float

    def log_prob(self, x: Tensor) -> Tensor:
        return self.inner.log_prob(x) + self.surplus * x[0].numel()

    def mean(self) -> Tensor:
        return self.inner.mean()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.inner.sample(generator)


@dataclasses.dataclass(frozen=True)
class SurplusMixtureSpec(ConfiguredLikelihood):
    """Five-bit levels, as its published code scores them or normalised."""

    mixtures: int = 2
    bits: int = 5
    published: bool = False
    over_levels: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        return f"bits={self.bits}" + (", published mass" if self.published else "")

    def parameter_channels(self, channels: int) -> int:
        return LogisticMixtureSpec(self.mixtures, self.bits).parameter_channels(channels)

    def build(self, parameters: Tensor, ops: Ops) -> SurplusMixture:
        inner = LogisticMixtureSpec(self.mixtures, self.bits).build(parameters, ops)
        return SurplusMixture(inner, SURPLUS if self.published else 0.0)


@dataclasses.dataclass(frozen=True)
class LadderConfig:
    """Feature channels, latent channels; `gate` came after the first runs."""

    width: int = 4
    latent_channels: int = 2
    gate: bool = added_later(False)


class Ladder(Model):
    """Two latent groups, the coarse one at half the image's resolution; a residual block between."""

    def __init__(self, config: LadderConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        super().__init__(image, likelihood, ops)
        self.config, width, latents = config, config.width, config.latent_channels
        conv = {"activation": "elu", "network": ops.network}
        self.stem = ActivatedConv2d(image.channels, width, 3)
        self.down = ActivatedConv2d(width, width, 3, stride=2, **conv)
        self.posteriors = nn.ModuleList(ActivatedConv2d(width, 2 * latents, 3, **conv) for _ in range(2))
        self.prior = ActivatedConv2d(width, 2 * latents, 3, **conv)
        self.merges = nn.ModuleList(ActivatedConv2d(latents, width, 3) for _ in range(2))
        self.block = ActivatedConv2d(width, width, 3, **conv)
        self.gate = SqueezeExcitation(width) if config.gate else None
        self.out = ActivatedConv2d(width, likelihood.parameter_channels(image.channels), 3, **conv)

    @property
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        sides = ((self.image.height // 2, self.image.width // 2), (self.image.height, self.image.width))
        return tuple(LatentShape(self.config.latent_channels, *side) for side in sides)

    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        fine = self.stem(2 * x - 1)  # (B, W, H, W)
        coarse = self.posteriors[0](self.down(fine))  # (B, 2 Z, H/2, W/2)
        first = draw_group(self.ops, draw, 0, coarse.chunk(2, 1), None)
        state = self._after_first(first.z)
        second = draw_group(self.ops, draw, 1, self.posteriors[1](fine + state).chunk(2, 1), self._prior(state))
        return Encoding(state + self.merges[1](second.z), (first, second))

    def sample_state(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Tensor:
        first = self.latent_shapes[0]
        zero = self.stem.weight.new_zeros(()).expand(n, first.channels, first.height, first.width)
        state = self._after_first(sample_group(self.ops, draw, 0, (zero, zero), temperature=temperature))
        return state + self.merges[1](sample_group(self.ops, draw, 1, self._prior(state), temperature=temperature))

    def decode_parameters(self, state: Tensor) -> Tensor:
        return self.out(state)

    def _after_first(self, z: Tensor) -> Tensor:
        state = nn.functional.interpolate(self.merges[0](z), scale_factor=2)
        branch = self.block(state)
        return gated_residual(state, branch, None if self.gate is None else self.gate(branch), 0.5)

    def _prior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.prior(state).chunk(2, 1)
        return mean, log_scale


def published_rules(spec: ConfiguredLikelihood) -> ConfiguredLikelihood:
    return dataclasses.replace(spec, published=True) if isinstance(spec, SurplusMixtureSpec) else spec


def is_ladder(contents: object) -> bool:
    return isinstance(contents, Mapping) and "module.stem.weight" in contents


def read_ladder(contents: Mapping[str, Tensor]) -> PublishedModel:
    state = {key.removeprefix("module."): value for key, value in contents.items()}
    config = LadderConfig(state["stem.weight"].shape[0], state["merges.0.weight"].shape[1])
    return PublishedModel(ModelSetup("ladder", config, IMAGE, SurplusMixtureSpec()), state)


RECIPE = Recipe({"optimizer": "adam", "learning_rate": 2e-4, "batch_size": 4}, {"beta": 0.5})
PRESETS = {
    "ladder-big": Preset("ladder", LadderConfig(6), IMAGE, SurplusMixtureSpec(), RECIPE.with_training(images=8)),
    "ladder-tiny": Preset("ladder", LadderConfig(3), IMAGE, SurplusMixtureSpec(), parameters=816),
}
ENTRY = ModelEntry(LadderConfig, Ladder, "a ladder of two rungs", PRESETS, RECIPE, published_rules)
READER = PublishedReader("Ladder (published)", "a state_dict of a ladder", is_ladder, read_ladder)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """All that a second hierarchy adds outside its own files."""
    monkeypatch.setitem(MODELS, "ladder", ENTRY)
    monkeypatch.setitem(LIKELIHOODS, "surplus-mixture", SurplusMixtureSpec)
    monkeypatch.setattr(readers, "READERS", (*readers.READERS, READER))
    monkeypatch.setitem(BASELINES, "ladder", {"train": lambda job: lambda: job.model(job.x(), Draw(torch.tensor(0)))})


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=gen) for n in (16, 4, 4)]
    return DataSet("noise", IMAGE, *splits, "hash", None, "random pixels")


def make_trial(**row):
    table = {"data": "noise", "training": {"validations": 1}, "models": {"mine": {"preset": "ladder-big", **row}}}
    return build_suite("ladders", table).trials[0]


@pytest.fixture
def trained(data, tmp_path):
    """Weights after the preset's two steps, and the model that has them."""
    trial = make_trial()
    model = build_model(trial, IMAGE, CPU)
    result = loop.train(model, trial, data, tmp_path / "state", lambda *event: None, lambda: False)
    assert (result.steps, result.skipped) == (2, 0)
    save_weights(model, trial, data.content_hash, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", model


@pytest.fixture
def pixels(data, tmp_path):
    np.savez(tmp_path / "images.npz", images=data.test[:, 0].numpy())
    return f"npz:{tmp_path / 'images.npz'}"


def said(capsys, *arguments):
    """What a command prints as JSON."""
    assert run_command([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_its_preset_fills_a_row_that_survives_a_round_trip():
    trial = make_trial()
    assert (trial.model, trial.label, trial.model_config.width, trial.bits) == ("ladder", "ladder-big", 6, 5)
    assert (trial.training.optimizer, trial.training.images, trial.objective.beta) == ("adam", 8, 0.5)
    assert trial_from_dict(to_dict(trial)) == trial


def test_its_hash_knows_its_configuration_but_for_later_fields():
    names = {make_trial(**row).identity("data", "torch") for row in ({}, {"gate": False}, {"gate": True}, {"width": 5})}
    assert len(names) == 3


def test_it_trains_and_comes_back_from_its_file(trained):
    path, model = trained
    loaded = load_model(path, CPU)
    assert (loaded.trial, loaded.data_hash) == (make_trial(), "hash")
    fresh = build_model(loaded.trial, IMAGE, CPU)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


def test_images_are_scored_by_the_rules_of_its_own_code(trained, pixels, tmp_path, capsys):
    arguments = ["evaluate", trained[0], "--data", pixels, "--per-image", tmp_path / "out.json", "--device", "cpu"]
    found = {}
    for flag in ([], ["--original-rules"]):
        summary = {row["metric"] for row in said(capsys, *arguments, "--json", *flag)}
        assert summary == {"distortion", "rate", "elbo", "bits_per_dim"}
        found[bool(flag)] = json.loads((tmp_path / "out.json").read_text())["images"]
    for own, published in zip(found[False], found[True], strict=True):
        assert own["rates"] == published["rates"]
        assert len(own["rates"]) == 2
        assert published["log_px_given_z"] - own["log_px_given_z"] == pytest.approx(SURPLUS * IMAGE.dims, rel=1e-3)


def test_it_is_listed_with_its_presets():
    table = described_models()  # what `list models` keeps
    assert table["ladder"] == ENTRY.description
    assert table["ladder-tiny"] == "preset of ladder for 1x8x8 images, 816 parameters"


def test_its_presets_are_timed_under_the_recipe_of_its_published_ones(capsys):
    (target,) = resolve("ladder-tiny")
    assert (target.trial.training.optimizer, target.trial.objective.beta, target.image) == ("adam", 0.5, IMAGE)
    train(job_of(target, CPU))()
    verbs_of(target.trial, plain=True)["train"](job_of(target, CPU))()
    rows = said(
        capsys, "throughput", "ladder-tiny", "--what", "train,sample", "--seconds", "0.01", "--device", "cpu", "--json"
    )
    assert all(row["value"] > 0 for row in rows if row["metric"] in ("train_throughput", "sample_throughput"))


def test_what_its_published_code_wrote_is_read(trained, pixels, tmp_path, capsys):
    _, model = trained
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "model-ema.th")
    loaded = load_model(tmp_path / "model-ema.th", CPU)
    assert (loaded.trial.label, loaded.trial.model, loaded.trial.training.optimizer) == (
        "Ladder (published)",
        "ladder",
        "adam",
    )
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), model.parameters(), strict=True))
    assert run_command(["convert", str(tmp_path / "model-ema.th"), str(tmp_path / "own")]) == 0
    by_file = [
        said(capsys, "evaluate", path, "--data", pixels, "--device", "cpu", "--json")
        for path in (tmp_path / "model-ema.th", tmp_path / "own")
    ]
    assert by_file[0] == by_file[1]


def test_a_file_of_no_known_code_is_answered_with_what_is_read(tmp_path, capsys):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.th")
    assert run_command(["sample", str(tmp_path / "other.th"), "--out", str(tmp_path / "grid.png")]) == 2
    assert "expected an original NVAE checkpoint" in (line := capsys.readouterr().err)
    assert "or a state_dict of a ladder" in line


def test_its_latents_go_out_and_in(trained, pixels, tmp_path, capsys):
    path, model = trained
    latents, archive = tmp_path / "latents.safetensors", tmp_path / "out.npz"
    found = said(capsys, "encode", path, "--data", pixels, "--out", latents, "--posterior-mean", "--json")
    assert [group["group"] for group in found["groups"]] == ["group00", "group01"]
    images = {}
    for keep in (0, 1, 2):
        assert (
            run_command(["decode", str(latents), "--checkpoint", str(path), "--keep", str(keep), "--npz", str(archive)])
            == 0
        )
        images[keep] = np.load(archive)["images"]
    x = model_input(
        torch.from_numpy(np.load(tmp_path / "images.npz")["images"])[:, None], make_trial().likelihood_spec, 0
    )
    with torch.inference_mode():
        whole = to_uint8(model.eval()(x, Draw(torch.tensor(0), at_mean=True)).likelihood.mean())
    assert np.array_equal(images[2], whole.permute(0, 2, 3, 1).numpy())
    assert len({found.tobytes() for found in images.values()}) == 3
