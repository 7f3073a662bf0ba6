"""The verbs that score or rewrite a trained model: `evaluate`, `convert`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.base.checked.typed import parse
from benchmarks.base.errors import UserError
from benchmarks.data import load
from benchmarks.data.arrays import FileImages, npz_images
from benchmarks.evaluation import per_image
from benchmarks.evaluation.checks import missing_for_evaluation
from benchmarks.machine.environment import choose_device
from benchmarks.metrics.extractors import open_extractor
from benchmarks.records.record import Measurement
from benchmarks.storage.tensors import WEIGHTS
from benchmarks.storage.weights import LoadedModel, load_model, read_config, save_weights, trained_folder, write_config
from benchmarks.suites.config import EvaluationConfig, TrialConfig, build_suite, set_path
from benchmarks.training.cost import parameter_count
from models.likelihoods import LIKELIHOODS
from models.registry import MODELS

if TYPE_CHECKING:
    from benchmarks.evaluation.evaluate import Evaluation

FILE = "npz:"
ONE_BY_ONE = ("batch_size", "images")
"""Evaluation settings that the likelihood of single images heeds."""


def inception_fields(weights: str) -> dict[str, str]:
    """Evaluation fields set by --inception-weights; the weights are checked before anything runs."""
    open_extractor("inception", weights)
    return {"extractor": "inception", "extractor_weights": weights}


def say_what_was_read(name: str, note: str) -> None:
    """Print the note of a user's own data on stderr: how its files were read and cut."""
    if ":" in name:
        print(f"{name}: {note}", file=sys.stderr)


def load_checkpoint(options: argparse.Namespace, device: str | None) -> LoadedModel:
    """The model of a run folder, a weights file or a published checkpoint, on the device asked for."""
    path = trained_folder(Path(options.checkpoint))
    name = device or (read_config(path).device if path.is_dir() else "auto")
    return load_model(path, choose_device(name), hparams_of(options))


def hparams_of(options: argparse.Namespace) -> Path | None:
    """The file of `--hparams`, if it was given."""
    return None if options.hparams is None else Path(options.hparams)


def trained_on(trial: TrialConfig, checkpoint: str) -> str:
    """The data set that a model was trained on.

    Raises:
        UserError: a checkpoint that does not say.
    """
    if not trial.data:
        raise UserError(f"{checkpoint}: it does not say what it was trained on; give --data")
    return trial.data


def chosen_images(name: str, split: str | None, *, binary: bool) -> tuple[FileImages, str]:
    """Images of a split of a data set (default: test) and the split's name; without one, all of an array file and "".

    With `binary`, binary pixels of a file are taken as they are.
    """
    if split is None and _is_file(name):
        return npz_images(Path(name.removeprefix(FILE)), binary=binary), ""
    data, split = load(name), split or "test"
    return FileImages(getattr(data, split), data.note), split


def _print_measurements(rows: list[Measurement], as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        spread = f"  [{row.low:.4g}, {row.high:.4g}] {row.spread_kind}" if row.low is not None else ""
        value = f"{row.value:.5g} {row.unit}" if row.value is not None else f"- ({row.note})"
        print(f"{row.metric:24} {value}{spread}" + (f"  n = {row.n}" if row.n else ""))


def evaluate(options: argparse.Namespace) -> int:
    """Score a checkpoint on the test split of its data set, or of another; on a file; or score given samples."""
    if options.samples is not None:
        _print_measurements(_score_samples(options), options.json)
        return 0
    if options.checkpoint is None:
        raise UserError("evaluate: expected a checkpoint, or --samples DIR of images to score")
    loaded = load_checkpoint(options, options.device)
    torch.set_num_threads(options.threads or loaded.trial.threads)
    settings = _evaluation_settings(loaded.trial, options)
    name = options.data or trained_on(loaded.trial, options.checkpoint)
    loaded = dataclasses.replace(loaded, trial=dataclasses.replace(loaded.trial, data=name, evaluation=settings))
    if options.original_rules:
        loaded = per_image.with_published_rules(loaded)
    one_by_one = _is_file(options.data) or options.posterior_mean or options.per_image is not None
    if one_by_one:
        _require_heeded(options.set)
    if one_by_one:
        _print_measurements(_score_images(loaded, options), options.json)
        return 0
    found = _score_test_split(loaded)
    _print_measurements(found.measurements, options.json)
    for failure in found.failures:
        print(f"error: evaluation failed: {failure}", file=sys.stderr)
    return 1 if found.failures else 0


def _require_heeded(assignments: Sequence[str]) -> None:
    """Raise UserError where a setting plays no part in the likelihood of single images."""
    for assignment in assignments:
        key = assignment.removeprefix("evaluation.").partition("=")[0].strip()
        if key not in ONE_BY_ONE:
            raise UserError(
                f"--set {assignment} changes nothing in the likelihood of single images, which heeds "
                f"{' and '.join(ONE_BY_ONE)}; leave it out"
            )


def _is_file(data: str | None) -> bool:
    """Whether all images of a file were asked for, in place of the test split of a data set."""
    return data is not None and data.startswith(FILE)


def _evaluation_settings(trial: TrialConfig, options: argparse.Namespace) -> EvaluationConfig:
    """The trial's evaluation settings under `evaluate`'s options."""
    table: dict[str, Any] = {"evaluation": dataclasses.asdict(trial.evaluation)}
    if options.inception_weights is not None:
        table["evaluation"] |= inception_fields(options.inception_weights)
    if options.batch_size is not None:
        table["evaluation"]["batch_size"] = options.batch_size
    for assignment in options.set:
        set_path(table, f"evaluation.{assignment.removeprefix('evaluation.')}")
    return parse(EvaluationConfig, table["evaluation"], "evaluation")


def _score_test_split(loaded: LoadedModel) -> Evaluation:
    """All metrics on the test split of the trial's data set."""
    from benchmarks.evaluation import evaluate as evaluating

    data = load(loaded.trial.data)
    if data.image != loaded.model.image:
        raise UserError(
            f"--data {data.name}: the model was built for {loaded.model.image}, the images are {data.image}"
        )
    for line in missing_for_evaluation([loaded.trial], data):
        raise UserError(line)
    say_what_was_read(data.name, data.note)
    return evaluating.evaluate(loaded.model, loaded.trial, data, lambda done, total, phase: None)


def _score_samples(options: argparse.Namespace) -> list[Measurement]:
    """Sample quality of given images, under the settings of a checkpoint where there is one."""
    from benchmarks.evaluation.given import given_samples, score_samples

    _refuse_beside_samples(options)
    trial = _trial_of_samples(options)
    settings, device = _evaluation_settings(trial, options), str(choose_device(options.device))
    trial = dataclasses.replace(trial, evaluation=settings, device=device)
    torch.set_num_threads(options.threads or trial.threads)
    given, data = given_samples(Path(options.samples)), load(trial.data)
    say_what_was_read(data.name, data.note)
    return score_samples(given, trial, data, lambda note: print(f"{options.samples}: {note}", file=sys.stderr))


def _refuse_beside_samples(options: argparse.Namespace) -> None:
    """Raise UserError for what says nothing about given samples."""
    asked = {
        "--posterior-mean": options.posterior_mean,
        "--original-rules": options.original_rules,
        "--per-image": options.per_image,
        "--batch-size": options.batch_size,
        "--data npz:FILE": _is_file(options.data),
    }
    for flag, given in asked.items():
        if given:
            raise UserError(f"{flag} plays no part beside --samples, whose images need no model; leave it out")


def _trial_of_samples(options: argparse.Namespace) -> TrialConfig:
    """The trial that given samples are compared with images for: the checkpoint's, or that of defaults on --data."""
    if options.checkpoint is not None:
        trial = load_checkpoint(options, "cpu").trial
        return dataclasses.replace(trial, data=options.data or trained_on(trial, options.checkpoint))
    if options.data is None:
        raise UserError("--samples: expected a checkpoint, or --data NAME of the images to compare with")
    model, likelihood = next(iter(MODELS)), next(iter(LIKELIHOODS))  # of 8 bits; nothing else of them is heeded
    table = {"data": options.data, "likelihood": {"name": likelihood}, "models": {model: {}}}
    return build_suite("samples", table).trials[0]


def _score_images(loaded: LoadedModel, options: argparse.Namespace) -> list[Measurement]:
    """The likelihood of all images of a file, or of the test split of a data set, one by one."""
    if options.inception_weights is not None:
        raise UserError("--inception-weights: expected a data set's test split; the likelihood of images needs none")
    name = loaded.trial.data
    whole_file = _is_file(options.data)
    found, _ = chosen_images(name, None if whole_file else "test", binary=loaded.trial.binary)
    images = found.images if whole_file else found.images[: loaded.trial.evaluation.images or None]
    padded = per_image.padded_input(images, loaded)
    scores = per_image.score_images(loaded, padded, at_mean=options.posterior_mean)
    if options.per_image is not None:
        per_image.write_scores(scores, Path(options.per_image))
    say_what_was_read(name, found.note)
    return per_image.summary(scores, loaded.trial, loaded.model.image.dims)


def convert(options: argparse.Namespace) -> int:
    """Write a checkpoint in this suite's own format, which all verbs read."""
    loaded = load_checkpoint(options, "cpu")
    out = Path(options.out)
    path = out if out.suffix == ".safetensors" else out / WEIGHTS
    save_weights(loaded.model, loaded.trial, loaded.data_hash, path)
    if path != out:
        write_config(loaded.trial, out)
    print(f"{parameter_count(loaded.model):,} parameters in {path}", file=sys.stderr)
    return 0
