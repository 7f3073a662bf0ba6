"""Folders of images as other people have them: read right, or refused in one line that says what to do."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.base.errors import UserError
from benchmarks.data import load
from benchmarks.data.decoding import decode

RAMP = (np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32)
RAMP_LEVELS = np.rint(RAMP / 257).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
ALPHA = np.array([[0, 128, 255, 255, 255, 255]] * 4, dtype=np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(pixels):
    """A PNG of 16 bits a channel, which Pillow cannot write: (H, W, C), C from 1 (grey) to 4 (colour with alpha)."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_of_2_bits():
    """Grey of 2 bits, levels 0 to 3 in one byte."""
    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes([0, 0b00_01_10_11])))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


def tiff(values, bits, photometric=1, sample_format=1, order="<"):
    """An uncompressed grey TIFF (H, W) of any type, with the tags that Pillow does not write."""
    data = values if isinstance(values, bytes) else values.tobytes()
    height, width = (32, 32) if isinstance(values, bytes) else values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(data)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def packed_12(values):
    """Pairs of 12-bit values in three bytes."""
    first, second = values.reshape(-1, 2).astype(np.uint32).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


def on(background, colour=COLOUR, alpha=ALPHA):
    """Composited in floating point, rounded."""
    share = alpha[..., None] / 255
    return np.floor(colour * share + background * (1 - share) + 0.5).astype(np.uint8)


def palette_image(colours, transparent=None):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % len(colours), "P")
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return encoded(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def turned(orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(Image.fromarray(np.repeat(np.repeat(SQUARES, 8, 0), 8, 1)), kind, exif=exif)


SQUARES = np.array([[10, 90], [170, 250], [30, 60]], dtype=np.uint8)
UPRIGHT = {
    2: SQUARES[:, ::-1],
    3: SQUARES[::-1, ::-1],
    4: SQUARES[::-1],
    5: SQUARES.T,
    6: np.rot90(SQUARES, -1),
    7: np.rot90(SQUARES.T, 2),
    8: np.rot90(SQUARES),
}
INDEX = np.arange(24).reshape(4, 6)
REDS = [[200, 0, 0], [0, 100, 0], [0, 0, 50]]
GREYS = [[0, 0, 0], [90, 90, 90], [255, 255, 255]]
SCALED, CUT, LAID = "scaled to 8", "cut to 8", "transparent pixels laid on white"
FIRST = "of several frames, the first taken"


def image(pixels, mode=None):
    return Image.fromarray(pixels, mode)


def deep(*channels):
    return np.stack([channel.astype(np.uint16) * 257 for channel in channels], axis=-1)


def frames(kind, **options):
    more = [image(255 - GREY)] * 2
    return encoded(image(GREY), kind, save_all=True, append_images=more, **options)


CMYK = image(COLOUR).convert("CMYK")
RED_INK = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
NINE = image(COLOUR).quantize(9)
YCBCR = image(COLOUR).convert("YCbCr")
WHITE = [255, 255, 255]
KEYED = np.where((COLOUR[0, 0] == COLOUR).all(-1, keepdims=True), 255, COLOUR)
PLANES = tuple(np.moveaxis(COLOUR, -1, 0))
CMYK_RGB = np.asarray(CMYK.convert("RGB"))
RIGHT = {
    # 16 bits and floating point, by the range of the format
    "16-bit grey PNG": (lambda: png16(RAMP[..., None]), RAMP_LEVELS, SCALED),
    "16-bit grey PNG of Pillow": (lambda: encoded(image(RAMP), "PNG"), RAMP_LEVELS, SCALED),
    "16-bit TIFF, little endian": (lambda: tiff(RAMP, 16), RAMP_LEVELS, SCALED),
    "16-bit TIFF, big endian": (lambda: tiff(RAMP.astype(">u2"), 16, order=">"), RAMP_LEVELS, SCALED),
    "16-bit TIFF, white is zero": (lambda: tiff(65535 - RAMP, 16, photometric=0), RAMP_LEVELS, SCALED),
    "8-bit TIFF, white is zero": (lambda: tiff(255 - RAMP_LEVELS, 8, photometric=0), RAMP_LEVELS, None),
    "12-bit TIFF": (lambda: tiff(packed_12(RAMP >> 4), 12), np.rint((RAMP >> 4) / 4095 * 255), SCALED),
    "16-bit PGM": (lambda: b"P5 32 32 65535\n" + RAMP.astype(">u2").tobytes(), RAMP_LEVELS, SCALED),
    "10-bit PGM": (
        lambda: b"P5 32 32 1023\n" + (RAMP // 64).astype(">u2").tobytes(),
        np.rint(RAMP / 65472 * 255),
        SCALED,
    ),
    "4-bit PGM": (lambda: b"P5 2 1 15\n\x00\x0f", np.array([[0, 255]]), None),
    "float TIFF in 0-1": (lambda: tiff((GREY / 255).astype(np.float32), 32, sample_format=3), GREY, "floating point"),
    "16-bit colour PNG": (lambda: png16(deep(*PLANES)), COLOUR, CUT),
    "16-bit colour PPM": (lambda: b"P6 6 4 65535\n" + deep(*PLANES).astype(">u2").tobytes(), COLOUR, CUT),
    "16-bit grey PNG with alpha": (
        lambda: png16(deep(GREY, ALPHA)),
        on(255, GREY[..., None])[..., 0],
        f"{CUT}.*{LAID}",
    ),
    "16-bit colour PNG with alpha": (lambda: png16(deep(*PLANES, ALPHA)), on(255), f"{CUT}.*{LAID}"),
    # fewer bits
    "1-bit PNG": (lambda: encoded(image(GREY > 99), "PNG"), (GREY > 99) * 255, None),
    "1-bit TIFF": (lambda: encoded(image(GREY > 99), "TIFF"), (GREY > 99) * 255, None),
    "1-bit PBM": (lambda: b"P4 8 1\n\xaa", np.array([[0, 255] * 4]), None),
    "2-bit PNG": (lambda: png_of_2_bits(), np.array([[0, 85, 170, 255]]), None),
    # transparency
    "RGBA": (lambda: encoded(image(np.dstack([COLOUR, ALPHA])), "PNG"), on(255), LAID),
    "RGBA, opaque": (lambda: encoded(image(np.dstack([COLOUR, 0 * ALPHA + 255])), "PNG"), COLOUR, None),
    "RGBA WebP": (lambda: encoded(image(np.dstack([COLOUR, ALPHA])), "WEBP", lossless=True, exact=True), on(255), LAID),
    "LA": (lambda: encoded(image(np.dstack([GREY, ALPHA]), "LA"), "PNG"), on(255, GREY[..., None])[..., 0], LAID),
    "PA": (lambda: encoded(NINE.convert("PA"), "TIFF"), np.asarray(NINE.convert("RGB")), None),
    "L with a transparent level": (
        lambda: encoded(image(GREY), "PNG", transparency=int(GREY[0, 0])),
        np.where(GREY[0, 0] == GREY, 255, GREY),
        LAID,
    ),
    "RGB with a transparent colour": (
        lambda: encoded(image(COLOUR), "PNG", transparency=tuple(map(int, COLOUR[0, 0]))),
        KEYED,
        LAID,
    ),
    "16-bit grey with a transparent level": (
        lambda: encoded(image(RAMP), "PNG", transparency=0),
        np.where(RAMP == 0, 255, RAMP_LEVELS),
        f"{SCALED}.*{LAID}",
    ),
    # palettes
    "palette": (lambda: palette_image(REDS), np.array(REDS)[INDEX % 3], None),
    "palette with a transparent colour": (
        lambda: palette_image(REDS, 1),
        np.array([REDS[0], WHITE, REDS[2]])[INDEX % 3],
        LAID,
    ),
    "palette with translucent colours": (
        lambda: palette_image(REDS, bytes([255, 255, 0])),
        np.array([*REDS[:2], WHITE])[INDEX % 3],
        LAID,
    ),
    "palette of greys": (lambda: palette_image(GREYS), np.array(GREYS)[INDEX % 3, 0], None),
    "palette of greys, one transparent": (lambda: palette_image(GREYS, 0), np.array([255, 90, 255])[INDEX % 3], LAID),
    "GIF": (lambda: encoded(Image.open(io.BytesIO(palette_image(REDS))), "GIF"), np.array(REDS)[INDEX % 3], None),
    # other colour spaces
    "CMYK TIFF": (lambda: encoded(CMYK, "TIFF"), CMYK_RGB, "CMYK"),
    "CMYK JPEG, inverted by Adobe": (lambda: encoded(RED_INK, "JPEG"), np.full((8, 8, 3), (255, 0, 0)), "CMYK"),
    "YCbCr TIFF": (lambda: encoded(YCBCR, "TIFF"), np.asarray(YCBCR.convert("RGB")), None),
    # several frames
    "GIF of three frames": (lambda: frames("GIF"), GREY, FIRST),
    "TIFF of three pages": (lambda: frames("TIFF"), GREY, FIRST),
    "APNG": (lambda: frames("PNG"), GREY, FIRST),
    "WebP of three frames": (lambda: frames("WEBP", lossless=True), np.dstack([GREY] * 3), FIRST),
    "MPO": (lambda: frames("MPO"), np.asarray(Image.open(io.BytesIO(encoded(image(GREY), "JPEG")))), FIRST),
}


def folder_of(path, content, suffix=".png", n=3):
    path.mkdir(exist_ok=True)
    for i in range(n):
        (path / f"{i}{suffix}").write_bytes(content)
    return f"folder:{path}"


def seen(data):
    """What the loader sees of the test image: (H, W) grey or (H, W, 3)."""
    pixels = data.test[0].permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


@pytest.mark.parametrize("kind", RIGHT)
def test_a_kind_of_file_is_read_right_and_what_was_changed_is_said(tmp_path, kind):
    content, expected, said = RIGHT[kind]
    data = load(folder_of(tmp_path, content()))
    if expected is not None:
        assert np.array_equal(seen(data), expected)
    if said is None:
        assert data.note == "3 files, split by hash of file name"
    else:
        assert re.search(said, data.note)
        assert "3 " in data.note


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_stand_upright(tmp_path, orientation, kind):
    data = load(folder_of(tmp_path, turned(orientation, kind)))
    middles = seen(data)[4::8, 4::8]
    middles = middles if middles.ndim == 2 else middles[..., 0]
    assert middles.shape == UPRIGHT[orientation].shape
    assert np.abs(middles.astype(int) - UPRIGHT[orientation]).max() <= 3  # of JPEG's quantisation
    assert "3 turned by EXIF orientation" in data.note


def test_orientation_comes_before_the_sizes_are_compared(tmp_path):
    folder_of(tmp_path, turned(6), ".jpg", n=2)
    (tmp_path / "upright.jpg").write_bytes(encoded(image(np.zeros((16, 24), np.uint8)), "JPEG"))
    data = load(f"folder:{tmp_path}")
    assert (data.image.height, data.image.width) == (16, 24)
    assert "2 turned by EXIF orientation" in data.note


REFUSED = {
    "float TIFF of 0-255": (lambda: tiff(GREY.astype(np.float32), 32, sample_format=3), "0-1, got"),
    "float TIFF with NaN": (lambda: tiff(np.full((2, 2), np.nan, np.float32), 32, sample_format=3), "0-1, got nan"),
    "float TIFF, white is zero": (lambda: tiff(np.zeros((2, 2), np.float32), 32, 0, 3), "zero as white"),
    "PFM of -1 to 1": (lambda: b"Pf\n2 1\n-1.0\n" + np.array([-1, 1], "<f4").tobytes(), "0-1, got -1 to 1"),
    "32-bit integers": (lambda: tiff(RAMP.astype(np.uint32) * 9, 32), "32-bit or signed integers"),
    "signed 32-bit": (lambda: tiff(RAMP.astype(np.int32), 32, sample_format=2), "32-bit or signed integers"),
    "signed 16-bit": (lambda: tiff(RAMP.astype(np.int16), 16, sample_format=2), "32-bit or signed integers"),
    "signed 8-bit": (lambda: tiff(GREY.astype(np.int8), 8, sample_format=2), "expected unsigned levels"),
    "CIELAB": (lambda: encoded(Image.new("LAB", (4, 4)), "TIFF"), "CIELAB; save it as 8-bit grey or RGB"),
    "16-bit with a transparent colour": (
        lambda: (
            png16(deep(GREY, GREY, GREY)).replace(chunk(b"IEND", b""), b"")[:33]
            + chunk(b"tRNS", bytes(6))
            + png16(deep(GREY, GREY, GREY))[33:]
        ),
        "save it as RGBA",
    ),
    "CMYK JPEG without Adobe's marker": (
        lambda: encoded(CMYK, "JPEG").replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xee\x00\x0eOther"),
        "Adobe's marker",
    ),
    "white on transparent": (
        lambda: encoded(image(np.dstack([0 * COLOUR + 255, ALPHA])), "PNG"),
        r"vanishes on a white background; use \?background=black behind the path",
    ),
    "truncated PNG": (lambda: encoded(image(COLOUR), "PNG")[:60], "expected an image file, got"),
    "truncated JPEG": (lambda: turned(1)[:-40], "expected an image file, got"),
    "truncated PPM": (lambda: b"P6 9 9 255\nabc", "expected an image file, got"),
    "truncated TIFF": (lambda: tiff(RAMP, 16)[:90], "expected an image file, got"),
    "truncated GIF": (lambda: frames("GIF")[:40], "expected an image file, got"),
    "truncated WebP": (lambda: encoded(image(COLOUR), "WEBP")[:40], "expected an image file, got"),
    "damaged PNG": (lambda: encoded(image(COLOUR), "PNG").replace(b"IDAT", b"IDAX"), "expected an image file, got"),
    "empty file": (lambda: b"", "expected an image file, got"),
    "a web page": (lambda: b"<!DOCTYPE html><html></html>", "expected an image file, got"),
    "a pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "expected an image file, got"),
    "a bomb": (lambda: b"P6 99999 99999 255\nabc", "expected an image file, got"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_without_a_rule_is_refused_in_one_line_that_names_it(tmp_path, kind):
    content, said = REFUSED[kind]
    name = folder_of(tmp_path, content())
    with pytest.raises(UserError, match=said) as error:
        load(name)
    assert "\n" not in str(error.value)
    assert ".png: " in str(error.value)


@pytest.mark.parametrize("background", ["white", "black"])
def test_the_background_is_the_users(tmp_path, background):
    name = folder_of(tmp_path, encoded(image(np.dstack([COLOUR, ALPHA])), "PNG"))
    data = load(f"{name}?background={background}")
    assert np.array_equal(seen(data), on({"white": 255, "black": 0}[background]))
    assert f"3 with transparent pixels laid on {background}" in data.note


def test_colours_hidden_under_transparent_pixels_never_show(tmp_path):
    hidden = np.dstack([np.full((4, 6, 3), (255, 0, 255), np.uint8), np.zeros((4, 6), np.uint8)])
    assert seen(load(folder_of(tmp_path, encoded(image(hidden), "PNG")))).min() == 255


def test_grey_among_colour_is_repeated_and_counted(tmp_path):
    folder_of(tmp_path, encoded(image(GREY), "PNG"), n=9)
    (tmp_path / "colour.png").write_bytes(encoded(image(COLOUR), "PNG"))
    data = load(f"folder:{tmp_path}")
    pixels = np.concatenate([part.numpy() for part in (data.train, data.validation, data.test)])
    wanted = {np.dstack([GREY] * 3).transpose(2, 0, 1).tobytes(), COLOUR.transpose(2, 0, 1).tobytes()}
    assert {picture.tobytes() for picture in pixels} == wanted
    assert "9 grey images among colour repeated to three channels" in data.note


def test_dark_16_bit_images_are_said_to_be_so(tmp_path):
    data = load(folder_of(tmp_path, encoded(image(RAMP >> 4), "PNG")))
    assert seen(data).max() == 16
    assert "the brightest of these is at 6.24 % of the range" in data.note


# Folders


def numbered(path, names):
    """Grey images, each of a level of its own: the position of its name."""
    for level, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(path / name, "PNG")
    return f"folder:{path}"


def together(data):
    return sorted(level for split in levels(data).values() for level in split)


def levels(data):
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {split: sorted(images[:, 0, 0, 0].tolist()) for split, images in parts.items()}


LAYOUTS = {
    "train, val, test": ("train", "val", "test"),
    "valid": ("train", "valid", "test"),
    "validation": ("train", "validation", "test"),
    "upper case": ("Train", "VAL", "Test"),
    "training, testing": ("training", "valid", "testing"),
    "classes inside": ("train/cat", "val/cat", "test/cat"),
    "classes outside": ("cat/train", "cat/val", "cat/test"),
    "below one folder": ("archive/set/train", "archive/set/val", "archive/set/test"),
    "a class named test": ("train/test", "val/test", "test/train"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_named_as_splits_are_the_splits(tmp_path, layout):
    train, validation, test = LAYOUTS[layout]
    names = [f"{folder}/{i}.png" for folder, n in ((train, 5), (validation, 3), (test, 4)) for i in range(n)]
    data = load(numbered(tmp_path, names))
    assert levels(data) == {"train": [0, 1, 2, 3, 4], "validation": [5, 6, 7], "test": [8, 9, 10, 11]}
    assert data.note == "12 files, splits as the folders say"


@pytest.mark.parametrize(("given", "cut"), [("test", "validation"), ("validation", "test")])
def test_a_split_that_is_missing_is_cut_from_train(tmp_path, given, cut):
    data = load(numbered(tmp_path, [*(f"train/{i}.png" for i in range(30)), *(f"{given}/{i}.png" for i in range(20))]))
    found = levels(data)
    assert found[given] == list(range(30, 50))
    assert len(found[cut]) == 3
    assert sorted(found[cut] + found["train"]) == list(range(30))
    assert f"{cut} cut from train by hash of file name" in data.note


def test_a_class_named_train_is_no_split(tmp_path):
    data = load(numbered(tmp_path, [f"{name}/{i}.png" for name in ("bus", "train") for i in range(5)]))
    assert together(data) == list(range(10))
    assert data.note == "10 files, split by hash of file name"


WRONG_FOLDERS = {
    "no train": (["test/a.png", "val/a.png"], "expected 'train' beside the folders test, val"),
    "images outside": (["train/a.png", "test/a.png", "b.png", "more/c.png"], "but b.png, more/c.png are not"),
    "val and valid": (
        ["train/a.png", "val/a.png", "valid/a.png"],
        "one folder for each split, found train, val, valid",
    ),
    "train too small": (["train/a.png", "test/a.png"], "at least one image for each of train and validation, got 1"),
}


@pytest.mark.parametrize("problem", WRONG_FOLDERS)
def test_doubtful_splits_are_refused(tmp_path, problem):
    names, said = WRONG_FOLDERS[problem]
    with pytest.raises(UserError, match=said):
        load(numbered(tmp_path, names))


def test_a_file_in_two_splits_is_refused(tmp_path):
    name = numbered(tmp_path, [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)])
    (tmp_path / "val").symlink_to("test")
    with pytest.raises(UserError, match="val is test"):
        load(name)
    (tmp_path / "val").unlink()
    (tmp_path / "train" / "again.png").symlink_to("../test/0.png")
    with pytest.raises(UserError, match=r"train/again.png is test/0.png"):
        load(name)


def test_what_is_no_image_is_skipped_and_counted(tmp_path):
    name = numbered(tmp_path, ["a.png", "b/a.PNG", "c/a.JPG", "d/a.Tiff"])
    for other in ("._a.png", ".DS_Store", "b/.hidden/x.png", "__MACOSX/a.png", "Thumbs.db", "notes.txt", "b/README"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"no image")
    data = load(name)
    assert together(data) == [0, 1, 2, 3]
    assert "skipped: 1 .db, 1 .txt, 1 __MACOSX, 3 hidden, 1 without suffix" in data.note


def test_links_are_followed_once(tmp_path):
    numbered(tmp_path / "elsewhere", ["x.png", "y.png"])
    name = numbered(tmp_path / "set", ["a.png", "b/c.png"])
    (tmp_path / "set" / "a_link.png").symlink_to("a.png")
    (tmp_path / "set" / "b" / "loop").symlink_to("..")
    (tmp_path / "set" / "self.png").symlink_to("self.png")
    (tmp_path / "set" / "0_other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "gone.png").symlink_to("nowhere.png")
    data = load(name)
    assert "4 files" in data.note
    assert "2 links that lead nowhere, 2 links to what is there already" in data.note


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    name = numbered(tmp_path, ["a.png", "b.png", "c.png"])
    os.mkfifo(tmp_path / "pipe.png")
    assert "3 files" in load(name).note


def test_a_name_that_is_no_utf8_is_read(tmp_path):
    numbered(tmp_path, ["a.png", "b.png", "c.png"])
    try:
        (tmp_path / "c.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert "3 files" in load(f"folder:{tmp_path}").note


@pytest.mark.parametrize("query", ["size=-1", "size=", "size=²", "size=0", "background=red", "background=", "sise=3"])
def test_wrong_options_are_refused(tmp_path, query):
    with pytest.raises(UserError):
        load(f"{numbered(tmp_path, ['a.png', 'b.png', 'c.png'])}?{query}")


def test_two_sizes_are_named_with_the_way_out(tmp_path):
    numbered(tmp_path, ["a.png", "b.png"])
    Image.new("L", (7, 5)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"is 4x4.*7x5|7x5.*4x4") as error:
        load(f"folder:{tmp_path}")
    assert "resize and crop them with ?size=N behind the path" in str(error.value)


@pytest.mark.parametrize("kind", ["RGBA", "palette with a transparent colour", "16-bit grey PNG", "1-bit PNG", "LA"])
def test_resizing_comes_after_all_else(tmp_path, kind):
    content, expected, _ = RIGHT[kind]
    data = load(folder_of(tmp_path, content()) + "?size=4")
    side = min(expected.shape[:2])
    left = (expected.shape[1] - side) // 2
    square = Image.fromarray(expected[:, left : left + side].astype(np.uint8))
    assert np.array_equal(seen(data), np.asarray(square.resize((4, 4), Image.Resampling.BICUBIC)))


def test_decoding_one_file(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image(GREY), "PNG"))
    assert np.array_equal(decode(tmp_path / "a.png").pixels[..., 0], GREY)
