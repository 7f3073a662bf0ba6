"""The verbs of the command line: each takes parsed options and returns an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import compare as comparing
from benchmarks import evaluate as evaluating
from benchmarks import throughput as timing
from benchmarks.cell import LoadedModel, load_model, read_config, run_cell
from benchmarks.config import EvaluationConfig, Suite, build_suite, parse, read_suite, set_path, suite_names, with_overrides
from benchmarks.data import DATA_SETS, keyed_generator, load, to_uint8
from benchmarks.environment import choose_device, collect
from benchmarks.errors import UserError
from benchmarks.metrics.extractors import open_extractor
from benchmarks.record import Measurement, load_records, write_bytes_atomically
from benchmarks.report.page import build_report
from benchmarks.run import Outcome, Plan, default_jobs, describe, execute, plan, prepare_folder
from benchmarks.streams import seed_tensor
from models.output import Draw
from models.registry import MODELS

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "published.csv"
INTERRUPTED = 130


def suite_of(options: argparse.Namespace) -> Suite:
    """The suite that `run`'s options describe."""
    name, table = read_suite(options.suite)
    for assignment in options.set:
        set_path(table, assignment)
    for key in ("data", "seeds"):
        if getattr(options, key) is not None:
            table[key] = getattr(options, key)
    if options.inception_weights is not None:
        table["evaluation"] = {**table.get("evaluation", {}), **_inception(options.inception_weights)}
    if options.latent_size is not None:
        _set_latent_size(table, options.latent_size)
    rows = options.models.split(",") if options.models else None
    suite = build_suite(name, table, rows)
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads: expected at least 1, got {options.threads}")
    device = choose_device(options.device)
    return with_overrides(suite, device=str(device), threads=options.threads, training=_length(options))


def _set_latent_size(table: dict[str, Any], size: int) -> None:
    """Set `latent_size` in every row whose model has that field; say which rows have none."""
    without = []
    for row, fields in table.get("models", {}).items():
        entry = MODELS.get(fields.get("name", row))
        if entry is not None and "latent_size" in {f.name for f in dataclasses.fields(entry.config)}:
            fields["latent_size"] = size
        else:
            without.append(row)
    if without:
        print(f"--latent-size leaves {', '.join(without)} as they are (see latent_channels)", file=sys.stderr)


def _inception(weights: str) -> dict[str, str]:
    """Evaluation fields set by --inception-weights; the weights are checked before anything runs."""
    open_extractor("inception", weights)
    return {"extractor": "inception", "extractor_weights": weights}


def _length(options: argparse.Namespace) -> dict[str, Any]:
    """Training fields set by --epochs and --budget."""
    if options.epochs is not None and options.budget is not None:
        raise UserError("--epochs and --budget both set the training length; give one of them")
    if options.epochs is not None:
        if options.epochs <= 0:
            raise UserError(f"--epochs: expected a value > 0, got {options.epochs:g}")
        return {"epochs": options.epochs, "seconds": None}
    if options.budget is None:
        return {}
    key, _, text = options.budget.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if key not in ("seconds", "images") or not value > 0 or math.isinf(value):
        raise UserError(f"--budget: expected seconds=N or images=N with N > 0, got '{options.budget}'")
    if key == "seconds":
        return {"seconds": value}
    return {"images": int(value), "epochs": None, "seconds": None}


def run(options: argparse.Namespace) -> int:
    """Train, score and report a suite; the table is the last thing on stdout."""
    suite = suite_of(options)
    out = Path(options.out or f"results/local/{suite.name}")
    if options.dry_run:
        return _dry_run(plan(suite, out), options.json)
    prepare_folder(out)
    signal.signal(signal.SIGTERM, _interrupt)
    planned = plan(suite, out)
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: expected at least 1, got {options.jobs}")
    outcome = execute(planned, options.jobs or default_jobs(suite))
    _print_result(out, options.json)
    return _exit_code(outcome)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _print_result(out: Path, as_json: bool) -> None:
    if not load_records(out):
        return
    text = build_report(out, PUBLISHED if PUBLISHED.exists() else None)
    if as_json:
        text = json.dumps([dataclasses.asdict(record) for record in load_records(out)], indent=1)
    print(text)


def _exit_code(outcome: Outcome) -> int:
    for line in outcome.failed:
        print(f"error: {line}", file=sys.stderr)
    if outcome.interrupted:
        print("interrupted: what is done is in the table; the same command continues", file=sys.stderr)
        return INTERRUPTED
    if outcome.failed:
        return 2 if outcome.user_error else 1
    return 0


def _dry_run(planned: Plan, as_json: bool) -> int:
    rows = describe(planned)
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    total = 0.0
    print(f"{planned.suite.title}: {planned.data.name}, {len(planned.data.train):,} training images, out {planned.out}")
    for row in rows:
        seconds = float(str(row["estimated_training_seconds"]))
        total += seconds
        print(
            f"  {row['row']:14} seed {row['seed']}  {row['parameters']:>11,} parameters  {row['latents']:>7,} latents  "
            f"{int(str(row['macs_per_image'])) / 1e6:8.1f} M MACs/image  about {seconds:6.0f} s training  {row['status']}"
        )
    jobs = default_jobs(planned.suite)
    print(f"about {total / jobs:.0f} s of training with {jobs} cells at a time; evaluation and throughput come on top")
    return 0


def cell(options: argparse.Namespace) -> int:
    """Run one cell (started by `run`)."""
    record = run_cell(Path(options.folder))
    return INTERRUPTED if record.status == "interrupted" else 0


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
    loaded = _load(options.checkpoint, options.device)
    torch.set_num_threads(options.threads or loaded.cell.threads)
    data = load(options.data or loaded.cell.data)
    if data.image != loaded.model.image:
        raise UserError(f"--data {data.name}: the model was built for {loaded.model.image}, the images are {data.image}")
    table: dict[str, Any] = {"evaluation": dataclasses.asdict(loaded.cell.evaluation)}
    if options.inception_weights is not None:
        table["evaluation"] |= _inception(options.inception_weights)
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
        raise UserError(f"{options.checkpoint}: a {loaded.cell.model} has no prior to sample from; choose another model")
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
    import io

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


def report(options: argparse.Namespace) -> int:
    """Rebuild the report of a run from its records."""
    out = Path(options.out)
    if not out.is_dir() or not load_records(out):
        raise UserError(f"{out}: expected the folder of a run with records, found none; run a suite first")
    print(build_report(out, PUBLISHED if PUBLISHED.exists() else None))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the difference of two rows of a run."""
    print(comparing.compare(Path(options.out), options.a, options.b))
    return 0


def listing(options: argparse.Namespace) -> int:
    """Print what there is of one kind, a line each."""
    tables: dict[str, Callable[[], dict[str, str]]] = {
        "models": lambda: {name: entry.description for name, entry in MODELS.items()},
        "datasets": lambda: {name: source.description for name, source in DATA_SETS.items()},
        "metrics": lambda: evaluating.METRICS,
        "suites": lambda: {name: read_suite(name)[1].get("title", "") for name in suite_names()},
    }
    table = tables[options.what]()
    if options.json:
        print(json.dumps(table, indent=1))
        return 0
    width = max(map(len, table))
    for name, text in table.items():
        print(f"{name:{width}}  {text}")
    return 0


def env(options: argparse.Namespace) -> int:
    """Print the environment as JSON."""
    environment = collect(choose_device(options.device), torch.get_num_threads(), "float32")
    print(json.dumps(dataclasses.asdict(environment), indent=1))
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run,
    "cell": cell,
    "throughput": throughput,
    "evaluate": evaluate,
    "sample": sample,
    "report": report,
    "compare": compare,
    "list": listing,
    "env": env,
}
