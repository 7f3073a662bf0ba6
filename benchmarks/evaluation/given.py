"""Sample quality of given images: those of another model, or of jobs that drew them in parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.base.errors import UserError
from benchmarks.data import DataSet, cache_folder
from benchmarks.data.arrays import FileImages, npz_images
from benchmarks.data.files import folder_images
from benchmarks.evaluation.evaluate import at_depth, reference_images
from benchmarks.evaluation.picture_files import MADE_OF, read_made_of
from benchmarks.records.catalogue import NO_EXTRACTOR
from benchmarks.records.record import Measurement
from benchmarks.suites.config import TrialConfig
from models.output import ImageShape


def given_samples(path: Path) -> FileImages:
    """The images of an .npz or .npy file, or of all image files below a folder, in the order of their names.

    Raises:
        UserError: no such images, or parts of them are missing in the folder.
    """
    if not path.is_dir():
        return npz_images(path)
    found = folder_images(path)
    try:
        expected = json.loads(read_made_of(path) or "{}").get("n", len(found.images))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path / MADE_OF}: expected what `sample --shard` writes; remove it or draw again") from error
    if len(found.images) != expected:
        raise UserError(
            f"--samples {path}: expected the {expected:,} images that {MADE_OF} speaks of, found "
            f"{len(found.images):,}; draw the parts that are missing (sample --shard i/N)"
        )
    return found


def score_samples(
    given: FileImages, trial: TrialConfig, data: DataSet, say: Callable[[str], None]
) -> list[Measurement]:
    """FID, KID, precision, recall and inception score of given images, with the floor of the FID.

    They are compared with what the trial's own samples are compared with; `say` is told how they were read.

    Raises:
        UserError: images of another shape than the data's, too few, or no extractor for them.
    """
    name = trial.evaluation.extractor or data.extractor
    if not name:
        raise UserError(f"--samples: expected a data set with an extractor, got {data.name}: {NO_EXTRACTOR}")
    image = ImageShape(*given.images.shape[1:])
    if image != data.image:
        raise UserError(f"--samples: expected images as those of {data.name}, {data.image}, got {image}")
    # they import torchvision: seconds
    from benchmarks.metrics.extractors import open_extractor
    from benchmarks.metrics.sample_quality import fid_floor, sample_metrics

    extractor = open_extractor(name, trial.evaluation.extractor_weights or None, trial.device)
    say(given.note)
    cache, split = cache_folder("features"), trial.evaluation.reference_split
    originals = at_depth(data.test[: trial.evaluation.images or None], trial.bits)
    reference = reference_images(trial, data, originals)
    others = at_depth(data.train, trial.bits) if split == "test" else originals
    samples = given.images.clone(memory_format=torch.contiguous_format)  # rounding depends on how they lie in memory
    found = sample_metrics(samples, reference, extractor, cache, split)
    return [*found, fid_floor(others, reference, extractor, cache, reference_split=split)]
