"""Glyphs of the fonts that matplotlib ships, split so that no letter is in two splits."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from benchmarks.data.dataset import Part, Request, Splits, made_once
from benchmarks.data.embedded import package_file
from benchmarks.data.order import hash_order
from benchmarks.data.outlines import draw, read_outlines

GLYPH_SIZE = 28
EM = 24  # pixels an em: a capital is about 17 pixels high
LONGEST = 24  # pixels of a box's longer side; what is larger is drawn smaller
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
"""Files of matplotlib's `mpl-data/fonts/ttf`; a glyph's class label is the index of its face here."""

UNICODE = unicodedata.ucd_3_2_0
"""The one version of the Unicode tables that every Python has and none will change."""

DRAWN = "LNPS"  # letters, numbers, punctuation, symbols: initials of Unicode categories
SHARES = {"test": 0.12, "validation": 0.08}  # of the letters that may be held out
LARGEST_HELD_OUT = 300  # glyphs of one letter
GLYPHS_HASH = "e6fa94b8bddfd49ce8b02bdb3f8edb2a55d6c19fc18d01227cf4d6a64eb913c5"
GLYPHS_NOTE = (
    f"letters, numbers, punctuation and symbols of Unicode 3.2 in {len(FACES)} faces (DejaVu, STIX) of matplotlib's, "
    f"unhinted at {EM} pixels an em, centred by their box; split by letter: case, accents, compatibility forms and "
    f"equal pixels make no other letter, those of over {LARGEST_HELD_OUT} glyphs are for training; no images are equal"
)
ADVICE = (
    "matplotlib's fonts or fontTools' reading of them have changed: install matplotlib and fonttools of other versions"
)


def read_glyphs(request: Request) -> Splits:
    """Grey 28x28 glyphs; class labels are the 16 faces; 12 % of the letters are for testing, 8 % for validation."""
    parts = made_once("glyphs-28", GLYPHS_HASH, _make, ADVICE)
    return Splits(parts["train"], parts["validation"], parts["test"], GLYPHS_NOTE)


def drawn_code_points() -> set[int]:
    """All code points whose Unicode 3.2 category is one of `DRAWN`."""
    return {code for code in range(0x110000) if UNICODE.category(chr(code))[0] in DRAWN}


def base_letter(code_point: int) -> int:
    """The letter without accents, case and compatibility: A of a, A, ａ, Ä and ①'s 1; the code point itself if none."""
    spelled = UNICODE.normalize("NFKD", chr(code_point))
    base = next((c for c in spelled if UNICODE.category(c)[0] not in "MZ"), spelled[0])
    upper = base.upper()
    known = len(upper) == 1 and UNICODE.category(upper) != "Cn"  # pairs of case younger than those tables are none
    return ord(upper if known else base)


def split_of_letters(sizes: Mapping[int, int]) -> dict[int, str]:
    """The split of each letter, given its number of glyphs: shares of the letters, in the order of a hash.

    A letter of more than `LARGEST_HELD_OUT` glyphs is for training: a few of them would be most of a test split.
    """
    small = sorted(letter for letter, glyphs in sizes.items() if glyphs <= LARGEST_HELD_OUT)
    order = [small[i] for i in hash_order([f"glyphs-28/{letter}" for letter in small])]
    splits, start = dict.fromkeys(sizes, "train"), 0
    for split, share in SHARES.items():
        stop = start + round(share * len(order))
        splits |= dict.fromkeys(order[start:stop], split)
        start = stop
    return splits


def joined(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The smallest member of each number's group, where every pair shares a group."""
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while parent.setdefault(number, number) != number:
            number = parent[number]
        return number

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return {number: root(number) for number in parent}


def _make() -> dict[str, Part]:
    """All distinct glyphs in their splits, each split in the order of a hash."""
    codes, faces, images = _drawn_faces()
    first: dict[bytes, int] = {}  # the first code point of equal images
    kept, pairs = [], [(code, base_letter(code)) for code in set(codes)]
    for i, code in enumerate(codes):
        pixels = images[i].tobytes()
        if pixels not in first:
            kept.append(i)
        pairs.append((code, first.setdefault(pixels, code)))
    groups = joined(pairs)
    splits = split_of_letters(Counter(groups[codes[i]] for i in kept))
    order = [kept[i] for i in hash_order([f"{FACES[faces[i]]}/{codes[i]}" for i in kept])]
    parts = {}
    for split in ("train", "validation", "test"):
        index = [i for i in order if splits[groups[codes[i]]] == split]
        labels = torch.tensor([faces[i] for i in index])
        parts[split] = Part(torch.from_numpy(images[index]).unsqueeze(1), labels)
    return parts


def _drawn_faces() -> tuple[list[int], list[int], np.ndarray]:
    """Code point, index of the face, and image (28, 28) of every glyph of every face."""
    wanted, codes, faces, images = drawn_code_points(), [], [], []
    for face, name in enumerate(FACES):
        outlines = read_outlines(package_file("matplotlib", f"mpl-data/fonts/ttf/{name}.ttf"), wanted)
        codes += outlines.code_points.tolist()
        faces += [face] * len(outlines.code_points)
        images.append(draw(outlines, GLYPH_SIZE, EM, LONGEST))
    return codes, faces, np.concatenate(images)
