"""How often 95 % intervals on features hold what they should: PYTHONPATH=.:tests/helpers python -m interval_coverage

Sets of samples and of reference images are drawn anew from a known population, 128 features as the shipped extractors
have; an interval should hold the mean of the value over such draws at the same n (the others' mean: leave one out).

  gaussian  two Gaussians of 128 features whose variances fall as 1 / k, one shifted and narrower
  same      both sides from one Gaussian: the worst case, where a distance is all bias
  images    of the shipped classifier: 55,000 Fashion-MNIST training images, and as many samples of the shipped VAE

`--out FOLDER` keeps the figures in coverage.csv, in place of those of the same population, n and metric, and writes
coverage.md from it.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.base.files import write_text_atomically
from benchmarks.data import cache_folder, load
from benchmarks.evaluation.samples import draw_samples
from benchmarks.machine.environment import collect
from benchmarks.metrics import fidelity
from benchmarks.metrics.extractors import open_extractor
from benchmarks.metrics.features import Features, cached_features
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.metrics.influence import of_frechet
from benchmarks.metrics.sample_quality import TwoSets
from benchmarks.records.catalogue import COMPARED
from benchmarks.records.record import Measurement
from benchmarks.records.uncertainty import share_interval
from benchmarks.report import layout
from benchmarks.storage.weights import load_model

FEATURES, CLASSES = 128, 10
SHARPNESS = 3.0  # of the made-up classes' logits
PARTS: dict[str, Callable[[TwoSets], list[Measurement]]] = {
    "fid": lambda sets: [sets.frechet(COMPARED[0])],
    "kid": lambda sets: [sets.kernel(COMPARED[1])],
    "neighbours": lambda sets: sets.neighbours(*COMPARED[2:]),
    "score": lambda sets: [sets.inception_score()],
}
"""What is measured, by its name on the command line."""
POPULATIONS = ("gaussian", "same", "images")
KEY, SHARES = ["population", "n", "metric"], ["coverage", "coverage_low", "coverage_high"]
PREFACE = """# Coverage of the intervals on features

Share of 95 % intervals that hold the mean of the value over other draws at the same n; in brackets its own
95 % interval, for so many draws. `mean` and `std` are of the value over the draws,
`standard_error` is the mean of what a draw says of itself.
`tests/helpers/interval_coverage.py` explains the populations.
"""
SHIPPED = Path(__file__).parents[2] / "results" / "fashion-mnist" / "vae-128"
RESAMPLES = 100
Pair = tuple[Features, Features]


def gaussian(n: int, source: torch.Generator, scale: float = 0.9, shift: float = 0.05) -> Pair:
    """Samples and reference, `n` each; the samples' standard deviations are `scale` times the reference's."""
    spread = torch.arange(1, FEATURES + 1, dtype=torch.float64).rsqrt()
    sides = [torch.randn(n, FEATURES, generator=source, dtype=torch.float64) * spread for _ in range(2)]
    sides[0] = sides[0] * scale + shift
    samples, reference = (Features(side, SHARPNESS * side[:, :CLASSES]) for side in sides)
    return samples, reference


def population() -> Pair:
    """Features of samples of the shipped VAE and of the training images it learned from."""
    loaded = load_model(SHIPPED, torch.device("cpu"))
    data, extractor = load("fashion-mnist", download=False), open_extractor("fashion-mnist-cnn-v1")
    samples = draw_samples(loaded.model, loaded.trial, len(data.train), lambda *_: None)
    made, real = (cached_features(images, extractor, cache_folder("features")) for images in (samples, data.train))
    return made, real


def drawn_from(whole: Pair, n: int, source: torch.Generator) -> Pair:
    """`n` of each side, none twice."""
    chosen = [torch.randperm(len(side.values), generator=source)[:n] for side in whole]
    samples, reference = (Features(s.values[i], s.logits[i]) for s, i in zip(whole, chosen, strict=True))
    return samples, reference


def covered(values: list[float], intervals: list[tuple[float, float]]) -> float:
    """Share of the intervals that hold the mean of the other draws' values."""
    array, bounds = np.array(values), np.array(intervals)
    others = (array.sum() - array) / (len(array) - 1)
    return float(((bounds[:, 0] <= others) & (others <= bounds[:, 1])).mean())


def measure(draw: Callable[[torch.Generator], Pair], draws: int, parts: Sequence[str]) -> pd.DataFrame:
    """A line a metric: mean and standard deviation over the draws, mean standard error of one, coverage."""
    extractor, source = open_extractor("fashion-mnist-cnn-v1"), torch.Generator().manual_seed(0)
    found: dict[str, list[Measurement]] = {}
    for _ in range(draws):
        sets = TwoSets(*draw(source), extractor)
        for one in (one for part in parts for one in PARTS[part](sets)):
            found.setdefault(one.metric, []).append(one)
    rows = []
    for metric, ones in found.items():
        values = [one.value for one in ones]
        errors = [one.details["standard_error"] for one in ones]
        coverage = covered(values, [(one.low, one.high) for one in ones])
        low, high = share_interval(coverage, (coverage * (1 - coverage) / draws) ** 0.5, draws)
        rows.append([metric, np.mean(values), np.std(values, ddof=1), np.mean(errors), coverage, low, high])
    columns = ["metric", "mean", "std", "standard_error", "coverage", "coverage_low", "coverage_high"]
    return pd.DataFrame(rows, columns=columns)


def keep(found: pd.DataFrame, population: str, n: int, draws: int, folder: Path) -> None:
    """Put the figures into the folder's coverage.csv, and write coverage.md from it."""
    here = collect(torch.device("cpu"), 1, "float64")
    command = shlex.join(["PYTHONPATH=.:tests/helpers", "python", "-m", "interval_coverage", *sys.argv[1:]])
    about = {"population": population, "n": n, "draws": draws, "kid_subsets": fidelity.KID_SUBSETS}
    stamp = {"date": here.date, "commit": here.commit, "cpu": here.cpu, "torch": here.torch}
    stamp |= {"torch_fidelity": here.torch_fidelity, "command": command}
    found = found.assign(**about, **stamp)[[*KEY[:2], "draws", "kid_subsets", *found.columns, *stamp]]
    path = folder / "coverage.csv"
    if path.exists():
        found = pd.concat([pd.read_csv(path), found]).drop_duplicates(KEY, keep="last")
    order = {name: i for i, name in enumerate([*POPULATIONS, *COMPARED, "inception_score"])}
    found = found.sort_values(KEY, key=lambda column: column.map(order) if column.name != "n" else column)
    write_text_atomically(path, layout.csv(found))
    write_text_atomically(folder / "coverage.md", page(found))


def page(found: pd.DataFrame) -> str:
    """All figures as a table, with what measured them."""
    shares = [f"{a:.1%} ({b:.1%} to {c:.1%})" for a, b, c in found[SHARES].itertuples(index=False)]
    numbers = {name: [f"{value:.4g}" for value in found[name]] for name in ("mean", "std", "standard_error")}
    cells = {name: found[name].astype(str) for name in (*KEY, "draws")} | numbers
    cells |= {"coverage of 95 %": shares, "KID subsets": found["kid_subsets"].astype(str)}
    table = layout.markdown(pd.DataFrame(cells), ["population", "metric"], "bare")
    commands = found.groupby(["command", "date", "commit", "cpu", "torch", "torch_fidelity"], sort=False).size().index
    lines = [
        f"    {command}\n\n{date}, commit {commit[:12]}, {cpu}, torch {ours}, torch-fidelity {theirs}\n"
        for command, date, commit, cpu, ours, theirs in commands
    ]
    return "\n".join([PREFACE, table, "", *lines])


def distance(samples: torch.Tensor, reference: torch.Tensor) -> float:
    """The Frechet distance of features."""
    return frechet_distance(FeatureStatistics.of(samples), FeatureStatistics.of(reference))


def ways(samples: torch.Tensor, reference: torch.Tensor, source: torch.Generator) -> dict[str, tuple[float, float]]:
    """Intervals of one Frechet distance: what might have been done, and what is."""
    n, value = len(samples), distance(samples, reference)

    def resampled(size: int, again: bool) -> np.ndarray:
        values = []
        for _ in range(RESAMPLES):
            chosen = [
                torch.randint(n, (size,), generator=source) if again else torch.randperm(n, generator=source)[:size]
                for _ in range(2)
            ]
            values.append(distance(samples[chosen[0]], reference[chosen[1]]))
        return np.array(values)

    boot, half = resampled(n, True), resampled(n // 2, False)
    low, high = np.quantile(boot, [0.025, 0.975])
    bias = boot.mean() - value
    error, halves = of_frechet(samples, reference).standard_error, half.std(ddof=1)
    return {
        "bootstrap, percentiles": (low, high),
        "bootstrap, bias taken off": (low - bias, high - bias),
        "half of the images, scaled": (value - 1.96 * halves, value + 1.96 * halves),
        "influences": (value - 1.96 * error, value + 1.96 * error),
    }


def measure_ways(draw: Callable[[torch.Generator], Pair], draws: int) -> pd.DataFrame:
    """Coverage and mean width of each way to an interval of the Frechet distance."""
    source = torch.Generator().manual_seed(0)
    values, found = [], {}
    for _ in range(draws):
        samples, reference = draw(source)
        values.append(distance(samples.values, reference.values))
        for name, interval in ways(samples.values, reference.values, source).items():
            found.setdefault(name, []).append(interval)
    rows = [[name, f"{covered(values, ones):.1%}", np.mean([b - a for a, b in ones])] for name, ones in found.items()]
    return pd.DataFrame(rows, columns=["way", "coverage of 95 %", "mean width"])


def seconds(pair: Pair) -> str:
    """What the intervals take beside the values themselves."""
    whole = TwoSets(*pair, open_extractor("fashion-mnist-cnn-v1"))
    sides = [side.values for side in pair]
    started = time.process_time()
    for part in ("fid", "kid", "neighbours"):
        PARTS[part](whole)
    inside = time.process_time()
    for value in (fidelity.fid, fidelity.kid, fidelity.precision_and_recall, distance):
        value(*sides)
    values = time.process_time() - inside
    return f"of one evaluation, processor time: values {values:.2f} s, intervals {inside - started - values:.2f} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("population", choices=POPULATIONS)
    parser.add_argument("--n", type=int, default=1000, help="images a side")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="leave out what takes long")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--kid-subsets", type=int, default=fidelity.KID_SUBSETS, help="fewer: a quicker KID, less sure")
    parser.add_argument("--ways", action="store_true", help="other ways to an interval of the Frechet distance")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fidelity.KID_SUBSETS = fidelity.OPTIONS["kid_subsets"] = options.kid_subsets
    if options.population == "images":
        draw = partial(drawn_from, population(), options.n)
    else:
        draw = partial(gaussian, options.n)
    if options.population == "same":
        draw = partial(gaussian, options.n, scale=1.0, shift=0.0)
    print(
        f"{options.population}, n = {options.n} a side, {options.draws} draws, {options.kid_subsets} subsets of KID",
        flush=True,
    )
    if options.ways:
        print(measure_ways(draw, options.draws).to_string(index=False))
        return
    found = measure(draw, options.draws, options.parts)
    print(found.to_string(index=False))
    if options.out:
        keep(found, options.population, options.n, options.draws, options.out)
    print(seconds(draw(torch.Generator().manual_seed(1))), flush=True)


if __name__ == "__main__":
    main()
