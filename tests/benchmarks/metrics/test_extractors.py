import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil

import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.base.errors import UserError
from benchmarks.data import load, load_labels, to_uint8, to_unit
from benchmarks.metrics import extractors, fidelity
from benchmarks.metrics.classifier import SmallClassifier
from benchmarks.metrics.extractors import EXTRACTORS, ExtractorSource, open_extractor
from benchmarks.metrics.features import Extractor
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.metrics.sample_quality import sample_metrics
from benchmarks.metrics.train_extractor import RECIPES, Recipe, accuracy, augment, train

SHIPPED = ("mnist-cnn-v1", "fashion-mnist-cnn-v1", "glyphs-cnn-v1", "photos-cnn-v1")
INVARIANCE = 1e-6  # relative: FID under batch size and threads; float64 rounding is about 1e-12
SAME = 1e-6  # relative: our call of torch-fidelity against its own from images to values
GENERATOR = torch.Generator().manual_seed(0)
GREY = torch.randint(0, 256, (60, 1, 28, 28), generator=GENERATOR, dtype=torch.uint8)
COLOUR = torch.randint(0, 256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def digits():
    return load("mnist-5k")


@pytest.fixture(scope="module")
def ruler():
    return open_extractor("mnist-cnn-v1")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_extractor_is_small_hashed_and_float64(name):
    path = extractors.WEIGHTS / f"{name}.safetensors"
    extractor = open_extractor(name)
    assert path.stat().st_size < 1_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == extractor.weights_sha256
    assert (extractor.channels, extractor.size) == (((3,), 32) if name == "photos-cnn-v1" else ((1,), 28))
    assert f"{extractor.size}x{extractor.size}" in extractor.preprocessing
    found = extractor.features(COLOUR if extractor.size == 32 else GREY)
    assert found.values.shape == (60, extractor.dims)
    assert found.logits is not None
    assert found.values.dtype == found.logits.dtype == torch.float64
    assert not any(p.requires_grad or p.dtype != torch.float64 for p in extractor.network.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_names_the_recipe_and_the_training_split(name):
    card = json.loads((extractors.WEIGHTS / f"{name}.json").read_text())
    recipe = RECIPES[card["data"]]
    assert card["recipe"] == {field: getattr(recipe, field) for field in recipe.__dataclass_fields__}
    assert card["data"] in card["command"]


def test_the_card_tells_the_accuracy_on_the_test_split(digits, ruler):
    card = json.loads((extractors.WEIGHTS / "mnist-cnn-v1.json").read_text())
    logits = ruler.features(digits.test).logits
    found = (logits.argmax(dim=1) == load_labels("mnist-5k").test).double().mean().item()
    assert card["data_hash"] == digits.content_hash
    assert found == pytest.approx(card["test_accuracy"], abs=1.5 / len(digits.test))  # float32 may turn one image
    assert found > 0.97


def test_batch_size_and_threads_do_not_move_fid(digits, ruler):
    images, before = digits.test[:200], torch.get_num_threads()
    values = []
    try:
        for batch, threads in ((1, 1), (7, 2), (100, 1), (64, 2)):
            torch.set_num_threads(threads)
            a, b = (FeatureStatistics.of(ruler.features(x, batch).values) for x in images.split(100))
            values.append(frechet_distance(a, b))
    finally:
        torch.set_num_threads(before)
    assert values == pytest.approx([values[0]] * len(values), rel=INVARIANCE)


def test_torch_fidelity_gives_the_same_from_images_to_values(digits, ruler):
    state = dict(ruler.network.net.state_dict())

    class Registered(FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.network = extractors.ClassifierNetwork(name, features_list, state)

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, input):
            return self.network(input)

    torch_fidelity.register_feature_extractor("test-mnist-cnn", Registered)
    samples, reference = digits.train[:200], digits.test[:200]
    theirs = torch_fidelity.calculate_metrics(
        input1=fidelity.Rows(samples),
        input2=fidelity.Rows(reference),
        feature_extractor="test-mnist-cnn",
        **dict.fromkeys(("fid", "kid", "prc", "isc"), True),
        kid_subset_size=100,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        batch_size=64,
    )
    ours = {m.metric: m for m in sample_metrics(samples, reference, ruler)}
    traces = sum(float(ruler.features(x).values.var(dim=0).sum()) for x in (samples, reference))
    assert abs(ours["sample_fid"].value - theirs[torch_fidelity.KEY_METRIC_FID]) <= 1e-6 * traces
    keys = {
        "kid": torch_fidelity.KEY_METRIC_KID_MEAN,
        "precision": torch_fidelity.KEY_METRIC_PRECISION,
        "recall": torch_fidelity.KEY_METRIC_RECALL,
        "inception_score": torch_fidelity.KEY_METRIC_ISC_MEAN,
    }
    assert {m: ours[m].value for m in keys} == pytest.approx({m: theirs[key] for m, key in keys.items()}, rel=SAME)


@pytest.mark.parametrize(
    "images",
    [GREY.expand(-1, 3, -1, -1), GREY[..., :27], GREY[:0], GREY.float()],
    ids=["colour", "size", "empty", "float"],
)
def test_images_that_do_not_fit_are_one_line(ruler, images):
    with pytest.raises(UserError, match=r"mnist-cnn-v1.*expected"):
        ruler.features(images)


def test_an_unknown_name_is_answered_with_the_right_ones():
    with pytest.raises(UserError, match="did you mean 'mnist-cnn-v1'"):
        open_extractor("mnist-cnn")
    with pytest.raises(UserError, match="brings its own weights"):
        open_extractor("mnist-cnn-v1", weights="x.pth")


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "card"])
def test_damaged_shipped_weights_are_refused(tmp_path, monkeypatch, damage):
    folder = shutil.copytree(extractors.WEIGHTS, tmp_path / "weights")
    path = folder / "mnist-cnn-v1.safetensors"
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-5] ^= 1
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[:1000])
    elif damage == "missing":
        path.unlink()
    else:
        (folder / "mnist-cnn-v1.json").write_text("{}")
    monkeypatch.setattr(extractors, "WEIGHTS", folder)
    with pytest.raises(UserError, match="mnist-cnn-v1"):
        open_extractor("mnist-cnn-v1")


def test_an_extractor_of_ones_own_is_one_entry(monkeypatch, ruler):
    class Ink(extractors.Network):
        def __init__(self):
            super().__init__("ink", ["features"])
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, input):
            ink = input.double().flatten(1) * self.scale
            return (torch.stack([ink.mean(dim=1), ink.std(dim=1)], dim=1),)

    source = ExtractorSource("mean ink", lambda weights: Extractor("ink", "1", "-", "none", 2, (1, 3), None, Ink()))
    monkeypatch.setitem(EXTRACTORS, "ink", source)
    found = open_extractor("ink").features(GREY)
    assert found.values[:, 0].tolist() == pytest.approx(GREY.double().mean(dim=(1, 2, 3)).tolist())
    scores = {m.metric: m for m in sample_metrics(GREY[:30], GREY[30:], open_extractor("ink"))}
    assert scores["inception_score"].value is None
    assert "no classes" in scores["inception_score"].note


def test_inception_needs_its_weights_and_checks_them(tmp_path):
    with pytest.raises(UserError, match="--inception-weights"):
        open_extractor("inception")
    with pytest.raises(UserError, match="check the path"):
        open_extractor("inception", tmp_path / "none.pth")
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"right name, wrong content")
    with pytest.raises(UserError, match="sha256 6726825d"):
        open_extractor("inception", path)


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_weights_are_never_unpickled_into_code(tmp_path, monkeypatch):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({"weight": Exploit(str(trace))}, path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="state dict of tensors"):
        open_extractor("inception", path)
    assert not trace.exists()


def test_inception_repeats_grey_and_does_not_depend_on_the_batch(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # an Inception with random weights, made without the download
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        state = FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
    path = tmp_path / "random.pth"
    torch.save(state, path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    inception = open_extractor("inception", path)
    grey = inception.features(GREY[:2], batch_size=2)
    colour = inception.features(GREY[:2].expand(-1, 3, -1, -1), batch_size=1)
    assert grey.values.shape == (2, 2048)
    assert next(inception.network.parameters()).dtype == torch.float64
    torch.testing.assert_close(grey.values, colour.values, rtol=INVARIANCE, atol=0)


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite_pytorch") is not None, reason="packages are installed")
def test_a_missing_optional_package_is_one_line():
    with pytest.raises(UserError, match="pip install"):
        open_extractor("efficientnet-lite0")


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="optional packages missing")
def test_efficientnet_sees_noise_grow():
    extractor, photos = open_extractor("efficientnet-lite0"), load("patches").train[::400][:30]
    noise = torch.randn(photos.shape, generator=GENERATOR)
    noisy = [to_uint8(to_unit(photos) + scale * noise) for scale in (0.0, 0.05, 0.2)]
    clean, *others = (FeatureStatistics.of(extractor.features(images).values) for images in noisy)
    assert clean.mean.shape == (1280,)
    assert 0 < frechet_distance(clean, others[0]) < frechet_distance(clean, others[1])


TINY = Recipe("tiny", "mnist-5k", epochs=1, shift=1.0, rotation=5.0, zoom=0.1, flip=True, batch=20)


def test_training_an_extractor_twice_gives_the_same_weights(digits):
    few = dataclasses.replace(digits, train=digits.train[:400])
    labels = load_labels("mnist-5k").train[:400]
    first, second = (train(TINY, few, labels).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_classifier_learns_from_the_training_split(digits):
    labels = load_labels("mnist-5k")
    few = dataclasses.replace(digits, train=digits.train[:800])
    recipe = dataclasses.replace(TINY, epochs=3, shift=0.0, rotation=0.0, zoom=0.0, flip=False)
    assert accuracy(train(recipe, few, labels.train[:800]), digits.test, labels.test) > 0.6  # chance: 0.1


def test_augmentation_without_ranges_changes_nothing():
    still = dataclasses.replace(TINY, shift=0.0, rotation=0.0, zoom=0.0, flip=False)
    x = torch.rand(5, 1, 28, 28, generator=GENERATOR)
    torch.testing.assert_close(augment(x, still, torch.Generator()), x, rtol=0, atol=1e-5)
    mirrored = augment(x, dataclasses.replace(still, flip=True), torch.Generator().manual_seed(1))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(mirrored, x, strict=True)]
    flipped = [torch.allclose(a.flip(-1), b, atol=1e-5) for a, b in zip(mirrored, x, strict=True)]
    assert [a or b for a, b in zip(same, flipped, strict=True)] == [True] * len(x)
    assert 0 < sum(flipped) < len(x)


def test_the_classifier_has_its_stated_size():
    assert sum(p.numel() for p in SmallClassifier().parameters()) == 98_682
