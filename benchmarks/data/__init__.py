"""Data sets as 8-bit images in fixed splits, and everything that turns them into batches.

data = load("mnist-5k")
for index in islice(batches(len(data.train), 32, seed=0, start_step=0), steps):
    x = to_unit(data.train[index])
"""

from benchmarks.data.cache.mapped import picked
from benchmarks.data.dataset import DataSet, Source, cache_folder, content_hash
from benchmarks.data.order import batches, keyed_generator
from benchmarks.data.pixels import binarise, model_input, to_uint8, to_unit
from benchmarks.data.registry import DATA_SETS, Labels, load, load_labels

__all__ = [
    "DATA_SETS",
    "DataSet",
    "Labels",
    "Source",
    "batches",
    "binarise",
    "cache_folder",
    "content_hash",
    "keyed_generator",
    "load",
    "load_labels",
    "model_input",
    "picked",
    "to_uint8",
    "to_unit",
]
