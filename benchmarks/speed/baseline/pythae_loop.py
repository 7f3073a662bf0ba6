"""pythae's own VAE in pythae's own trainer, timed: a script for an environment of its own that has pythae 0.1.2.

    python pythae_loop.py IMAGES.npy --config mlp --batch 100 --threads 2 --steps 100

IMAGES.npy holds (N, 1, 28, 28) uint8; pythae trains on them as numbers in [0, 1], binarised once with `--binary`.
`mlp` is pythae's default pair of networks with 16 latents, `conv` the convolutional pair of this suite (16 channels,
two poolings) as custom encoder and decoder; both with the binary cross-entropy. Every epoch is one call of
`BaseTrainer.train_step` over its own loader, with as many whole batches as there are images for; after one epoch to
warm up, at least `--steps` steps are timed. Prints one line of JSON: images per second of the median epoch, seconds of
every epoch (on the clock, and of processor time), steps of an epoch, versions. It imports nothing of this suite.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset  # pyright: ignore[reportMissingImports]
from pythae.models import VAE, VAEConfig  # pyright: ignore[reportMissingImports]
from pythae.models.base.base_utils import ModelOutput  # pyright: ignore[reportMissingImports]
from pythae.models.nn import BaseDecoder, BaseEncoder  # pyright: ignore[reportMissingImports]
from pythae.trainers import BaseTrainer, BaseTrainerConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

LATENTS, CHANNELS, POOLINGS, SIDE = 16, 16, 2, 28
LEARNING_RATE = 1e-3
WIDTHS = [CHANNELS * 2**level for level in range(POOLINGS + 1)]
BOTTOM = (WIDTHS[-1], SIDE // 2**POOLINGS, SIDE // 2**POOLINGS)


def block(c_in: int, c_out: int) -> list[nn.Module]:
    """3x3 convolution, batch norm, SiLU."""
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU()]


class ConvolutionalEncoder(BaseEncoder):
    """Images -> mean and log variance of the latents."""

    def __init__(self) -> None:
        super().__init__()
        layers = block(1, CHANNELS)
        for narrow, wide in pairwise(WIDTHS):
            layers += [nn.MaxPool2d(2), *block(narrow, wide), *block(wide, wide)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(math.prod(BOTTOM), 2 * LATENTS))

    def forward(self, x: Tensor) -> Any:
        """The two as pythae wants them."""
        mean, log_variance = self.layers(2 * x - 1).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class ConvolutionalDecoder(BaseDecoder):
    """Latents -> probabilities of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(LATENTS, math.prod(BOTTOM)), nn.Unflatten(1, BOTTOM)]
        for wide, narrow in pairwise(WIDTHS[::-1]):
            layers += [*block(wide, wide), *block(wide, narrow), nn.Upsample(scale_factor=2)]
        layers += [*block(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, 1, 3, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Any:
        """The image as pythae wants it."""
        return ModelOutput(reconstruction=self.layers(z))


def build(config: str) -> Any:
    """The VAE of pythae."""
    settings = VAEConfig(input_dim=(1, SIDE, SIDE), latent_dim=LATENTS, reconstruction_loss="bce")
    pair = {} if config == "mlp" else {"encoder": ConvolutionalEncoder(), "decoder": ConvolutionalDecoder()}
    return VAE(settings, **pair)


def trainer(config: str, images: Tensor, batch: int, folder: str) -> Any:
    """The trainer of pythae, ready for its first epoch; logs and checkpoints are off or in `folder`."""
    settings = BaseTrainerConfig(
        output_dir=folder, per_device_train_batch_size=batch, learning_rate=LEARNING_RATE, no_cuda=True
    )
    data = BaseDataset(images, torch.ones(len(images)))
    ready = BaseTrainer(build(config), data, training_config=settings)
    ready.prepare_training()
    ready.callback_handler.callbacks.clear()  # no progress bar, no printing
    return ready


def epochs(ready: Any, steps: int) -> list[tuple[float, float]]:
    """Seconds on the clock and of processor time of each epoch after the first, for at least `steps` steps."""
    ready.train_step(1)
    taken: list[tuple[float, float]] = []
    while len(taken) * len(ready.train_loader) < steps:
        started = time.perf_counter(), time.process_time()
        ready.train_step(len(taken) + 2)
        taken.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return taken


def main() -> None:
    """Time one configuration and print one line of JSON."""
    parser = argparse.ArgumentParser(description="Time pythae's VAE in pythae's trainer.")
    parser.add_argument("images", help="(N, 1, 28, 28) uint8, .npy")
    parser.add_argument("--config", choices=("mlp", "conv"), default="mlp")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--binary", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.disable(logging.WARNING)
    images = torch.from_numpy(np.load(chosen.images)).float() / 255
    whole = len(images) // chosen.batch * chosen.batch
    images = torch.bernoulli(images[:whole]) if chosen.binary else images[:whole]
    with tempfile.TemporaryDirectory() as folder:
        ready = trainer(chosen.config, images, chosen.batch, folder)
        times, processor_times = zip(*epochs(ready, chosen.steps), strict=True)
    result = {
        **vars(chosen),
        "images_per_second": whole / sorted(times)[len(times) // 2],
        "times": times,
        "processor_times": processor_times,
        "steps_per_epoch": len(ready.train_loader),
        "parameters": sum(p.numel() for p in ready.model.parameters()),
        "versions": {"pythae": version("pythae"), "torch": torch.__version__, "python": platform.python_version()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
