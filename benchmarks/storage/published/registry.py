"""The one list of readers of published codes' checkpoints, and reading a file with the one that recognises it."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.storage.published.checkpoint import PublishedModel, PublishedReader, load_contents
from benchmarks.storage.published.nvae import is_nvae_checkpoint, read_nvae

READERS: tuple[PublishedReader, ...] = (
    PublishedReader(
        label="NVAE (original)",
        layout="an original NVAE checkpoint (a dict with state_dict and args)",
        recognises=is_nvae_checkpoint,
        read=read_nvae,
        safe_types=(argparse.Namespace,),
    ),
)


def read_published(path: Path) -> tuple[PublishedReader, PublishedModel]:
    """The reader that recognises a file, and what it reads.

    Raises:
        ValueError: the file cannot be read safely, has a layout that no reader knows, or cannot be built.
        OSError: the file cannot be opened.
    """
    contents = load_contents(path, (kind for reader in READERS for kind in reader.safe_types))
    for reader in READERS:
        if reader.recognises(contents):
            return reader, reader.read(contents)
    raise ValueError(f"{path}: expected {' or '.join(reader.layout for reader in READERS)}")
