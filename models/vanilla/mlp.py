"""Multi-layer perceptrons as encoder and decoder of an autoencoder."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from kernels.ops import Ops
from models.output import ImageShape


def _layers(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers between the sizes, a ReLU after each."""
    pairs = ((nn.Linear(narrow, wide), nn.ReLU()) for narrow, wide in pairwise(sizes))
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


class ImageLinear(nn.Module):
    """Linear layer over flat images (B, N), initialised as `nn.Linear`; `rows` (N, M) is its weight, transposed."""

    def __init__(self, inputs: int, outputs: int, ops: Ops) -> None:
        super().__init__()
        like = nn.Linear(inputs, outputs)
        self.rows = nn.Parameter(like.weight.detach().t().contiguous())
        self.bias = nn.Parameter(like.bias.detach())
        self.linear = ops.image_linear

    def forward(self, x: Tensor) -> Tensor:
        """Weighted sums (B, M)."""
        return self.linear(x, self.rows, self.bias)


class MLPEncoder(nn.Module):
    """Image (B, C, H, W) in [0, 1] -> features (B, outputs)."""

    def __init__(self, image: ImageShape, hidden: tuple[int, ...], outputs: int, ops: Ops) -> None:
        super().__init__()
        self.stem = ImageLinear(image.dims, hidden[0], ops)
        self.features = nn.Sequential(nn.ReLU(), *_layers(hidden))
        self.head = nn.Linear(hidden[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images x."""
        return self.head(self.features(self.stem(x.flatten(1))))


class MLPDecoder(nn.Module):
    """Code (B, inputs) -> likelihood parameters (B, P, H, W); `hidden` from the image on, as in the encoder."""

    def __init__(self, image: ImageShape, hidden: tuple[int, ...], inputs: int, outputs: int) -> None:
        super().__init__()
        self.shape = (outputs, image.height, image.width)
        self.features = _layers((inputs, *hidden[::-1]))
        self.head = nn.Linear(hidden[0], outputs * image.height * image.width)

    def forward(self, z: Tensor) -> Tensor:
        """Parameters decoded from codes z."""
        return self.head(self.features(z)).unflatten(1, self.shape)
