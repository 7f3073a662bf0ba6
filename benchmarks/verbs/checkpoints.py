"""The verbs that take a trained model: `throughput`, `evaluate`, `sample`."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import throughput as timing
from benchmarks.config import EvaluationConfig, parse, set_path
from benchmarks.data import keyed_generator, load, to_uint8
from benchmarks.environment import choose_device
from benchmarks.errors import UserError
from benchmarks.record import Measurement, write_bytes_atomically
from benchmarks.saved import LoadedModel, load_model, read_config
from benchmarks.streams import seed_tensor
from models.output import Draw


def inception_fields(weights: str) -> dict[str, str]:
    """Evaluation fields set by --inception-weights; the weights are checked before anything runs."""
    from benchmarks.metrics.extractors import open_extractor  # imports torchvision: slow

    open_extractor("inception", weights)
    return {"extractor": "inception", "extractor_weights": weights}


def throughput(options: argparse.Namespace) -> int:
    """Time a trained model."""
    path = Path(options.checkpoint)
    threads = options.threads or (read_config(path).threads if path.is_dir() else 1)
    torch.set_num_threads(threads)
    loaded = _load(options.checkpoint, options.device)
    images = load(loaded.cell.data).train[: options.batch or loaded.cell.training.batch_size]
    rows = timing.measure(loaded.model, loaded.cell, images, options.seconds)
    _print_measurements(rows, options.json)
    return 0


def _load(checkpoint: str, device: str | None) -> LoadedModel:
    path = Path(checkpoint)
    name = device or (read_config(path).device if path.is_dir() else "auto")
    return load_model(path, choose_device(name))


def _print_measurements(rows: list[Measurement], as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        spread = f"  [{row.low:.4g}, {row.high:.4g}] {row.spread_kind}" if row.low is not None else ""
        value = f"{row.value:.5g} {row.unit}" if row.value is not None else f"- ({row.note})"
        print(f"{row.metric:24} {value}{spread}" + (f"  n = {row.n}" if row.n else ""))


def evaluate(options: argparse.Namespace) -> int:
    """Score a checkpoint on the test split of its data set, or of another."""
    from benchmarks import evaluate as evaluating  # imports torchvision: slow

    loaded = _load(options.checkpoint, options.device)
    torch.set_num_threads(options.threads or loaded.cell.threads)
    data = load(options.data or loaded.cell.data)
    if data.image != loaded.model.image:
        raise UserError(
            f"--data {data.name}: the model was built for {loaded.model.image}, the images are {data.image}"
        )
    table: dict[str, Any] = {"evaluation": dataclasses.asdict(loaded.cell.evaluation)}
    if options.inception_weights is not None:
        table["evaluation"] |= inception_fields(options.inception_weights)
    for assignment in options.set:
        set_path(table, f"evaluation.{assignment.removeprefix('evaluation.')}")
    settings = parse(EvaluationConfig, table["evaluation"], "evaluation")
    configured = dataclasses.replace(loaded.cell, data=data.name, evaluation=settings)
    result = evaluating.evaluate(loaded.model, configured, data, lambda done, total, phase: None)
    _print_measurements(result.measurements, options.json)
    return 0


def sample(options: argparse.Namespace) -> int:
    """Draw a grid of images into a PNG."""
    if options.n < 1 or not options.temperature > 0:
        raise UserError(f"expected --n >= 1 and --temperature > 0, got {options.n} and {options.temperature:g}")
    loaded = _load(options.checkpoint, options.device)
    if not loaded.model.has_prior:
        raise UserError(
            f"{options.checkpoint}: a {loaded.cell.model} has no prior to sample from; choose another model"
        )
    device = next(loaded.model.parameters()).device
    with torch.inference_mode():
        draw = Draw(seed_tensor(options.seed, "sample", device))
        likelihood = loaded.model.sample(options.n, draw, options.temperature)
        pixels = keyed_generator(options.seed, "sample pixels", device=device)
        images = likelihood.sample(pixels) if options.draw else likelihood.mean()
    save_grid(to_uint8(images.cpu()), Path(options.out))
    print(f"{options.n} images in {options.out}", file=sys.stderr)
    return 0


def save_grid(images: torch.Tensor, path: Path) -> None:
    """Write uint8 images (N, C, H, W) as one PNG, near square, two pixels apart."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (index // columns) * (height + 2) + 2, (index % columns) * (width + 2) + 2
        canvas[top : top + height, left : left + width] = image
    buffer = io.BytesIO()
    Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas).save(buffer, "PNG")
    write_bytes_atomically(path, buffer.getvalue())
