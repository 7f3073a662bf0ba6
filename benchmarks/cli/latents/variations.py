"""The verbs `reconstruct`, `interpolate` and `traverse`: a grid of what a model makes of images that the user names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.cli.checkpoints import chosen_images, load_checkpoint, say_what_was_read, trained_on
from benchmarks.data.decoding import decode, resized
from benchmarks.evaluation.inputs import at_depth
from benchmarks.evaluation.picture_files import asked_for, written
from benchmarks.evaluation.variations import Variations
from benchmarks.storage.weights import LoadedModel
from models.output import ImageShape, Model

FIRST = ("0", "1", "2", "3", "4", "5", "6", "7")
"""Images of the test split that are shown where none is named."""


def reconstruct(options: argparse.Namespace) -> int:
    """A row an image: the original, its reconstruction, and draws of the groups of each --redraw."""
    variations, images = _prepared(options, FIRST)
    groups = [_groups(text, variations.loaded.model, options.checkpoint) for text in options.redraw]
    columns = [at_depth(images, variations.loaded.trial.bits)[:, None], variations.reconstructed(images)[:, None]]
    columns += [variations.redrawn(images, chosen, options.draws) for chosen in groups]
    drawn = f", then {options.draws} draws each of groups {' and '.join(options.redraw)}" if groups else ""
    return _written(torch.cat(columns, dim=1), options, f"original, reconstruction{drawn}")


def interpolate(options: argparse.Namespace) -> int:
    """A row for each image and the next: the original, the line between their latents, the other original."""
    variations, images = _prepared(options, FIRST)
    _require_latents(variations.loaded.model, options.checkpoint)
    if len(images) < 2:
        raise UserError(f"interpolate: expected two images or more, got {len(images)}; name another")
    groups = [index for text in options.redraw for index in _groups(text, variations.loaded.model, options.checkpoint)]
    originals, rows = at_depth(images, variations.loaded.trial.bits), []
    for i in range(len(images) - 1):
        way = variations.between(images[i : i + 1], images[i + 1 : i + 2], options.steps, groups)
        rows.append(torch.cat([originals[i : i + 1], way, originals[i + 1 : i + 2]]))
    return _written(torch.stack(rows), options, f"original, {options.steps} steps, original")


def traverse(options: argparse.Namespace) -> int:
    """A row a latent unit, moved from below its prior's mean to above it; finer groups follow."""
    variations, images = _prepared(options, FIRST[:1])
    model = variations.loaded.model
    (group,) = _groups(str(options.group), model, options.checkpoint)
    if len(images) != 1:
        raise UserError(f"traverse: expected one image, got {len(images)}; name one")
    offsets = torch.linspace(-options.range, options.range, options.steps).tolist()
    rows, units = variations.traversed(images, group, options.units, offsets)
    shape = model.latent_shapes[group]
    said = (
        f"units {', '.join(map(str, units))} of group {group + 1} ({shape.channels}x{shape.height}x{shape.width}), "
        f"from {-options.range:g} to {options.range:g} scales around the prior's mean"
    )
    return _written(rows, options, said)


def _prepared(options: argparse.Namespace, default: Sequence[str]) -> tuple[Variations, Tensor]:
    """The model, and the images that were named (N, C, H, W) uint8."""
    loaded = load_checkpoint(options, options.device)
    torch.set_num_threads(options.threads or loaded.trial.threads)
    temperature = 1.0 if options.temperature is None else options.temperature
    return Variations(loaded, options.seed, temperature), _images(options.images or default, loaded, options)


def _images(named: Sequence[str], loaded: LoadedModel, options: argparse.Namespace) -> Tensor:
    """Images by their number in the split, or of files."""
    numbers = [int(word) for word in named if word.isascii() and word.isdecimal()]
    split: Tensor | None = None
    if numbers:
        name = options.data or trained_on(loaded.trial, options.checkpoint)
        asked = options.split or (None if options.data else "test")
        found, _ = chosen_images(name, asked, binary=loaded.trial.binary)
        say_what_was_read(name, found.note)
        split = found.images
        if max(numbers) >= len(split):
            raise UserError(f"expected images 0 to {len(split) - 1:,} of {name}, got {max(numbers):,}; name another")
    return torch.cat([_image(word, split, loaded.model.image) for word in named])


def _image(word: str, split: Tensor | None, image: ImageShape) -> Tensor:
    """One image (1, C, H, W): of the split by its number, or of a file, its centre resized to the model's size."""
    if split is not None and word.isascii() and word.isdecimal():
        return split[int(word)][None]
    path = Path(word)
    pixels = decode(path).pixels
    if pixels.shape[:2] != (image.height, image.width):
        if image.height != image.width:
            raise UserError(f"{path}: expected {image.height}x{image.width} pixels, got {pixels.shape[:2]}; resize it")
        print(f"{path}: its centre resized to {image.height}x{image.width}", file=sys.stderr)
        pixels = resized(pixels, image.height)
    found = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    if found.shape[1] == 1 and image.channels == 3:
        return found.expand(-1, 3, -1, -1)
    if found.shape[1] != image.channels:
        raise UserError(f"{path}: expected a grey image, as the model was built for, got colour; convert it")
    return found


def _require_latents(model: Model, checkpoint: str) -> None:
    """Raise UserError for a model without latent groups."""
    if not model.has_prior:
        raise UserError(f"{checkpoint}: expected a model with latents that have a prior; choose another model")


def _groups(text: str, model: Model, checkpoint: str) -> list[int]:
    """Indices of latent groups named from 1, coarse to fine: "3", "2-4", "1,5"."""
    _require_latents(model, checkpoint)
    count, found = len(model.latent_shapes), []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        ends = [int(end) if end.isascii() and end.isdecimal() else 0 for end in (first, last or first)]
        if not 1 <= ends[0] <= ends[1] <= count:
            raise UserError(f"expected latent groups from 1 (coarse) to {count}, like 1 or 2-{count}, got '{text}'")
        found += range(ends[0] - 1, ends[1])
    return found


def _written(rows: Tensor, options: argparse.Namespace, said: str) -> int:
    """Write rows of images (R, K, C, H, W), and say what is in a row."""
    height, width = rows.shape[:2]
    sinks = asked_for(options.out, options.each, options.npz, height * width, f"{options.verb}.png", columns=width)
    places = written([rows.flatten(0, 1).contiguous()], sinks)
    print(f"{height} rows of {width} images ({said}) in {', '.join(places)}", file=sys.stderr)
    return 0
