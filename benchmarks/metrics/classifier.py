"""The small classifier whose features are the offline ruler for small images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FEATURES = 128
CLASSES = 10
SIZE = 28


class SmallClassifier(nn.Module):
    """Four convolutions with batch norm; features are the last maps' mean: (B, 128). 98,682 parameters by default."""

    def __init__(self, channels: int = 1, classes: int = CLASSES) -> None:
        super().__init__()
        self.stages = nn.Sequential(_stage(channels, 16), _stage(16, 32, 2), _stage(32, 64, 2), _stage(64, FEATURES))
        self.head = nn.Linear(FEATURES, classes)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator`: He et al. 2015 for convolutions, zeros for the head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 128"]:
        """Features of images in [0, 1]."""
        return self.stages(2 * x - 1).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Class logits of images in [0, 1]."""
        return self.head(self.features(x))


def _stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
