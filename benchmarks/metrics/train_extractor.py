"""Train and write a shipped extractor: `python -m benchmarks.metrics.train_extractor DATA`.

Trains on the training split only, on one thread, from a fixed seed: the same torch build gives the same file. Takes
some minutes. Writes `NAME.safetensors` and its card `NAME.json` beside this file in `weights/`; the card says how the
extractor ranks damage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from benchmarks.base.errors import UserError
from benchmarks.base.files import write_bytes_atomically, write_text_atomically
from benchmarks.data import DataSet, Labels, batches, keyed_generator, load, load_labels, to_unit
from benchmarks.metrics.classifier import SmallClassifier
from benchmarks.metrics.extractors import classifier_extractor
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.metrics.ladder import LADDER, Rung, damaged

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How one extractor is trained; `shift` in pixels, `rotation` in degrees, `zoom` relative: half ranges."""

    name: str
    data: str
    epochs: int
    shift: float
    rotation: float
    zoom: float
    flip: bool
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    seed: int = 0


RECIPES = {
    "mnist-5k": Recipe("mnist-cnn-v1", "mnist-5k", epochs=30, shift=1.5, rotation=12.0, zoom=0.12, flip=False),
    "fashion-mnist": Recipe("fashion-mnist-cnn-v1", "fashion-mnist", 4, shift=0.5, rotation=0.0, zoom=0.0, flip=True),
    "glyphs-28": Recipe("glyphs-cnn-v1", "glyphs-28", 4, shift=0.0, rotation=0.0, zoom=0.0, flip=False),
    "photos-32": Recipe("photos-cnn-v1", "photos-32", 4, shift=0.0, rotation=0.0, zoom=0.0, flip=True),
}


TOLD = {"glyphs-28": "the face", "photos-32": "the photograph that the patch is from"}
"""What a classifier learns to tell, where it is not the class of the thing in the image."""

RANKED = 1000  # images on either side of the card's distances


def train(recipe: Recipe, data: DataSet, labels: Tensor) -> SmallClassifier:
    """The classifier after `recipe.epochs` epochs over the training split: AdamW, cosine to 0, cross-entropy."""
    model = SmallClassifier(data.image.channels, int(labels.max()) + 1)
    model.initialise(keyed_generator(recipe.seed, "extractor weights"))
    steps = recipe.epochs * (len(data.train) // recipe.batch)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: _warm_cosine(t, steps))
    for step, index in enumerate(islice(batches(len(data.train), recipe.batch, recipe.seed), steps)):
        x = augment(to_unit(data.train[index]), recipe, keyed_generator(recipe.seed, "augmentation", step))
        loss = F.cross_entropy(model(x), labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % (steps // 20) == 0:
            print(f"step {step + 1}/{steps}: loss {loss.item():.3f}", file=sys.stderr)
    return model.eval()


def augment(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) under a small random affine map and, if the recipe says so, mirrored half of the time."""
    signed = 2 * torch.rand(4, len(x), generator=generator) - 1  # in [-1, 1): rotation, zoom, two shifts
    angle, scale = signed[0] * math.radians(recipe.rotation), 1 + signed[1] * recipe.zoom
    mirror = torch.ones(len(x))
    if recipe.flip:
        mirror = 1 - 2 * torch.randint(0, 2, (len(x),), generator=generator).float()
    shift = signed[2:] * recipe.shift * 2 / x.shape[-1]
    rows = [
        torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), shift[0]], dim=1),
        torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), shift[1]], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@torch.no_grad()
def accuracy(model: SmallClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of 8-bit `images` whose class is right."""
    right = [model(to_unit(x)).argmax(dim=1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return torch.cat(right).double().mean().item()


def write(recipe: Recipe, model: SmallClassifier, card: dict[str, object], folder: Path) -> None:
    """Write weights and card; the card holds the SHA-256 of the weights."""
    raw = save(model.state_dict())
    card = {"name": recipe.name, "weights_sha256": hashlib.sha256(raw).hexdigest()} | card
    write_bytes_atomically(folder / f"{recipe.name}.safetensors", raw)
    write_text_atomically(folder / f"{recipe.name}.json", json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """Command line: train one extractor, write it, print its card."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics.train_extractor", description=__doc__)
    parser.add_argument("data", choices=sorted(RECIPES), help="data set whose training split is used")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write to (default: the shipped one)")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.data]
    try:
        data, labels = load(recipe.data), load_labels(recipe.data)
        with _threads(1):
            model = train(recipe, data, labels.train)
            card = _card(recipe, data, model, labels) | {"ladder": _ranking(data, labels.train, model)}
        write(recipe, model, card, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _card(recipe: Recipe, data: DataSet, model: SmallClassifier, labels: Labels) -> dict[str, object]:
    """What the card says of the training; no accuracy where the test images are of no class that was learnt."""
    known = bool(torch.isin(labels.test, labels.train).all())
    return {
        "size": data.image.height,
        "tells": TOLD.get(data.name, "the class"),
        "data": data.name,
        "data_hash": data.content_hash,
        "trained_on": f"the {len(data.train)} training images",
        "test_accuracy": accuracy(model, data.test, labels.test) if known else None,
        "test_images": len(data.test),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": {name: getattr(recipe, name) for name in recipe.__dataclass_fields__},
        "command": f"python -m benchmarks.metrics.train_extractor {recipe.data}",
        "torch": str(torch.__version__),
    }


def _ranking(data: DataSet, labels: Tensor, model: SmallClassifier) -> dict[str, float]:
    """Frechet distance of undamaged and of damaged training images to as many test images, by rung."""
    extractor = classifier_extractor("in training", "-", model.state_dict(), data.image.height)
    extractor.network.requires_grad_(False).eval()
    n = min(RANKED, len(data.test))
    rungs = [Rung("real", "train"), *LADDER]
    test = FeatureStatistics.of(extractor.features(data.test[:n]).values)
    images = {rung.of(len(labels.unique())): damaged(rung, data.train, labels, n) for rung in rungs}
    found = {name: FeatureStatistics.of(extractor.features(some).values) for name, some in images.items()}
    return {"n": n} | {name: round(frechet_distance(one, test), 4) for name, one in found.items()}


def _warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over the first tenth, then a cosine to 0."""
    warm = steps / 10
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """`n` threads inside the block, the number from before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    sys.exit(main())
