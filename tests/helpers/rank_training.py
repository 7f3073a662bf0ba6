"""Trains rows of a small suite on noise in all processes of torchrun, each of which writes down what it ends with.

    torchrun --standalone --nproc-per-node 2 -m rank_training OUT [DEVICE]

Alone (`python -m rank_training OUT`) it is one process. OUT/ROW/RANK.safetensors holds weights, buffers and losses.
"""

import functools
import os
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.data import DataSet
from benchmarks.storage import tensors
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import build_suite
from benchmarks.training import loop
from benchmarks.training.ranks import Ranks
from models.output import ImageShape

NVAE = {
    "name": "nvae",
    "groups_fine_to_coarse": [2, 1],
    "latent_channels": 2,
    "channels_encoder": 4,
    "channels_decoder": 4,
    "norm_penalty": 0.01,
}
ROWS = {
    "vae": {"channels": 4, "latent_size": 3},
    "residual-vae": {"channels_encoder": 4, "channels_decoder": 4},
    "nvae": NVAE,
    "from-data": NVAE | {"arch": "res_elu", "weight_norm": True},
    "in-passes": NVAE | {"recompute": True},
    "vdvae": {"preset": "vdvae-tiny"},
    "hopeless": {"name": "vae", "channels": 4, "training": {"learning_rate": 1e30, "hopeless_after": 3}},
}
"""What each adds: batch norms as modules, and of cells; a start from data; gradients summed; no norms; going back."""
TABLE = {
    "data": "mnist-5k",
    "likelihood": {"name": "bernoulli"},
    "objective": {"balancing": "square", "kl_warmup": 1.0, "free_nats": 0.05},
    "training": {
        "images": 120,
        "batch_size": 15,
        "validations": 2,
        "ema": 0.9,
        "ema_batches": 2,
        "warmup": 0.0,
        "back_offs": 1,
        "epsilon": 1e-3,
    },
    "evaluation": {"batch_size": 7},
    "models": ROWS,
}
"""Ranks take different shares of 15 images. Where a gradient is 0 but for rounding, epsilon keeps the step so."""


def noise() -> DataSet:
    """Random images of the size of MNIST's."""
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (50, 20, 10)]
    return DataSet("noise", ImageShape(1, 28, 28), *splits, "hash", None, "random pixels")


def main(out: Path, device: str = "cpu") -> None:
    """Train all rows one after another; with a GPU's name all processes share it."""
    torch.set_num_threads(1)
    ranks = Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if ranks.count > 1:
        dist.init_process_group("gloo")
    for trial in build_suite("ranks", TABLE).trials:
        folder, silent = out / trial.row, lambda *event: None
        folder.mkdir(parents=True, exist_ok=True)
        model = build_model(trial, ImageShape(1, 28, 28), torch.device(device), shared=ranks.count > 1)
        passes = 2 if trial.row == "in-passes" else 1
        started = functools.partial(loop.TrainingState, passes=passes)
        with mock.patch.object(loop, "TrainingState", started):
            result = loop.train(model, trial, noise(), folder, silent, lambda: False, ranks=ranks)
        found = {curve.name: torch.tensor(curve.values, dtype=torch.float64) for curve in result.curves}
        tensors.save(folder / f"{ranks.index}.safetensors", model.state_dict() | found, {})
    if ranks.count > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
