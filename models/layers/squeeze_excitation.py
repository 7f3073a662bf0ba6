"""Channel gates."""

from __future__ import annotations

from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Per-image channel gates in (0, 1) (Hu et al. 2018): pool, bottleneck of C / 16 (at least 4), sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.se = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, 1, 1) for a feature map (B, C, h, w); the caller multiplies."""
        return self.se(x.mean((2, 3)))[:, :, None, None]
