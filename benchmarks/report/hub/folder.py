"""The folder of an exported trial, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.base.errors import UserError
from benchmarks.base.files import made_whole, require_new
from benchmarks.records.record import RECORD, RunRecord, load_record
from benchmarks.report.hub.card import CARD, card
from benchmarks.report.pictures.grids import pictures_of, png
from benchmarks.report.pictures.saved import load_images

TITLES = {
    "reconstructions": "Test images, and below them their reconstructions (z at the posterior mean)",
    "samples": "Samples from the prior, not selected",
}


def exported_record(folder: Path) -> RunRecord:
    """The record of a trial that can be exported.

    Raises:
        UserError: there is none, or its training has not come to an end.
    """
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: expected a trial's folder with {RECORD}; run a suite, or name OUT/ROW of a run")
    try:
        record = load_record(folder)
    except ValueError as error:
        raise UserError(f"{error}; repair that file or run the trial again") from error
    if record.status not in ("done", "trained"):
        raise UserError(f"{folder}: expected a finished trial, got one that is {record.status}; run it to its end")
    return record


def write_folder(folder: Path, record: RunRecord, out: Path, license: str, files: Mapping[str, Path]) -> None:
    """Write the trial of `folder` into `out`: `files` by their name there, its record, pictures and card.

    Raises:
        UserError: `out` is not empty, or images that cannot be read.
    """
    require_new(out)
    images = load_images(folder)
    drawn = {} if images is None else pictures_of(images)
    text = card(record, license, {TITLES[name]: f"{name}.png" for name in drawn})
    with made_whole(out) as part:
        for name, path in {**files, RECORD: folder / RECORD}.items():
            shutil.copyfile(path, part / name)
        for name, picture in drawn.items():
            (part / f"{name}.png").write_bytes(png(picture))
        (part / CARD).write_text(text, encoding="utf-8")
