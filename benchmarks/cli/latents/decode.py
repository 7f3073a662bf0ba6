"""The verb `decode`: images of a file of latents, some of its groups drawn anew where that is asked for."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from benchmarks.base.checked.bounds import TEMPERATURE, or_zero
from benchmarks.base.errors import UserError
from benchmarks.cli.checkpoints import load_checkpoint
from benchmarks.evaluation.encoding import decoded
from benchmarks.evaluation.picture_files import asked_for, written
from benchmarks.storage.latents import LatentsFile, LatentsHead, group_name
from benchmarks.storage.weights import LoadedModel, weights_hash
from models.output import Temperature

GRID = "decoded.png"
SHOWN = 12
"""Digits of a hash that messages show."""


def decode(options: argparse.Namespace) -> int:
    """Decode latents into a grid, a folder or an archive."""
    file = LatentsFile(Path(options.latents))
    keep = _groups_kept(options.keep, file.head)
    temperature = _temperature(options.temperature, len(file.head.groups))
    if keep == len(file.head.groups) and (options.temperature, options.seed) != (None, None):
        raise UserError(
            "--temperature, --seed: all latent groups are read and none is drawn; give --keep or leave them out"
        )
    loaded = load_checkpoint(options, options.device)
    _require_its_model(file, loaded, options.checkpoint)
    torch.set_num_threads(options.threads or loaded.trial.threads)
    size = options.batch_size or loaded.trial.evaluation.batch_size
    sinks = asked_for(options.out, options.each, options.npz, file.head.n, GRID)
    images = decoded(loaded, file, keep, temperature=temperature, seed=options.seed or 0, batch_size=size)
    places = written(images, sinks)
    print(_read(file, keep, options.temperature or "1"), file=sys.stderr)
    print(f"{file.head.n} images in {', '.join(places)}", file=sys.stderr)
    return 0


def _groups_kept(keep: int | None, head: LatentsHead) -> int:
    """How many groups are taken from the file: all where nothing else is asked for."""
    groups = len(head.groups)
    if keep is None:
        return groups
    if not 0 <= keep <= groups:
        raise UserError(f"--keep: expected 0 to {groups}, the latent groups of {head.model}, got {keep}")
    return keep


def _temperature(text: str | None, groups: int) -> Temperature:
    """The number, or the numbers between commas, one a latent group."""
    try:
        values = [float(part) for part in (text or "1").split(",")]
    except ValueError:
        values = [math.nan]
    if not all(value in or_zero(TEMPERATURE) for value in values) or len(values) not in (1, groups):
        raise UserError(
            f"--temperature: expected a number >= 0, or {groups} between commas, one a latent group, got {text}"
        )
    return values[0] if len(values) == 1 else values


def _require_its_model(file: LatentsFile, loaded: LoadedModel, checkpoint: str) -> None:
    """Raise UserError unless the latents are of this model."""
    head, model = file.head, loaded.model
    if (head.image, head.groups) != (model.image, model.latent_shapes):
        raise UserError(
            f"{file.path}: latents of {head.model} for {_shape(head)}, not of {checkpoint}; choose its checkpoint"
        )
    found = weights_hash(model)
    if found != head.checkpoint:
        raise UserError(
            f"{file.path}: latents of {head.model} with weights {head.checkpoint[:SHOWN]}, but {checkpoint} has "
            f"{found[:SHOWN]}; choose the checkpoint that encoded them"
        )


def _shape(head: LatentsHead) -> str:
    """Images and groups in words: "1x28x28 images in 5 groups"."""
    image = head.image
    return f"{image.channels}x{image.height}x{image.width} images in {len(head.groups)} groups of {head.count} latents"


def _read(file: LatentsFile, keep: int, temperature: str) -> str:
    """What was taken from the file and what was drawn."""
    head, groups = file.head, len(file.head.groups)
    names = f" ({group_name(0)} to {group_name(keep - 1)})" if keep > 1 else f" ({group_name(0)})" if keep else ""
    how = "posterior means" if head.at_mean else f"draws of seed {head.seed}"
    of = f"{head.split} images of {head.data}" if head.split else f"images of {head.data}"
    said = (
        f"read {keep} of {groups} latent groups{names}, {file.latents(keep)} of {head.count} latents an image, "
        f"{how}, of {head.n} {of}"
    )
    if file.latents(keep) < sum(shape.count for shape in head.groups[:keep]):
        said += "; channels that were dropped are at their prior's mean"
    return said if keep == groups else f"{said}; {groups - keep} drawn from the prior at temperature {temperature}"
