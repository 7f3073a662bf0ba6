"""Images and arrays that are broken or meant to harm: one line, no program started, nothing large unpacked."""

import gzip
import io
import os
import pickle
import random
import socket
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.base.checked.strict_json import read_json
from benchmarks.base.errors import UserError
from benchmarks.base.limits import require_memory
from benchmarks.data import load
from benchmarks.data.decoding import FORMATS, decode
from benchmarks.data.public import read_idx

MOST = 20_000_000
"""Bytes that a refusal may take."""
GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
POSIX = pytest.mark.skipif(os.name != "posix", reason="pipes and sockets as POSIX has them")


def refusal(read, *arguments):
    """The one line of a UserError, which came without taking much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read(*arguments)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = str(error.value)
    assert taken < MOST
    assert said.isprintable()
    assert len(said) < 1000
    assert not any(words in said for words in ("allow_pickle", "weights_only", "MAX_TEXT", "Error("))
    return said


def outcome(read, *arguments):
    """What a UserError says, None where there is none; any other error is one of the test."""
    try:
        read(*arguments)
    except UserError as error:
        return str(error)
    return None


def encoded(kind):
    buffer = io.BytesIO()
    GREY.save(buffer, kind)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks, width=8, height=8):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(72))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_chunk(kind, size):
    """A compressed text of so many letters."""
    text = zlib.compress(bytes(size))
    return chunk(kind, b"a" + (b"\0\0" if kind == b"zTXt" else b"\0\1\0\0\0") + text)


def patched(raw, at, value):
    return raw[:at] + value + raw[at + len(value) :]


IMAGES = {
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "no known format"),
    "TGA": (encoded("TGA"), "no known format"),
    "PCX": (encoded("PCX"), "no known format"),
    "ICO": (encoded("ICO"), "no known format"),
    "PDF": (encoded("PDF"), "no known format"),
    "zTXt": (png(text_chunk(b"zTXt", 10**7)), "bytes of text"),
    "iTXt": (png(text_chunk(b"iTXt", 10**7)), "bytes of text"),
    "many texts": (png(*[text_chunk(b"zTXt", 10**6)] * 80), "bytes of text"),
    "a PNG of 10^8 pixels": (png(width=10_000, height=10_000), "more than 89,478,485 pixels"),
    "a PNG of 10^18 pixels": (png(width=2**30, height=2**30), "more than 89,478,485 pixels"),
    "a GIF of 2^32 pixels": (patched(encoded("GIF"), 6, b"\xff\xff\xff\xff"), "more than 89,478,485 pixels"),
    "a BMP of 10^18 pixels": (patched(encoded("BMP"), 18, b"\xff\xff\xff\x3f\xff\xff\xff\x3f"), "89,478,485 pixels"),
    "a PPM of 10^12 pixels": (b"P5 1000000 1000000 255\n", "more than 89,478,485 pixels"),
    "a cut PNG": (encoded("PNG")[:-30], "expected an image file"),
    "a cut JPEG": (encoded("JPEG")[:-60], "runcated"),
    "a cut TIFF": (encoded("TIFF")[:100], "expected an image file"),
    "a cut WebP": (encoded("WEBP")[:-20], "expected an image file"),
    "nothing": (b"", "an empty file"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_is_none_or_too_much_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    content, words = IMAGES[kind]
    path = tmp_path / "0.png"
    path.write_bytes(content)
    said = refusal(decode, path)
    assert str(path) in said
    assert words in said


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_named_is_read_whatever_the_suffix(tmp_path, kind):
    (tmp_path / "0.png").write_bytes(encoded(kind))
    assert decode(tmp_path / "0.png").pixels.shape[:2] == (8, 8)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_give_pixels_or_one_line(tmp_path, kind):
    """Fifty files a format with some bytes changed or cut, by a fixed seed."""
    whole, chance, path = encoded(kind), random.Random(0), tmp_path / "0.png"
    for _ in range(50):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        said = outcome(decode, path)
        assert said is None or (said.isprintable() and str(path) in said)


def special(kind, path):
    """A pipe, a socket or a device at the path."""
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        here = os.open(path.parent, os.O_RDONLY)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


READERS = {
    "image": decode,
    "arrays": lambda path: load(f"npz:{path}"),
}


@POSIX
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, reader, kind, monkeypatch):
    path = tmp_path / "x.npz"
    special(kind, path)
    monkeypatch.setattr("io.open", None)
    assert kind in refusal(READERS[reader], path)


@POSIX
def test_nor_is_a_configuration(tmp_path):
    special("a named pipe", tmp_path / "config.json")
    with pytest.raises(ValueError, match="got a named pipe"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("size", ["99999999", "4097", "9" * 5000, "0", "-1", "1e3", "٣"])
def test_a_size_beyond_reason_is_refused(tmp_path, size):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png())
    assert "expected ?size=N with N of 1 to 4096" in refusal(load, f"folder:{tmp_path}?size={size}")


def test_images_that_do_not_fit_into_memory_are_refused_before_there_is_room(tmp_path, monkeypatch):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png())
    monkeypatch.setattr("benchmarks.base.limits.memory_limit", lambda root: 100)
    assert "3 images of 8x8 need" in refusal(load, f"folder:{tmp_path}")
    require_memory(100, "they", "none")


def header(shape, kind="|u1", version=(1, 0)):
    buffer = io.BytesIO()
    write = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
    write(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def archive(content, name="images.npy", method=zipfile.ZIP_STORED, repeat=1):
    """An archive of one member, its content `repeat` times over."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, file.open(name, "w", force_zip64=True) as member:
        for part in [content] if repeat == 1 else [content, *[bytes(1 << 20)] * repeat]:
            member.write(part)
    return buffer.getvalue()


def encrypted():
    raw = bytearray(archive(header((9, 8, 8)) + bytes(576)))
    raw[6] |= 1
    raw[raw.rfind(b"PK\1\2") + 8] |= 1
    return bytes(raw)


def damaged():
    raw = archive(header((9, 8, 8)) + bytes(range(64)) * 9, method=zipfile.ZIP_DEFLATED)
    return patched(raw, 60, b"\xff\xff\xff\xff\xff")


def bomb():
    """300 MB of zeros."""
    return archive(header((300, 1024, 1024)), method=zipfile.ZIP_DEFLATED, repeat=300)


def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def boasting():
    """A directory that says 10^12 bytes of a member of a hundred."""
    raw = bytearray(archive(header((10**6, 10**3, 10**3)) + bytes(100), method=zipfile.ZIP_DEFLATED))
    entry = raw.rfind(b"PK\1\2")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 4_000_000_000)
    return bytes(raw)


HUGE = (10**6, 10**3, 10**3)
ARRAYS = {
    "10^12 values": (header(HUGE) + bytes(9), "1000000x1000x1000 values of uint8 with 9 bytes behind it"),
    "10^30 values": (header((10**10,) * 3) + bytes(9), "9 bytes behind it"),
    "10^12 values in an archive": (archive(header(HUGE) + bytes(9)), "9 bytes behind it"),
    "10^12 values, version 2": (archive(header(HUGE, version=(2, 0)) + bytes(9)), "9 bytes behind it"),
    "a negative axis": (header((-1, 8, 8)) + bytes(9), "expected"),
    "300 MB in 300 kB": (bomb, "that inflate to"),
    "a directory that boasts": (boasting(), "that inflate to 4,000,000,000"),
    "encrypted": (encrypted(), "an encrypted member; save it without a password"),
    "damaged": (damaged(), "expected a plain array 'images'"),
    "objects": (saved(images=np.array([{}, None], dtype=object)), "pickled Python objects, which are not read"),
    "objects in a file": (header((9, 8, 8), "|O") + pickle.dumps([0]), "pickled Python objects"),
    "fields with objects": (archive(header((9,), [("a", "|O")])), "pickled Python objects"),
    "a pickle": (pickle.dumps({}), "expected an .npz file of plain arrays or an .npy file"),
    "a header of many letters": (header((9, 8, 8), [(f"f{i}", "u1") for i in range(2000)]), "expected"),
    "a member without end": (archive(b"", "images.npy"), "expected a plain array"),
    "names that move the cursor": (archive(b"", "a\x1b[31m\nb.npy"), "\\x1b[31m"),
    "an unknown compression": (patched(archive(header((9, 8, 8))), 8, b"\x63"), "expected"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_refused_by_what_their_headers_say(tmp_path, kind):
    content, words = ARRAYS[kind]
    path = tmp_path / "x.npz"
    path.write_bytes(content() if callable(content) else content)
    said = refusal(load, f"npz:{path}")
    assert str(path) in said
    assert words in said


def test_thousands_of_names_are_not_all_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for index in range(1000):
            file.writestr(f"a{index}.npy", b"")
    assert "and 992 more" in refusal(load, f"npz:{tmp_path / 'x.npz'}")


def test_arrays_that_do_not_fit_into_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 8, 8), np.uint8))
    np.save(tmp_path / "x.npy", np.zeros((9, 8, 8), np.uint8))
    monkeypatch.setattr("benchmarks.base.limits.memory_limit", lambda root: 100)
    monkeypatch.setattr("numpy.lib.format.read_array", None)
    for name in ("x.npz", "x.npy"):
        assert "GiB, and there are" in refusal(load, f"npz:{tmp_path / name}")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_bytes_give_images_or_one_line(tmp_path, suffix):
    """A hundred files with some bytes changed or cut, by a fixed seed."""
    array, path, chance = np.arange(576, dtype=np.uint8).reshape(9, 8, 8), tmp_path / "x.npz", random.Random(0)
    buffer = io.BytesIO()
    np.save(buffer, array)
    whole = buffer.getvalue() if suffix == "npy" else saved(images=array)
    for _ in range(100):
        raw = bytearray(whole)
        for _ in range(2):
            raw[chance.randrange(chance.choice((150, len(raw))))] = chance.randrange(256)
        path.write_bytes(raw[: chance.choice((len(raw), chance.randrange(len(raw))))])
        said = outcome(load, f"npz:{path}")
        assert said is None or said.isprintable()


@pytest.mark.parametrize(("shape", "content"), [((10**3, 10**3, 10**3), bytes(9)), ((2, 2), bytes(10**8))])
def test_an_idx_file_is_read_no_further_than_its_header_says(tmp_path, shape, content):
    head = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
    (tmp_path / "x.gz").write_bytes(gzip.compress(head + content, 1))
    assert "expected a gzipped idx file" in refusal(read_idx, tmp_path / "x.gz")
