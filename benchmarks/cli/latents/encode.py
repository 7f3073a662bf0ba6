"""The verb `encode`: latents of images into a file, with the use of the latent groups."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.base.errors import UserError
from benchmarks.cli.checkpoints import chosen_images, load_checkpoint, say_what_was_read, trained_on
from benchmarks.evaluation.encoding import Encoder, Loss
from benchmarks.evaluation.per_image import padded_input
from benchmarks.metrics.latents import GroupUsage
from benchmarks.report.layout import decimals, markdown, number
from benchmarks.storage.latents import SUFFIX, LatentsHead, group_name

FEWEST = 2
"""Images that a variance over images needs."""


def encode(options: argparse.Namespace) -> int:
    """Write the latents of images; print how the groups are used, and what dropping dead channels costs."""
    out = Path(options.out)
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: expected a name that ends in {SUFFIX}")
    encoder, head = _prepared(options)
    loss = None
    if options.prune:
        usage = encoder.usage()
        loss = encoder.write_pruned(out, head, usage)
    else:
        usage = encoder.write(out, head)
    if options.json:
        print(json.dumps(_described(head, usage, loss), indent=1))
    elif options.stats:
        print(_table(usage))
    print(_said(head, usage, loss, out), file=sys.stderr)
    return 0


def _prepared(options: argparse.Namespace) -> tuple[Encoder, LatentsHead]:
    """The model with the images asked for, and the head of the file."""
    loaded = load_checkpoint(options, options.device)
    if not loaded.model.has_prior:
        raise UserError(f"{options.checkpoint}: {loaded.trial.model} has no latents with a prior; choose another model")
    torch.set_num_threads(options.threads or loaded.trial.threads)
    name = options.data or trained_on(loaded.trial, options.checkpoint)
    split = options.split or (None if options.data else "test")
    found, split = chosen_images(name, split, binary=loaded.trial.binary)
    n = options.n or len(found.images)
    if n > len(found.images):
        raise UserError(f"--n: expected at most the {len(found.images):,} images of {name}, got {n:,}")
    if n < FEWEST and (options.prune or options.stats or options.json):
        raise UserError(
            f"--prune, --stats, --json: expected at least {FEWEST} images, got {n}; the use varies over images"
        )
    padded_input(found.images[:1], loaded)  # raises where they are not of the model's shape
    say_what_was_read(name, found.note)
    size = options.batch_size or loaded.trial.evaluation.batch_size
    encoder = Encoder(loaded, found.images[:n], options.seed, options.posterior_mean, size)
    return encoder, encoder.head(name, split)


def _table(usage: list[GroupUsage]) -> str:
    """The use of the groups as a table."""
    rates = [(group.info.rate or 0.0, group.rate_sd) for group in usage]
    places = decimals([rate for rate, _ in rates], [sd for _, sd in rates])
    rows = [
        {
            "Group": group_name(index),
            "Shape": "x".join(map(str, (group.info.channels, group.info.height, group.info.width))),
            "Rate (nats/image)": number(rate, places),
            "SD over images": number(sd, places),
            "Active units": f"{group.info.active_units} of {group.info.units}",
            "Dead channels": f"{len(group.dead_channels)} of {group.info.channels}",
        }
        for index, (group, (rate, sd)) in enumerate(zip(usage, rates, strict=True))
    ]
    return markdown(pd.DataFrame(rows), left=("Group", "Shape"))


def _described(head: LatentsHead, usage: list[GroupUsage], loss: Loss | None) -> dict[str, Any]:
    """The head of the file, the use of the groups and the cost of pruning, for JSON."""
    groups = [
        {
            "group": group_name(index),
            **dataclasses.asdict(group.info),
            "rate_sd": group.rate_sd,
            "dead_channels": group.dead_channels,
        }
        for index, group in enumerate(usage)
    ]
    return {"latents": dataclasses.asdict(head), "groups": groups, "mse": loss and dataclasses.asdict(loss)}


def _said(head: LatentsHead, usage: list[GroupUsage], loss: Loss | None, out: Path) -> str:
    """What was written where, in one line."""
    said = f"{head.n} images in {out}: {len(head.groups)} latent groups, "
    if loss is None:
        return f"{said}{head.count} latents an image"
    kept = sum(len(group.active_channels) * group.info.height * group.info.width for group in usage)
    dead, channels = (
        sum(counts) for counts in zip(*((len(g.dead_channels), g.info.channels) for g in usage), strict=True)
    )
    return (
        f"{said}{kept} of {head.count} latents an image ({dead} of {channels} channels dropped); "
        f"MSE (0-1) {loss.mse_all:.6f} with all latents, {loss.mse_pruned:.6f} with these"
    )
