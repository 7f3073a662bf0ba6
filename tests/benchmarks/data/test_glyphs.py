import numpy as np
import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.data import glyphs, load, load_labels, outlines
from benchmarks.data.dataset import Part, made_once, parts_hash
from benchmarks.data.embedded import package_file
from benchmarks.data.glyphs import FACES, base_letter, drawn_code_points, joined, split_of_letters
from benchmarks.data.outlines import SCANLINES, Outlines, draw, read_outlines

SIZES = {"train": 28573, "validation": 1483, "test": 2291}
ALL, ITALIC = "e6fa94b8bddfd49c", "8cabd2e555f22023"
"""Of the images of all faces, and of those of STIXGeneralItalic alone, on every machine."""
LEVEL = 255 / SCANLINES  # an edge along a row may lie anywhere between two scanlines


@pytest.fixture(scope="module")
def drawn():
    """The data set, as an earlier run has kept it if one did: of the same hash as when it was drawn."""
    return load("glyphs-28")


@pytest.mark.slow
def test_all_glyphs_are_drawn_as_everywhere(drawn, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load("glyphs-28").content_hash == drawn.content_hash


def test_no_two_glyphs_are_equal_in_any_split(drawn):
    images = torch.cat([drawn.train, drawn.validation, drawn.test])
    assert len({image.numpy().tobytes() for image in images}) == len(images) == sum(SIZES.values())


def test_no_glyph_is_blank_or_touches_the_border(drawn):
    images = torch.cat([drawn.train, drawn.validation, drawn.test])
    assert images.amax(dim=(1, 2, 3)).min() > 64
    edge = torch.ones(28, 28, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    assert images[:, 0, edge].max() == 0


def test_glyphs_stand_in_the_middle(drawn):
    for axis in (2, 3):
        ink = (drawn.test.amax(dim=5 - axis) > 0).squeeze(1).int()  # rows or columns that hold any
        before, after = ink.argmax(dim=1), ink.flip(1).argmax(dim=1)
        assert (before - after).abs().max() <= 1


def test_labels_are_the_faces(drawn):
    labels = load_labels("glyphs-28")
    assert labels.train.unique().tolist() == labels.test.unique().tolist() == list(range(len(FACES)))
    ink = drawn.train.float().mean(dim=(1, 2, 3))
    regular, bold = (labels.train == FACES.index(name) for name in ("DejaVuSerif", "DejaVuSerif-Bold"))
    assert ink[bold].mean() > 1.2 * ink[regular].mean()


def test_no_letter_is_in_two_splits(drawn):
    """Of the faces' own drawings: every form of a letter that is in a held-out split is in that split alone."""
    place = {image.numpy().tobytes(): name for name in SIZES for image in getattr(drawn, name)}
    splits: dict[int, set[str]] = {}
    for name in ("DejaVuSans", "STIXGeneral"):
        found = read_outlines(package_file("matplotlib", f"mpl-data/fonts/ttf/{name}.ttf"), drawn_code_points())
        for code, image in zip(found.code_points.tolist(), draw(found, 28, 24, 24), strict=True):
            splits.setdefault(base_letter(code), set()).add(place[image.tobytes()])
    assert {name for found in splits.values() for name in found} == set(SIZES)
    assert [chr(letter) for letter, found in splits.items() if len(found) > 1] == []


@pytest.mark.parametrize(
    ("form", "letter"),
    [("a", "A"), ("ä", "A"), ("ａ", "A"), ("ª", "A"), ("①", "1"), ("ß", "ß"), ("∮", "∮"), ("я", "Я")],
)
def test_a_letter_is_what_case_accents_and_compatibility_leave(form, letter):
    assert chr(base_letter(ord(form))) == letter


def test_pairs_join_into_groups_named_by_their_smallest():
    assert joined([(3, 5), (5, 9), (9, 1), (7, 7)]) == {1: 1, 3: 1, 5: 1, 9: 1, 7: 7}


def test_letters_of_many_glyphs_are_for_training():
    sizes = dict.fromkeys(range(100), 3) | {100: 301, 101: 300}
    splits = split_of_letters(sizes)
    assert splits[100] == "train"
    counts = [list(splits.values()).count(name) for name in ("test", "validation")]
    assert counts == [12, 8]
    assert split_of_letters(dict(reversed(sizes.items()))) == splits


def polygon(*corners):
    """A closed outline of one glyph."""
    points = np.array(corners, dtype=np.float64)
    return Outlines(np.array([65]), np.zeros(len(points), dtype=np.int64), points, np.roll(points, -1, axis=0))


def test_coverage_is_the_area_inside():
    (square,) = draw(polygon((0, 0), (1, 0), (1, 1), (0, 1)), 8, em=3, longest=8)
    assert square[3:5, 3:5].tolist() == [[255, 255], [255, 255]]  # 2.5 to 5.5 pixels in either direction
    assert square[2, 3:5].tolist() == square[3:5, 2].tolist() == [128, 128]
    assert int(square.sum()) == pytest.approx(9 * 255, abs=8 * LEVEL)
    (triangle,) = draw(polygon((0, 0), (1, 0), (0, 1)), 8, em=6, longest=8)
    assert int(triangle.sum()) == pytest.approx(18 * 255, rel=0.01)
    assert triangle[1:7, 1].min() >= 127 > triangle[1, 2]  # upright: its right angle is at the lower left
    assert triangle[6, 1:6].min() == 255


def test_neither_direction_nor_overlap_changes_the_inside():
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    once, back = (draw(polygon(*order), 8, em=3, longest=8) for order in (corners, corners[::-1]))
    twice = draw(polygon(*corners, *corners), 8, em=3, longest=8)
    assert np.array_equal(once, back)
    assert np.array_equal(once == 0, twice == 0)
    assert np.array_equal(once[once == 255], twice[once == 255])  # only the edge grows: of two windings, two halves
    hole = [(0.4, 0.4), (0.4, 0.6), (0.6, 0.6), (0.6, 0.4)]
    outer, inner = polygon(*corners), polygon(*hole)
    ring = Outlines(
        outer.code_points,
        np.zeros(8, dtype=np.int64),
        np.concatenate([outer.start, inner.start]),
        np.concatenate([outer.end, inner.end]),
    )
    (drawn_ring,) = draw(ring, 12, em=10, longest=10)
    assert drawn_ring[5:7, 5:7].max() == 0
    assert drawn_ring[2, 2:10].min() == 255


def test_what_is_too_large_is_drawn_smaller():
    (wide,) = draw(polygon((0, 0), (4, 0), (4, 1), (0, 1)), 8, em=6, longest=6)
    assert np.flatnonzero(wide.max(axis=0)).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_file_that_is_no_font_is_one_line(tmp_path):
    path = tmp_path / "font.ttf"
    path.write_bytes(b"no font at all")
    with pytest.raises(UserError, match=r"font\.ttf: expected a TrueType font") as error:
        read_outlines(path, {65})
    assert "\n" not in str(error.value)


def test_missing_fonts_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyphs, "FACES", ("NoSuchFace",))
    with pytest.raises(UserError, match=r"NoSuchFace\.ttf of the package 'matplotlib'"):
        load("glyphs-28")


def test_a_face_is_drawn_as_everywhere_and_is_not_taken_or_kept_for_all_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyphs, "FACES", ("STIXGeneralItalic",))
    with pytest.raises(UserError, match=f"glyphs-28': expected images of hash {ALL}, made {ITALIC};") as error:
        load("glyphs-28")
    assert "\n" not in str(error.value)
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Three small splits, and the cache folder that they may be kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = torch.arange(60, dtype=torch.uint8).reshape(15, 1, 2, 2)
    parts = {"train": Part(images[:9]), "validation": Part(images[9:12]), "test": Part(images[12:])}
    return {name: Part(part.images, torch.arange(len(part.images))) for name, part in parts.items()}, tmp_path


@pytest.mark.parametrize("damage", [None, "flip", "truncate"])
def test_what_was_made_is_read_again_unless_it_is_damaged(few, damage):
    parts, folder = few
    made = []
    make = lambda: made.append(1) or parts  # noqa: E731
    made_once("few", parts_hash(parts), make, "do nothing")
    (path,) = folder.rglob("*.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= damage == "flip"
    path.write_bytes(raw[:-9] if damage == "truncate" else raw)
    again = made_once("few", parts_hash(parts), make, "do nothing")
    assert len(made) == (1 if damage is None else 2)
    assert all(torch.equal(again[name].images, part.images) for name, part in parts.items())
    assert all(torch.equal(again[name].labels, part.labels) for name, part in parts.items())


def test_a_cache_that_cannot_be_written_stops_nobody(few, monkeypatch):
    parts, folder = few
    (folder / "vaebench").write_text("a file where the folder should be")
    assert made_once("few", parts_hash(parts), lambda: parts, "do nothing") is parts


def test_the_hash_of_parts_sees_images_and_labels(few):
    parts, _ = few
    other = parts | {"test": Part(parts["test"].images, parts["test"].labels + 1)}
    assert len({parts_hash(parts), parts_hash(other), parts_hash(parts | {"test": parts["train"]})}) == 3


def test_curves_are_close_to_their_pieces():
    """Four parabolas around a square of area 2, each of which adds the 1/3 between its chord and itself."""
    points = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    start, end = outlines._pieces(points, [7], [1, 0] * 4)
    assert len(start) == 4 * outlines.CURVE_PIECES
    implied, _ = outlines._pieces(points[1::2], [3], [0] * 4)  # points on the curve may be left out
    assert {tuple(p) for p in implied} == {tuple(p) for p in start}
    area = abs((start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]).sum()) / 2
    assert area == pytest.approx(10 / 3, rel=0.01)  # 2 + 4 / 3
