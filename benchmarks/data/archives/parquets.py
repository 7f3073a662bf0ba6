"""Pictures in Parquet files, as hubs of data sets serve them: a column of encoded images, read by groups of rows.

The column holds the bytes of image files, alone or as `bytes` of a struct (`image: {bytes, path}`). Needs pyarrow, the
extra `parquet`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from benchmarks.base.errors import UserError, first_line, unknown
from benchmarks.base.files import mistaken_for
from benchmarks.data.archives.shards import shards
from benchmarks.data.cache.pictures import Pictures
from benchmarks.data.decoding import Decoded, decode_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
INSTALL = "pip install -e '.[parquet]'"
USUAL = ("image", "img")
"""Columns that are taken without being named."""
BYTES = "bytes"
MOST_GROUP = 2 << 30
"""Bytes of a column in one group of rows, which is read whole."""


@dataclass(frozen=True)
class ParquetPictures(Pictures):
    """Rows of Parquet files: the file, the group of rows, and the row in it, of each picture."""

    shards: Sequence[Path]
    column: str
    rows: Int64[np.ndarray, "N 3"]

    @property
    def files(self) -> Sequence[Path]:
        """The Parquet files."""
        return self.shards

    def decode(self, index: int, background: str) -> Decoded:
        """The image of a row, as files are read."""
        shard, group, row = map(int, self.rows[index])
        path = self.shards[shard]
        name = f"{path}: {self.names[index]}"
        with _readable(path):
            raw = _group(path, path.stat().st_mtime_ns, group, self.column)[row].as_py()
        if raw is None:
            raise UserError(f"{name}: expected the bytes of an image file, got a row without them")
        return decode_bytes(raw, name, background)


@dataclass(frozen=True)
class Rows:
    """The rows of a Parquet file, or of those below a folder, by the names of their pictures."""

    place: Path
    shards: Sequence[Path]
    column: str
    rows: dict[str, tuple[int, int, int]]

    @classmethod
    def of(cls, place: Path, column: str | None = None) -> Rows:
        """Read what the files say of themselves; `column` is needed where there are several and none is usual.

        Raises:
            UserError: pyarrow is missing; no Parquet file, or a damaged one; no such column, or one too large.
        """
        files = shards(place, SUFFIX)
        if not files:
            raise UserError(f"{place}: expected {SUFFIX} files, found none")
        chosen, rows = "", dict[str, tuple[int, int, int]]()
        for index, path in enumerate(files):
            with _readable(path):
                file = _opened(path)
                leaf = _leaf_of(file.schema_arrow, column, path)
                if chosen not in ("", leaf):
                    raise UserError(f"{path}: expected the column '{chosen}' of the files before, found '{leaf}'")
                chosen = leaf
                prefix = f"{path.relative_to(place).as_posix()}/" if place.is_dir() else ""
                numbered = enumerate(_rows_of(file, leaf, path))
                rows |= {f"{prefix}{leaf}/{number:09}": (index, *row) for number, row in numbered}
        return cls(place, files, chosen, rows)

    def pictures(self, names: Sequence[str]) -> ParquetPictures:
        """Those of these names, in this order."""
        rows = np.array([self.rows[name] for name in names], np.int64).reshape(-1, 3)
        return ParquetPictures(self.place, names, self.shards, self.column, rows)


class _readable:  # noqa: N801 - reads as a verb
    """Turns what pyarrow raises on a file into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, ValueError, MemoryError, NotImplementedError)):
            reason = mistaken_for(self.path) or getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{self.path}: expected a Parquet file, got {reason}") from error


def _opened(path: Path) -> ParquetFile:
    """The file, of which nothing but its end is read."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet files needs pyarrow: {INSTALL}") from error
    if not path.is_file():
        raise FileNotFoundError(2, "no regular file there")
    return ParquetFile(path)


def _leaf_of(schema: pa.Schema, asked: str | None, path: Path) -> str:
    """The path in the schema of the column of images.

    Raises:
        UserError: there is none, or several and none that was asked for or is usual.
    """
    leaves = {field.name: leaf for field in schema if (leaf := _leaf(field)) is not None}
    if asked is not None:
        if asked not in leaves:
            raise UserError(f"{path}: {unknown('column of images', asked, leaves)}")
        return leaves[asked]
    if not leaves:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)[:200]
        raise UserError(f"{path}: expected a column of bytes, or of structs with '{BYTES}', found {found or 'none'}")
    usual = [name for name in USUAL if name in leaves]
    if not usual and len(leaves) > 1:
        raise UserError(f"{path}: expected ?column=NAME behind the path, one of {', '.join(leaves)}")
    return leaves[(usual or list(leaves))[0]]


def _leaf(field: pa.Field) -> str | None:
    """The path to a column's bytes, None where it has none."""
    from pyarrow import types

    if types.is_binary(field.type) or types.is_large_binary(field.type):
        return field.name
    if types.is_struct(field.type):
        inner = {one.name: one.type for one in field.type.fields}.get(BYTES)
        if inner is not None and (types.is_binary(inner) or types.is_large_binary(inner)):
            return f"{field.name}.{BYTES}"
    return None


def _rows_of(file: ParquetFile, leaf: str, path: Path) -> Iterator[tuple[int, int]]:
    """Group and row in it, of all rows in order.

    Raises:
        UserError: a group whose column is too large to be read whole.
    """
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        columns = (facts.column(index) for index in range(facts.num_columns))
        size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema == leaf)
        if size > MOST_GROUP:
            raise UserError(
                f"{path}: expected at most {MOST_GROUP:,} bytes of '{leaf}' in a group of rows, got {size:,}; write it "
                "again with a smaller row_group_size"
            )
        for row in range(facts.num_rows):
            yield group, row


@functools.lru_cache(maxsize=1)
def _group(path: Path, changed: int, group: int, column: str) -> pa.ChunkedArray | pa.Array:
    """A column in a group of rows: the last one is kept, as rows are asked for in order."""
    found = _opened(path).read_row_group(group, columns=[column], use_threads=False).column(0)
    return found.combine_chunks().field(BYTES) if column.endswith(f".{BYTES}") else found
