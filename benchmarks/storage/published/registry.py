"""The one list of readers of published codes' checkpoints, and reading a file with the one that recognises it."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from benchmarks.storage.published.checkpoint import PublishedModel, PublishedReader, Settings, load_contents
from benchmarks.storage.published.nvae import is_nvae_checkpoint, read_nvae
from benchmarks.storage.published.vdvae import is_vdvae_checkpoint, read_vdvae

READERS: tuple[PublishedReader, ...] = (
    PublishedReader(
        label="NVAE (original)",
        layout="an original NVAE checkpoint (a dict with state_dict and args)",
        recognises=is_nvae_checkpoint,
        read=read_nvae,
        safe_types=(argparse.Namespace,),
    ),
    PublishedReader(
        label="VDVAE (original)",
        layout="weights of an original VDVAE (a state_dict with encoder.enc_blocks and decoder.dec_blocks)",
        recognises=is_vdvae_checkpoint,
        read=functools.partial(read_vdvae, settings=None),
        read_as=read_vdvae,
    ),
)


def read_published(path: Path, settings: Settings | None = None) -> tuple[PublishedReader, PublishedModel]:
    """The reader that recognises a file, and what it reads; `settings` say what files of weights alone do not.

    Raises:
        ValueError: the file cannot be read safely, has a layout that no reader knows, or cannot be built; settings for
            one that holds its own.
        OSError: the file cannot be opened.
    """
    contents = load_contents(path, (kind for reader in READERS for kind in reader.safe_types))
    for reader in READERS:
        if reader.recognises(contents):
            return reader, _read(reader, contents, settings)
    raise ValueError(f"{path}: expected {' or '.join(reader.layout for reader in READERS)}")


def _read(reader: PublishedReader, contents: object, settings: Settings | None) -> PublishedModel:
    """What a reader reads, with the settings where there are any."""
    if settings is None:
        return reader.read(contents)
    if reader.read_as is None:
        raise ValueError(f"--hparams: a checkpoint of {reader.label} holds its own settings; leave the flag out")
    return reader.read_as(contents, settings)
