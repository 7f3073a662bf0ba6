"""Galleries as the page's template takes them: what models draw, what lies between images, what each scale holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.records.record import LatentGroupInfo
from benchmarks.report.layout import join_words
from benchmarks.report.pictures.gallery import Gallery, Numbers
from benchmarks.report.pictures.grids import tiled
from benchmarks.report.pictures.saved import Images
from benchmarks.report.rows import Row
from benchmarks.report.web.images import Album, Shot, seed_of, shot

Galleries = Mapping[str, Gallery]


def gallery_albums(galleries: Galleries, rows: Sequence[Row]) -> list[Album]:
    """Samples at several temperatures, interpolations, redrawn scales, nearest training images, where there are any."""
    found = [_temperatures(galleries), _interpolations(galleries), _scales(galleries, rows), _neighbours(galleries)]
    return [album for album in found if album.shots]


def without_gallery(galleries: Galleries, rows: Sequence[Row]) -> str:
    """Which rows with latents have no gallery, and how they get one; "" where all have."""
    lacking = join_words(row.label for row in rows if row.latent_groups and row.label not in galleries)
    if not lacking:
        return ""
    return (
        "Samples at several temperatures, interpolations, what each scale holds and nearest training images are not "
        f"recorded of {lacking}. The same `python -m benchmarks run` into this folder adds them, and nothing else, "
        "where the trials' weights are kept."
    )


def _temperatures(galleries: Galleries) -> Album:
    """Samples with the same noise, a row a temperature."""
    shots = []
    for label, one in _with("at_temperature", galleries):
        grid, values = one.pictures["at_temperature"], one.numbers["temperatures"]
        across, said = grid.shape[1], join_words(f"{value:g}" for value in values)
        alt = f"{across} samples of {label} in a row at each temperature: {said}"
        shots.append(_grid(label, grid, alt, [f"n = {across} a row", f"temperature {said} from top to bottom"], one))
    said = (
        "The temperature is the factor on the scale of every prior. The noise is the same in every row; the first "
        "ones drawn, none selected; mean of the likelihood."
    )
    return Album("Samples at several temperatures", said, shots, "wide")


def _interpolations(galleries: Galleries) -> Album:
    """From one test image to another, a row a pair."""
    shots = []
    for label, one in _with("interpolations", galleries):
        grid = one.pictures["interpolations"]
        pairs, steps = len(grid), grid.shape[1] - 2
        alt = f"{pairs} rows by {label}: a test image, {steps} steps to another one's latents, the other test image"
        shots.append(_grid(label, grid, alt, [f"n = {pairs} pairs of test images", f"{steps} steps"], one))
    said = (
        "In each row a test image, the images of latents on the straight line between its own and another one's "
        "(posterior means, all groups together), and that other test image. The same pairs for all rows."
    )
    return Album("Interpolations", said, shots, "wide")


def _scales(galleries: Galleries, rows: Sequence[Row]) -> Album:
    """Fine groups redrawn under fixed coarse ones, and the reverse."""
    groups = {row.label: row.latent_groups for row in rows}
    shots = []
    for label, one in _with("finer_redrawn", galleries):
        cuts = [int(cut) for cut in one.numbers["cuts"]]
        kept = [_resolutions(groups.get(label, [])[:cut]) or f"the first {cut} groups" for cut in cuts]
        drawn = [_resolutions(groups.get(label, [])[cut:]) or f"the groups after {cut}" for cut in cuts]
        for name, what, fixed in (
            ("finer_redrawn", "finer groups redrawn", kept),
            ("coarser_redrawn", "coarser groups redrawn", drawn),
        ):
            grid = one.pictures[name]
            images, draws = len(grid), grid.shape[2] - 2
            alt = (
                f"{label}: in each row a test image, its reconstruction and {draws} draws with {what}; fixed are "
                f"{'; then '.join(fixed)}"
            )
            where = "fixed" if len(cuts) == 1 else "fixed in the rows of an image"
            said = [f"n = {images} test images", f"{where}: {'; '.join(fixed)}"]
            shots.append(_grid(f"{label}, {what}", grid.reshape(-1, *grid.shape[2:]), alt, said, one))
    said = (
        "In each row a test image, its reconstruction, and draws of some of its latent groups from the prior while the "
        "others stay at their posterior means. Finer groups redrawn: what changes is what the coarse ones leave open. "
        "Coarser groups redrawn: what stays is what the fine ones hold. Groups of one resolution stay together; "
        "models of one resolution are left out."
    )
    return Album("What each scale holds", said, shots, "pairs")


def _neighbours(galleries: Galleries) -> Album:
    """Samples above the training images that are nearest to them."""
    shots = []
    for label, one in _with("samples", galleries):
        pairs = np.stack([one.pictures["samples"], one.pictures["neighbours"]])
        shown, errors, tested = pairs.shape[1], one.numbers["sample_errors"], one.numbers["test_errors"]
        alt = f"Above, {shown} samples of {label}; below each, the training image that is nearest to it"
        said = [
            f"squared error {', '.join(_error(error) for error in errors[:shown])} from left to right",
            f"n = {len(errors)} samples: {_summary(errors)}",
            f"n = {len(tested)} test images: {_summary(tested)}",
        ]
        shots.append(_grid(label, pairs, alt, said, one))
    said = (
        "Above, the first samples drawn, none selected; below each, the image of the whole training split with the "
        "least mean squared error of the pixels (0-1), 0 for a copy. Test images, which no model has seen, are the "
        "yardstick: samples much nearer to training images than they are would be drawn from memory. Smooth and dark "
        "images are near to many others, so that a small error alone proves nothing."
    )
    return Album("Nearest training images of samples", said, shots, "wide")


def _with(name: str, galleries: Galleries) -> Iterator[tuple[str, Gallery]]:
    """The galleries that hold such pictures, with their labels."""
    return ((label, one) for label, one in galleries.items() if name in one.pictures)


def _grid(label: str, rows: Images, alt: str, said: Sequence[str], one: Gallery) -> Shot:
    """Images (R, K, H, W, C) as one picture."""
    picture = tiled(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], rows=len(rows))
    return shot(label, picture, alt, "; ".join(filter(None, (*said, seed_of(one.seed)))))


def _resolutions(groups: Sequence[LatentGroupInfo]) -> str:
    """The resolutions of the groups."""
    return join_words(f"{group.height}x{group.width}" for group in groups)


def _summary(errors: Numbers) -> str:
    """Median and least of the errors."""
    return f"median {_error(float(np.median(errors)))}, least {_error(float(errors.min()))}"


def _error(value: float) -> str:
    """Two significant digits of a squared error."""
    return f"{value:#.2g}"
