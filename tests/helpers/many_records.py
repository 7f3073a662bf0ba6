"""A run of many trials, made of the trials of a real one: `python -m many_records SOURCE OUT --rows N [--seeds S]`.

Each row is a copy of one of the source's under a name, label and learning rate of its own, its other files are links.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.records.record import RECORD, RunRecord, load_trials, save_record, save_run


def many_records(source: Path, out: Path, rows: int, seeds: int | None = None) -> list[Path]:
    """The folders of `rows` rows of as many seeds as the source has, or of the first `seeds`, listed as a run's are."""
    by_row: dict[str, list[tuple[Path, RunRecord]]] = {}
    for folder, record in load_trials(source).items():
        by_row.setdefault(record.row, []).append((folder, record))
    known = list(by_row.values())
    made = [
        _copied(folder, record, out, index)
        for index in range(rows)
        for folder, record in known[index % len(known)][:seeds]
    ]
    save_run(out, [folder.name for folder in made])
    return made


def _copied(folder: Path, record: RunRecord, out: Path, index: int) -> Path:
    """The trial as one of the row of that index."""
    row, label = f"{record.row}-{index}", f"{record.label} {index}"
    config = _renamed(record.config, row, label, index)
    place = out / folder.name.replace(record.row, row, 1)
    place.mkdir(parents=True)
    copy = dataclasses.replace(record, row=row, label=label, config=config, config_hash=f"{index:012x}")
    save_record(copy, place)
    for path in folder.iterdir():
        if path.name != RECORD:
            (place / path.name).symlink_to(path.resolve())
    return place


def _renamed(config: dict[str, Any], row: str, label: str, index: int) -> dict[str, Any]:
    """The configuration of the row, with a learning rate of its own."""
    training = {**config["training"], "learning_rate": config["training"]["learning_rate"] * (1 + index / 1000)}
    return {**config, "row": row, "label": label, "training": training}


def main() -> None:
    """Make the run that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    print(f"{len(many_records(options.source, options.out, options.rows, options.seeds))} trials in {options.out}")


if __name__ == "__main__":
    main()
