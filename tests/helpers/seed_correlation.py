"""Whether a seed does the same to two models: PYTHONPATH=.:tests/helpers python -m seed_correlation [RUN ...]

Mean correlation, over pairs of rows of a run and quality metrics, of the deviations of seeds from their rows' means.
Near 0: seeds of two models are independent, and pairing them costs degrees of freedom for nothing.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from benchmarks.records.record import load_records
from benchmarks.report.rows import Row, gather

METRICS = ("elbo", "mse", "sample_fid", "reconstruction_fid", "kid", "precision", "recall", "inception_score")


def deviations(row: Row, metric: str) -> np.ndarray | None:
    """Of each seed from the mean, scaled to length 1; None where a seed has no value."""
    values = [found.value for record in row.records if (found := record.get(metric)) is not None]
    if len(values) < len(row.records) or len(values) < 3 or None in values:
        return None
    centred = np.array(values) - np.mean(values)
    return centred / np.linalg.norm(centred)


def main(runs: list[str]) -> None:
    """Print a line a run."""
    for run in runs:
        rows = gather(load_records(Path(run)))
        found = []
        for metric in METRICS:
            known = [one for row in rows if (one := deviations(row, metric)) is not None]
            found += [float(a @ b) for a, b in itertools.combinations(known, 2)]
        print(f"{run}: mean correlation {np.mean(found):.2f}, {len(found)} pairs of rows and metric, {len(rows)} rows")


if __name__ == "__main__":
    main(sys.argv[1:] or ["results/quick", "results/fashion-mnist"])
