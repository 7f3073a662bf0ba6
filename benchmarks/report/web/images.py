"""Saved images as the page's template takes them: grids and lines inside the page, with captions and texts for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.report.layout import join_words
from benchmarks.report.pictures.grids import GRID, ORIGINALS, SHOWN, data_uri, reconstruction_lines, tiled
from benchmarks.report.pictures.saved import Images, SavedImages
from benchmarks.report.rows import Row

LARGE = 64
"""Pixels of a side beyond which a grid holds a quarter of the images."""


@dataclass(frozen=True)
class Shot:
    """One picture: its name, the PNG as an address, the text that stands for it, its caption, its width in pixels."""

    label: str
    address: str
    alt: str
    said: str
    width: int


@dataclass(frozen=True)
class Album:
    """Pictures that belong together, with what is said above them, and how they lie on the page.

    `strips` lie below each other, `shots` side by side, `wide` ones as well, with more room, `pairs` two by two.
    """

    title: str
    said: str
    shots: list[Shot]
    kind: Literal["strips", "shots", "wide", "pairs"] = "shots"


def albums(images: Mapping[str, SavedImages], rows: list[Row]) -> list[Album]:
    """Reconstructions, samples, and samples with prior statistics, where there are any."""
    if not images:
        return []
    samples = {label: saved.samples for label, saved in images.items()}
    refitted = {label: saved.samples_prior_statistics for label, saved in images.items()}
    found = [
        _reconstructions(images),
        _samples(
            "Samples",
            "Drawn from the prior, mean of the likelihood; the first ones drawn, none selected.",
            {label: panel for label, panel in samples.items() if panel is not None},
            images,
            rows,
        ),
        _samples(
            "Samples with prior statistics",
            "The same latents, with batch-norm statistics of images from the prior.",
            {label: panel for label, panel in refitted.items() if panel is not None},
            images,
            rows,
        ),
    ]
    return [album for album in found if album.shots]


def _reconstructions(images: Mapping[str, SavedImages]) -> Album:
    """Originals above the reconstructions of every model."""
    shots = []
    for label, line in reconstruction_lines(images):
        same = f"{label}: reconstructions of the same {len(line)} test images, in the same order"
        alt = f"{len(line)} test images" if label == ORIGINALS else same
        shots.append(shot(label, tiled(line, columns=len(line), rows=1), alt))
    first = next(iter(images.values()))
    shown = min(SHOWN, len(first.originals))
    said = (
        f"n = {shown} test images, the first of the {len(first.originals)} that every evaluation draws at random and "
        f"alike for all rows; z at the posterior mean. {_seeds(images)}"
    )
    return Album("Reconstructions", said.strip(), shots, "strips")


def _samples(
    title: str, said: str, panels: Mapping[str, Images], images: Mapping[str, SavedImages], rows: list[Row]
) -> Album:
    """A grid of samples for every model of `panels`, after one of real images."""
    if not panels:
        return Album(title, said, [])
    real = next(iter(images.values())).originals
    shots = [_grid("Real test images", real, "real test images", "")]
    temperatures = {row.label: _temperature(row) for row in rows}
    for label, panel in panels.items():
        more = filter(None, (seed_of(images[label].seed), temperatures[label]))
        shots.append(_grid(label, panel, f"samples of {label}", "; ".join(more)))
    return Album(title, said, shots)


def _grid(label: str, panel: Images, what: str, more: str) -> Shot:
    """As many of the images as a grid shows."""
    side = GRID if max(panel.shape[1:3]) <= LARGE else GRID // 2
    rows = min(side, -(-len(panel) // side))
    shown = min(len(panel), side * side)
    said = "; ".join(filter(None, (f"n = {shown}", more)))
    return shot(label, tiled(panel, columns=side, rows=rows), f"{shown} {what} in {rows} rows", said)


def shot(label: str, picture: Images, alt: str, said: str = "") -> Shot:
    """A picture (h, w, C) inside the page."""
    return Shot(label, data_uri(picture), alt, said, picture.shape[1])


def seed_of(seed: int | None) -> str:
    """Of which seed images are."""
    return "" if seed is None else f"seed {seed}"


def _seeds(images: Mapping[str, SavedImages]) -> str:
    """The seeds of all of them."""
    known = join_words(str(saved.seed) for saved in images.values() if saved.seed is not None)
    return f"Seed {known}." if known else ""


def _temperature(row: Row) -> str:
    """At which temperature the row's samples were drawn, if its configuration says so."""
    evaluation: Any = row.records[0].config.get("evaluation")
    found = evaluation.get("temperature") if isinstance(evaluation, dict) else None
    return "" if found is None else f"temperature {found}"
