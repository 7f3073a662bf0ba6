"""The verb `export`: a trained trial as a folder for a model hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.records.record import RECORD
from benchmarks.report.hub.folder import exported_record, require_new, write_folder
from benchmarks.storage import tensors
from benchmarks.storage.weights import CONFIG, read_config, trained_folder


def export(options: argparse.Namespace) -> int:
    """Write weights, configuration, card and pictures; nothing is uploaded."""
    source, out = Path(options.trial), Path(options.out)
    folder = trained_folder(source.parent if source.name == RECORD else source)
    record = exported_record(folder)
    require_new(out)
    read_config(folder)
    tensors.load(folder / tensors.WEIGHTS)  # whole, as its hash says
    files = {tensors.HUB_WEIGHTS: folder / tensors.WEIGHTS, CONFIG: folder / CONFIG}
    write_folder(folder, record, out, options.license, files)
    if ":" in record.data:
        print(f"note: {CONFIG}, {RECORD} and the weights name the data as {record.data}", file=sys.stderr)
    print(f"{record.label}, seed {record.seed}, in {out}; `push {out} OWNER/NAME` uploads it", file=sys.stderr)
    return 0
